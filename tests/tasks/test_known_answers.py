"""Tasks with an answer that theory or the literature knows, trained by the main job."""

import json
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from optbench.configuration.build import build
from optbench.paths import conf_folder
from tests.conftest import Command, Outcome


def _records(outcome: Outcome) -> list[dict[str, Any]]:
    assert outcome.code == 0, outcome.err
    return [
        json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()
    ]


def _series(records: list[dict[str, Any]], metric: str) -> dict[int, float]:
    return {record["step"]: record[metric] for record in records if metric in record}


LINEAR = {
    "sgd": ("sgd", {}),
    "sgd with weight decay": ("sgd", {"weight_decay": 0.3}),
    "heavy ball": ("momentum", {}),
    "heavy ball with weight decay": ("momentum", {"weight_decay": 0.3, "momentum": 0.5}),
    "Nesterov": ("nesterov", {}),
    "Nesterov with weight decay": ("nesterov", {"weight_decay": 0.3, "momentum": 0.7}),
}


@pytest.mark.parametrize("name", LINEAR)
def test_every_linear_optimizer_follows_its_closed_form_on_the_quadratic(name: str) -> None:
    """Along each eigenvector (w, m) ← M(w, m), so w after t steps is the first row of Mᵗ(w₀, 0).

    m ← βm + (λ + wd)w, and w ← w − ηm, or for Nesterov w − η(βm + (λ + wd)w) with the new m, as
    torch has it. Inputs are float32, so that λ is off by 1e-7; in 60 steps that grows to less than
    1e-5 of w₀.
    """
    optimizer, changes = LINEAR[name]
    overrides = [
        "task=quadratic",
        "dtype=float64",
        "device=cpu",
        "optimizer.lr=0.05",
        f"optimizer={optimizer}",
    ]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose(
            "config", overrides + [f"optimizer.{key}={value}" for key, value in changes.items()]
        )
    experiment = build(config)
    x = experiment.task.train.inputs
    eigenvalues, Q = torch.linalg.eigh(x.T @ x / len(x))
    weight = next(experiment.update.model.parameters())
    start = Q.T @ weight.detach()[0]
    for _ in range(60):
        experiment.update(*experiment.batches.next())
    lr, beta, decay = 0.05, config.optimizer.momentum, config.optimizer.weight_decay
    for i, eigenvalue in enumerate(eigenvalues.tolist()):
        h = eigenvalue + decay
        step = [[1 - lr * h, -lr * beta], [h, beta]]
        if config.optimizer.nesterov:
            step[0] = [1 - lr * h * (1 + beta), -lr * beta**2]
        M = torch.matrix_power(torch.tensor(step, dtype=torch.float64), 60)
        expected = float(M[0, 0] * start[i])
        assert float((Q.T @ weight.detach()[0])[i]) == pytest.approx(
            expected, abs=1e-5 * float(start.norm())
        )


def test_logistic_regression_comes_down_to_its_optimum(optbench: Command) -> None:
    outcome = optbench(
        "task=logistic", "optimizer=lbfgs", "dtype=float64", "steps=60", "probes=none"
    )
    losses = _series(_records(outcome), "train/loss")
    optimum = json.loads((outcome.folder / "provenance.json").read_text())["task"]["optimum"]
    assert -1e-12 < losses[60] - optimum < 1e-6


def test_noisy_quadratic_has_its_floor_and_its_edge(optbench: Command) -> None:
    """In 3,000 full-batch steps at half the edge all but the flattest directions are at the floor ½σ²."""
    outcome = optbench("task=noisy_quadratic", "batch_size=full", "optimizer.lr=1", "steps=3000")
    records = _records(outcome)
    losses, distances = _series(records, "train/loss"), _series(records, "edge/distance")
    assert losses[3000] == pytest.approx(0.5**2 / 2, rel=1e-5)
    # λ₁ = 1, threshold 2
    assert list(distances.values()) == pytest.approx([0.5] * len(distances), rel=1e-3)
    diverged = optbench("task=noisy_quadratic", "batch_size=full", "optimizer.lr=2.1", "steps=3000")
    assert json.loads((diverged.folder / "summary.json").read_text())["status"] == "diverged"


def _phases(outcome: Outcome) -> tuple[int, float, float]:
    """The first step without a training error, the test error there, and the lowest one later on."""
    records = _records(outcome)
    train, test = _series(records, "train/error"), _series(records, "test/error")
    learnt = next(step for step, error in train.items() if error == 0)
    return learnt, test[learnt], min(error for step, error in test.items() if step > learnt)


def test_a_perceptron_groks_modular_addition(optbench: Command) -> None:
    learnt, then, later = _phases(
        optbench(
            "task=modular_addition_small",
            "optimizer.lr=0.01",
            "optimizer.weight_decay=1",
            "optimizer.betas=[0.9,0.98]",
            "probes=none",
            "probes.generalization.every=20",
        )
    )
    assert learnt <= 300 and then > 0.9 and later < 0.3, (learnt, then, later)


@pytest.mark.slow
def test_a_transformer_groks_modular_addition(optbench: Command) -> None:
    learnt, then, later = _phases(
        optbench(
            "task=modular_addition",
            "optimizer.lr=3e-3",
            "optimizer.weight_decay=1",
            "optimizer.betas=[0.9,0.98]",
            "probes=none",
            "probes.generalization.every=20",
        )
    )
    assert learnt <= 200 and then > 0.3 and later < 0.05, (learnt, then, later)


def test_gpt_learns_the_characters_of_python(optbench: Command) -> None:
    """Better than the entropy of single characters, which is what a model without context can reach."""
    outcome = optbench("task=char_lm_small", "optimizer.lr=1e-2", "steps=150", "probes=none")
    losses = _series(_records(outcome), "test/loss")
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        experiment = build(compose("config", ["task=char_lm_small", "device=cpu", "steps=1"]))
    counts = experiment.task.train.targets.flatten().bincount().double()
    p = counts[counts > 0] / counts.sum()
    assert losses[150] < float(-(p * p.log()).sum()) < losses[0]
