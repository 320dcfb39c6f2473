"""Search spaces: axes of numbers and choices, every optimizer's own, and values given as ordinary overrides."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from optbench.configuration.build import build
from optbench.configuration.naming import run_name
from optbench.errors import UserError
from optbench.search import Choices, Range, read
from tests.conftest import Command

ROOT = Path(__file__).resolve().parent.parent
OPTIMIZERS = sorted(
    file.stem for file in (ROOT / "conf/optimizer").glob("*.yaml") if file.stem != "custom"
)


@cache  # read by three tests each, and changed by none
def _config(optimizer: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", ["task=quadratic", f"optimizer={optimizer}", *overrides])


@pytest.mark.parametrize(
    ("scale", "low", "high", "middle"),
    [("linear", -1.0, 3.0, 1.0), ("log", 1e-4, 1e-2, 1e-3), ("one_minus_log", 0.9, 0.999, 0.99)],
)
def test_an_axis_is_uniform_on_its_scale(
    scale: str, low: float, high: float, middle: float
) -> None:
    axis = read({"x": {"low": low, "high": high, "scale": scale}})["x"]
    # exp and log: a few roundings, 1e-15 each
    assert [axis.at(u) for u in (0, 0.5, 1)] == pytest.approx([low, middle, high], rel=1e-13)
    values = [axis.at(i / 100) for i in range(101)]
    assert values == sorted(values) and low <= values[0] and values[-1] <= high
    with pytest.raises(ValueError, match=r"got 1\.5"):
        axis.at(1.5)


def test_choices_share_the_axis_equally() -> None:
    axis = read({"x": {"choices": [True, "a", 3]}})["x"]
    assert [axis.at(u) for u in (0, 0.33, 0.34, 0.66, 0.67, 1)] == [True, True, "a", "a", 3, 3]


def test_numbers_that_yaml_takes_for_words_are_numbers() -> None:
    assert read(yaml.safe_load("lr: {low: 1e-4, high: 1, scale: log}"))["lr"] == Range(
        1e-4, 1.0, "log"
    )
    assert read(None) == {}


BAD: dict[str, Any] = {
    r"search.x must be \{low, high, scale\} or \{choices\}, got 3": {"x": 3},
    r"search.x.high is missing": {"x": {"low": 1, "scale": "log"}},
    r"search must be a mapping, a line an axis, got \[3\]": [3],
    r"search.x.choices must be .* at least 1 item": {"x": {"choices": []}},
    r"search.x.choices.0.* must be ": {"x": {"choices": [[1]]}},
    r"there is no key search.x.lo. Did you mean low": {
        "x": {"low": 1, "high": 2, "scale": "log", "lo": 1}
    },
    r"search.x.scale must be 'linear', 'log' or 'one_minus_log', got 'logg'": {
        "x": {"low": 1, "high": 2, "scale": "logg"}
    },
    r"search.x.low must be a valid number, got 'a'": {"x": {"low": "a", "high": 2, "scale": "log"}},
    r"search.x.low must be a valid number, got True": {
        "x": {"low": True, "high": 2, "scale": "log"}
    },
    r"search.x.high must be a finite number, got inf": {
        "x": {"low": 1, "high": float("inf"), "scale": "log"}
    },
    r"search.x.high must be a finite number, got inf$": {
        "x": {"low": 1, "high": "inf", "scale": "log"}
    },
    r"low < high, above 0, got low=0 and high=2": {"x": {"low": 0, "high": 2, "scale": "log"}},
    r"low < high, below 1, got low=0 and high=1": {
        "x": {"low": 0, "high": 1, "scale": "one_minus_log"}
    },
    r"low < high, got low=2 and high=1": {"x": {"low": 2, "high": 1, "scale": "linear"}},
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_wrong_takes_one_clear_line(message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(BAD[message])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_yaml_says_what_it_is_and_where_to_search(optimizer: str) -> None:
    node = _config(optimizer).optimizer
    assert node.about.does.endswith(".") and len(node.about.does) < 140
    assert re.fullmatch(r"arXiv:\d{4}\.\d{4,5}|https://\S+", node.about.paper)
    space = read(node.search)
    assert space
    for key, axis in space.items():
        default = OmegaConf.select(node, key)
        assert default is not None, f"{key} has no default that it could replace"
        if isinstance(axis, Range):
            # 0 switches a setting off, which no logarithm reaches
            assert axis.low <= default <= axis.high or default == 0, (
                f"{key}={default} is outside its range"
            )
        elif isinstance(axis, Choices):
            assert default in axis.choices


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("u", [0.0, 1.0])
def test_every_corner_of_every_space_is_an_override_that_builds(optimizer: str, u: float) -> None:
    space = read(_config(optimizer).optimizer.search)
    corner = {key: axis.at(u) for key, axis in space.items()}
    config = _config(optimizer, *(f"optimizer.{key}={value}" for key, value in corner.items()))
    for key, value in corner.items():
        assert OmegaConf.select(config.optimizer, key) == value
    build(config)


def test_about_and_search_are_neither_settings_nor_part_of_the_name(
    optbench: Command, tmp_path: Path
) -> None:
    conf = tmp_path / "my_conf" / "optimizer"
    conf.mkdir(parents=True)
    (conf / "mine.yaml").write_text("_target_: torch.optim.SGD\n_partial_: true\nlr: 0.1\n")
    run = ("--config-dir", "my_conf", "optimizer=mine", "task=quadratic", "steps=5")
    name = optbench(*run).folder.name
    with (conf / "mine.yaml").open("a") as file:
        file.write("about: {does: Nothing new.}\nsearch:\n  lr: {low: 0.1, high: 1, scale: log}\n")
    again = optbench(*run)
    assert again.code == 0 and again.folder.name == name and "finished before" in again.out
    with (conf / "mine.yaml").open("a") as file:
        file.write("  momentum: {low: 0, high: 1, scale: lin}\n")
    assert "search.momentum.scale must be 'linear', " in optbench(*run, "overwrite=true").err


def test_a_tuned_element_of_a_list_is_an_ordinary_override(optbench: Command) -> None:
    run = ("task=quadratic", "optimizer=adam", "optimizer.betas.0=0.85", "steps=5")
    folder = optbench(*run).folder
    assert yaml.safe_load((folder / "config.yaml").read_text())["optimizer"]["betas"] == [
        0.85,
        0.999,
    ]
    assert "finished before" in optbench(*run).out
    assert json.loads((folder / "summary.json").read_text())["status"] == "done"


def test_names_do_not_depend_on_what_is_about_the_optimizer() -> None:
    choices = {"task": "quadratic", "model": "linear", "optimizer": "sgd"}
    config = _config("sgd", "device=cpu")
    bare = config.copy()
    OmegaConf.set_struct(bare, False)
    del bare.optimizer["about"], bare.optimizer["search"]
    assert run_name(config, choices) == run_name(bare, choices)
