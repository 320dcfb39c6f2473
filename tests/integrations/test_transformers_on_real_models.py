"""The Transformers callback on padded text and in mixed precision, against the model's own loss over all examples."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.references import lambda_by_lanczos

transformers = pytest.importorskip("transformers", reason="needs optbench[transformers]")
pytest.importorskip("accelerate", reason="needs optbench[transformers]")
LONGEST = 12
# Relative error of a solved λ₁ in single precision; the probe asks for a bound of .5 %, residuals
# enter squared.
CLOSE = 1e-4
# relative error of a mean of a thousand losses in single precision, summed in another order
SUMS = 2e-6
# Logits of .1 in bfloat16 are wrong by 2e-4 each; a mean of a thousand of the losses, of about 3,
# by some 1e-5.
HALF = 1e-4


def _padded(seed: int, N: int, order: str = "sorted") -> list[dict[str, Tensor]]:
    """Sequences of lengths 2, …, 12, the rest padding that no label counts."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.arange(N) if order == "sorted" else torch.randperm(N, generator=generator)
    examples = []
    for i in places.tolist():
        tokens = torch.randint(1, 20, (LONGEST,), generator=generator)
        real = torch.arange(LONGEST) < 2 + (i * (LONGEST - 1)) // N
        examples.append(
            {
                "input_ids": tokens * real,
                "labels": torch.where(real, tokens, -100),
                "attention_mask": real.long(),
            }
        )
    return examples


def _together(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([x[key] for x in examples]) for key in examples[0]}


def _trainer(
    folder: Path,
    N: int,
    order: str = "sorted",
    half: bool = False,
    wide: int = 16,
    **arguments: Any,
) -> Any:
    transformers.set_seed(0)
    config = transformers.GPT2Config(
        vocab_size=20,
        n_positions=LONGEST,
        n_embd=wide,
        n_layer=1,
        n_head=2,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    settings = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }
    model = transformers.GPT2LMHeadModel(config)
    return transformers.Trainer(
        model.bfloat16() if half else model,
        transformers.TrainingArguments(**settings | arguments),
        train_dataset=_padded(0, N, order),
        eval_dataset=_padded(1, N, order),
        data_collator=_together,
    )


def _measured(
    trainer: Any, N: int, **options: Any
) -> tuple[list[dict[str, float]], list[Any], Any]:
    """What was logged at each step, the model as it was then, and the callback's watch."""
    from optbench.integrations.transformers import WatchCallback

    models: list[Any] = []

    class Keep(transformers.TrainerCallback):  # type: ignore[name-defined]
        def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
            models.append(copy.deepcopy(model))

    callback = WatchCallback(trainer, every=1, examples=N, **options)
    trainer.add_callback(Keep())
    trainer.add_callback(callback)
    trainer.train()
    return (
        [row for row in trainer.state.log_history if "train/loss" in row],
        models,
        callback._watch,
    )


def _in_double(model: Any) -> Any:
    """A copy in double precision, without Accelerate's autocast around its forward."""
    double = copy.deepcopy(model).double().eval()
    double.forward = type(double).forward.__get__(double)
    double.set_attn_implementation("eager")  # which has a double backward
    return double


def _check(row: dict[str, float], model: Any, trainer: Any, rounding: float) -> None:
    """The numbers are those of the model's own loss of all examples together, in double precision."""
    double, found = _in_double(model), row["sharpness/lambda_max"]
    losses = [
        double(**_together(data)).loss for data in (trainer.train_dataset, trainer.eval_dataset)
    ]
    value, residual = lambda_by_lanczos(losses[0], [*double.parameters()])
    assert (
        residual < 1e-6 * value
        and abs(found - value) <= row["sharpness/lambda_max_bound"] + residual
    )
    assert found == pytest.approx(value, rel=CLOSE)
    train, test = (float(x.detach()) for x in losses)
    assert row["train/loss"] == pytest.approx(train, rel=rounding)
    assert row["test/loss"] == pytest.approx(test, rel=rounding)
    assert row["gap/loss"] == pytest.approx(test - train, abs=2 * rounding * train)
    # SGD: 2/η, η = .01 at the first update
    assert row["edge/distance"] == pytest.approx(found * 1e-2 / 2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("order", "half"), [("sorted", False), ("mixed", False), ("mixed", True)])
def test_padded_text_is_measured_as_the_model_measures_it(
    tmp_path: Path, order: str, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 examples are evaluated in two chunks, and the graph of 15 MB is differentiated in parts."""
    monkeypatch.setattr("optbench.curvature.product_strategy.GRAIN", 2 << 20)
    trainer = _trainer(tmp_path, 300, order, bf16=half, max_steps=1, lr_scheduler_type="constant")
    (row,), (model,), measure = _measured(trainer, 300)
    _check(row, model, trainer, HALF if half else SUMS)
    weight, plan = measure.task.weight, measure._shared.hessian(_state(measure), None)._plan
    index = torch.arange(300)
    labels = torch.stack([x["labels"] for x in trainer.train_dataset])
    # tokens that are predicted
    assert float(weight(index, index)) == plan.total == int((labels[:, 1:] != -100).sum())
    assert plan.chunks > 1
    assert measure.notes["precision"] == "float32"


def _state(measure: Any) -> Any:
    from optbench.probes import State

    return State(1, 1, measure.task, measure.model, measure.optimizer, False, 1, 0)


@pytest.mark.filterwarnings("ignore")
def test_weights_in_half_precision_are_measured_in_single_and_training_goes_on(
    tmp_path: Path,
) -> None:
    plain = _trainer(tmp_path / "plain", 24, half=True, wide=8)
    plain.train()
    said: list[str] = []
    watched = _trainer(tmp_path / "watched", 24, half=True, wide=8)
    rows, models, measure = _measured(watched, 24, say=said.append)
    assert len(rows) == 2 and measure.notes["precision"] == "float32"
    _check(
        rows[0] | {"edge/distance": rows[0]["sharpness/lambda_max"] / 200}, models[0], watched, HALF
    )
    lines = [
        line
        for line in said
        if line == "curvature: weights are torch.bfloat16, measured in torch.float32"
    ]
    assert len(lines) == 1
    for one, other in zip(
        plain.model.state_dict().values(), watched.model.state_dict().values(), strict=True
    ):
        assert one.dtype == torch.bfloat16 and torch.equal(one, other)


@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_is_not_the_models_own_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    trainer = _trainer(
        tmp_path, 24, wide=8, label_smoothing_factor=0.1, max_steps=1, lr_scheduler_type="constant"
    )
    (row,), (model,), _ = _measured(trainer, 24, say=said.append)
    _check(row, model, trainer, SUMS)
    assert (
        "the loss that is measured is the model's own: what label_smoothing_factor makes of it is left out"
        in said
    )


def _masking(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    batch = _together(examples)
    batch["input_ids"] *= torch.rand(batch["input_ids"].shape) > 0.2
    return batch


@pytest.mark.filterwarnings("ignore")
def test_a_collator_that_draws_random_numbers_and_several_evaluation_sets(tmp_path: Path) -> None:
    def trainer(name: str) -> Any:
        made = _trainer(tmp_path / name, 24, wide=8)
        made.data_collator = _masking
        made.eval_dataset = {"one": _padded(1, 8), "other": _padded(2, 8)}
        return made

    said: list[str] = []
    plain = trainer("plain")
    plain.train()
    watched = trainer("watched")  # which seeds the generators anew
    rows, _, _ = _measured(watched, 24, say=said.append)
    for one, other in zip(
        plain.model.state_dict().values(), watched.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    assert len(rows) == 2 and "test/loss" not in rows[0]
    assert said.count("gap/loss is absent: eval_dataset holds several sets") == 1


@pytest.mark.parametrize("examples", [0, -4, True, None, "x"])
def test_examples_that_cannot_be(examples: Any) -> None:
    from optbench.integrations.transformers import WatchCallback

    with pytest.raises(ValueError, match=f"examples must be a positive number, got {examples!r}"):
        WatchCallback(None, examples=examples)
