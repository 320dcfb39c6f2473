"""The configuration is held against its declared shape before anything is built."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from optbench.boundary.kinds import Positive
from optbench.boundary.shape import ShapeError
from optbench.boundary.signature import check_arguments
from optbench.configuration.compose import compose_config
from optbench.configuration.keys import check
from optbench.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
GROUPS = ("task", "model", "optimizer", "schedule", "probes")


def _entries() -> Iterator[str]:
    for group in GROUPS:
        names = sorted(file.stem for file in (ROOT / "conf" / group).glob("*.yaml"))
        yield from (f"{group}={name}" for name in names if name != "custom")


def test_every_entry_that_we_ship_is_what_it_must_be() -> None:
    folder = ["task.folder=images"]  # the one key without a default
    for entry in _entries():
        check(compose_config([entry, *(folder if "image_folder" in entry else [])]))


BAD = {
    "steps=0": "steps must be a whole number, at least 1 or null, got 0",
    "steps=1.5": "steps must be a whole number",
    "steps=true": "steps must be a whole number, at least 1 or null, got true",
    "steps=99999999999999999999999": "steps must be a whole number",
    "steps=null": "say how long to train: steps=N",
    "epochs=inf": "epochs must be a finite number, above 0 or null, got inf",
    "epochs=[1]": "epochs must be a finite number",
    "batch_size=half": "batch_size must be a whole number, at least 1 or full, got half",
    "micro_batch_size=1.5": "micro_batch_size must be a whole number",
    "clip_norm={a:1}": "clip_norm must be a finite number",
    "log_every=1.5": "log_every must be a whole number",
    "seed=1e400": "seed must be a whole number, got inf",
    "seed=99999999999999999999999999": "seed must be a whole number",
    "device=null": "device must be auto, cpu, cuda, cuda:NUMBER or mps, got null",
    "device=meta": "device must be auto",
    "dtype=float16": "dtype must be float32, float64 or bf16, got float16",
    "curvature=arpack": "curvature must be lobpcg or pyhessian, got arpack",
    "checkpoint_seconds=null": "checkpoint_seconds must be a finite number, above 0, got null",
    "explosion_factor=nan": "explosion_factor must be a finite number, above 0, got nan",
    "results_dir=''": "results_dir must be the name of a folder, got ''",
    "wandb=null": "wandb must be a mapping, got null",
    "wandb.wait_seconds=-1": "wandb.wait_seconds must be a finite number, at least 0, got -1",
    "wandb.tags=5": "wandb.tags must be a list (each text), got 5",
    "board={suite:1}": "board.version is missing",
    # what YAML 1.1 calls booleans
    "overwrite=no": "overwrite must be true or false, got no",
    "picture=off": "picture must be true or false, got off",
    "overwrite=Yes": "overwrite must be true or false, got Yes",
    "optimizer=adam optimizer.amsgrad=no": "optimizer.amsgrad must be true or false, got no",
    "optimizer=shampoo optimizer.weight_decouple=OFF": "optimizer.weight_decouple must be true or false, got OFF",
    "optimizer=muon optimizer.matrices.nesterov=on": "optimizer.matrices.nesterov must be true or false, got on",
    "+optimizer.foreach=no": "optimizer.foreach must be true or false or null, got no",
    "task=cifar task.augment=1": "task.augment must be true or false, got 1",
    # keys that there are none of
    "+lr=0.5": "there is no key lr. Did you mean optimizer.lr?",
    "optimizer=sam +lr=0.5": "there is no key lr. Did you mean optimizer.base.lr?",
    "+optimizer.nesterof=true": "there is no key optimizer.nesterof. Did you mean optimizer.nesterov",
    "+task.nois=1": "there is no key task.nois.",
    "+task.seed=1": "there is no key task.seed: the run's seed is given as seed=NUMBER",
    "+model.width=3": "there is no key model.width. Did you mean model.widths",
    "+probes.sharpness.kk=2": "there is no key probes.sharpness.kk. Did you mean probes.sharpness.k",
    "+wandb.mod=online": "there is no key wandb.mod. Did you mean wandb.mode",
    # values of groups
    "optimizer.lr=inf": "optimizer.lr must be a finite number, above 0, got inf",
    "optimizer.lr=[0.1]": "optimizer.lr must be a finite number, above 0, got [0.1]",
    "optimizer=sam optimizer.base.lr=0": "optimizer.base.lr must be a finite number, above 0, got 0",
    "optimizer=sam optimizer.base=5": "optimizer.base must be a node with _target_, got 5",
    "optimizer=adam optimizer.betas=0.9": "optimizer.betas must be a list",
    "optimizer.search=5": "optimizer.search must be a mapping or null, got 5",
    "optimizer.about=5": "optimizer.about must be a mapping or null, got 5",
    "optimizer._target_=5": "optimizer._target_ must be an import path",
    "optimizer._target_=math.pi": "optimizer._target_=math.pi is a float, which cannot be called",
    "optimizer._target_=nowhere.Mine": "cannot import optimizer._target_=nowhere.Mine: ",
    "model.widths=[0]": "model.widths must be a list (each a whole number, at least 1 and at most 1048576), got [0]",
    "model.widths=[1000000000]": "model.widths must be a list",
    "model.widths=5": "model.widths must be a list",
    "model.norm=nope": "model.norm must be layer, batch or none, got nope",
    "task.imbalance=inf": "task.imbalance must be a finite number, at least 1, got inf",
    "task.label_noise=nan": "task.label_noise must be a finite number, at least 0 and at most 1, got nan",
    "task.val_size=2.5": "task.val_size must be a whole number",
    "task=sparse_parity task.test_size=0": "task.test_size must be a whole number, at least 1, got 0",
    "task=logistic task.smoothing=0.5": "task.smoothing must be a finite number, above 0 and below 0.5, got 0.5",
    "task=multi_index task.combine=product": "task.combine must be sum or staircase, got product",
    "task=multi_index task.train_size=0": "task.train_size must be a whole number, at least 1, got 0",
    "task=noisy_quadratic task.noise=-1": "task.noise must be a finite number, at least 0, got -1",
    "task=noisy_quadratic task.copies=0": "task.copies must be a whole number, at least 1",
    "task=modular_addition task.p=1": "task.p must be a whole number, at least 2",
    "probes.sharpness.examples=-4": "probes.sharpness.examples must be a whole number, at least 1 or null, got -4",
    "probes.sharpness.k=99999999": "probes.sharpness.k must be a whole number, at least 1 and at most 500",
    "probes.generalization.train_examples=0": "probes.generalization.train_examples must be a whole number",
    "probes.layers.every=0": "probes.layers.every must be a whole number, at least 1 or never, got 0",
    "schedule=cosine schedule.T_max=0": "schedule.T_max must be a whole number, at least 1, got 0",
    "schedule=step schedule.step_size=x": "schedule.step_size must be a whole number, at least 1, got x",
    "optimizer=adam optimizer.betas=[0.9,no]": "optimizer.betas must be a list of a finite number and a finite number",
    "optimizer=adam optimizer.betas=[0.9]": "optimizer.betas must be a list of a finite number and a finite number",
    "optimizer=lion optimizer.betas=[0.9,off]": "optimizer.betas must be",
    "probes=none +probes.x=5": "probes.x must be a node with _target_ or null, got 5",
}


def test_what_cannot_be_is_told_with_key_value_and_what_is_expected() -> None:
    wrong = {}
    for words, message in BAD.items():
        try:
            check(compose_config([word.replace("''", "") for word in words.split()]))
        except UserError as error:
            said = str(error)
        else:
            said = "accepted"
        if message not in said:
            wrong[words] = said
    assert not wrong


def test_what_is_right_is_left_as_it_is() -> None:
    config = compose_config(
        ["epochs=0.5", "schedule=cosine", "+optimizer.maximize=true", "optimizer.lr=1"]
    )
    before = OmegaConf.to_yaml(config)
    check(config)
    assert OmegaConf.to_yaml(config) == before


def test_a_folder_whose_name_is_a_number_is_a_folder() -> None:
    config = compose_config(["results_dir=2026"])
    check(config)
    assert config.results_dir == "2026"


def _plug_in(  # type: ignore[no-untyped-def]
    params: Any, rate: Positive, *, quick: bool = False, share=0.5, mode="a", other=None
) -> None:
    """Somebody's own: some of it annotated, some with defaults only."""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rate": 0.0}, "optimizer.rate must be a finite number, above 0, got 0.0"),
        ({"rat": 1.0}, "there is no key optimizer.rat. Did you mean optimizer.rate"),
        ({"params": 1.0}, "there is no key optimizer.params"),
        ({"quick": "no"}, "optimizer.quick must be true or false, got no"),
        ({"share": "much"}, "optimizer.share must be a finite number, got much"),
        ({"share": float("nan")}, "optimizer.share must be a finite number, got nan"),
        ({"mode": 5}, "optimizer.mode must be text, got 5"),
        (
            {"other": "off"},
            "optimizer.other must be true or false where it is a yes or no, got off",
        ),
        ({"other": [1.0, float("inf")]}, "optimizer.other must be finite, got [1.0, inf]"),
        ({"rate": "\x1b[31m1"}, "optimizer.rate must be a finite number, above 0, got ?[31m1"),
    ],
)
def test_a_plug_in_is_held_to_its_own_signature(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError) as refusal:
        check_arguments(_plug_in, given, "optimizer.", positional=1)
    assert message in str(refusal.value)


def test_the_declared_keys_are_those_of_the_yaml() -> None:
    from optbench.configuration.keys import Configuration, Wandb

    content = yaml.safe_load((ROOT / "conf/config.yaml").read_text())
    assert set(Configuration.__annotations__) == {*content, *GROUPS} - {"defaults", "hydra"}
    assert set(Wandb.__annotations__) == set(content["wandb"])
