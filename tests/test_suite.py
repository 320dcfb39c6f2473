"""Suites: what they may say, and that everything they ask for can be composed."""

import os
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir

from optbench.configuration.construct import build_probes
from optbench.errors import UserError
from optbench.paths import conf_folder
from optbench.probes import check_cadences
from optbench.protocol.suite import FINAL, TUNE, known_suites, read_suite

# A suite's digest moves with every change of it. Where results move, raise its version; then write
# both here.
PUBLISHED = {"smoke": (2, "64655d28ec65e77b"), "small": (2, "402cee3adfe04f8e")}


@pytest.mark.parametrize("name", known_suites())
def test_every_run_of_a_suite_can_be_composed(name: str) -> None:
    suite = read_suite(name)
    for task in suite.tasks:
        for phase in (TUNE, FINAL):
            command = suite.command("adam", task, phase, 0, ["optimizer.lr=0.01"], 0)
            with initialize_config_dir(str(conf_folder()), version_base="1.3"):
                config = compose("config", list(command))
            config.steps = config.steps or 10
            check_cadences(dict(build_probes(config)))
            assert config.board.task == task and config.optimizer.lr == 0.01


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_suite_that_has_a_board_changes_with_its_version_only(name: str) -> None:
    suite = read_suite(name)
    assert (suite.version, suite.digest[:16]) == PUBLISHED[name]


def test_small_spans_the_kinds_and_the_budgets_are_as_promised() -> None:
    small, full = read_suite("small"), read_suite("full")
    assert len(small.tasks) >= 6 and (small.points, len(small.final_seeds)) == (8, 5)
    assert {task.kind for task in small.tasks.values()} == {
        "regression",
        "vision",
        "language",
        "algorithmic",
    }
    assert (full.points, len(full.final_seeds)) == (20, 10)


def _write(folder: Path, **changes: object) -> str:
    content = yaml.safe_load((conf_folder() / "suite" / "smoke.yaml").read_text()) | changes
    path = folder / "mine.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in content.items() if value is not None})
    )
    return str(path)


TASK = yaml.safe_load((conf_folder() / "suite" / "smoke.yaml").read_text())["tasks"]["digits_mlp"]
WRONG: dict[str, dict[str, Any]] = {
    "seed 0 both selects and reports": {"tuning_seeds": [0]},
    "held_out must be one of two or more tasks, got digits": {"held_out": "digits"},
    "there is no key pionts, in ": {"pionts": 3},
    "Did you mean points": {"pionts": 3},
    "there is no key name, in ": {"name": "other"},
    "points is missing, in ": {"points": None},
    "points must be greater than or equal to 1, got 0": {"points": 0},
    "points must be less than or equal to 4096": {"points": 10**18},
    "seeds must differ from each other, got [0, 0]": {"final_seeds": [0, 0]},
    "start must be a finite number, got ": {
        "tasks": {"a": TASK, "b": TASK | {"start": float("nan")}}
    },
    "a name of letters, digits, _ and -": {"tasks": {"../a": TASK, "b": TASK}},
    "final_seeds.0 must be a valid integer, got '2020-01-01'": {
        "final_seeds": [date(2020, 1, 1), 1]
    },
    "more than 64 bits": {"version": 10**400},
    "targets must fall from easy to hard, got [0.1, 0.2]": {
        "tasks": {"a": TASK, "b": TASK | {"targets": [0.1, 0.2]}}
    },
    "select is test/loss: the test set reports": {
        "tasks": {"a": TASK, "b": TASK | {"select": "test/loss"}}
    },
    "good must be below start": {"tasks": {"a": TASK, "b": TASK | {"good": 2.0}}},
    "tasks must be an object, got 3": {"tasks": 3},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_no_protocol_can_say_takes_one_line(message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_suite(
            _write(
                tmp_path,
                **{"held_out": "a", **WRONG[message]}
                if "tasks" in WRONG[message]
                else WRONG[message],
            )
        )
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_suite_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        UserError, match=r"no suite called smal.* Did you mean small\? Known: full, small, smoke"
    ):
        read_suite("smal")


def test_the_score_is_0_at_the_start_and_1_at_the_reference() -> None:
    task = read_suite("smoke").tasks["digits_mlp"]
    assert (task.score(0.9), task.score(0.06)) == (0.0, 1.0) and task.score(0.0) > 1


@pytest.mark.parametrize(
    "name",
    [
        "a\0.yaml",
        "\x1b[31m",
        "../smoke",
        "/",
        "",
        "x" * 5000,
        "\ud800.yaml",
        "pipe.yaml",
        "loop.yaml",
    ],
)
def test_what_is_no_suite_takes_one_printable_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.yaml")
    Path("loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(UserError) as error:
        read_suite(name)
    assert str(error.value).isprintable()


def test_a_suite_may_lie_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "linked.yaml").symlink_to(_write(tmp_path))
    assert read_suite(str(tmp_path / "linked.yaml")).name == "linked"


@pytest.mark.parametrize(
    "text",
    [
        "tasks: &a [*a]",
        "a: &a [1,1,1,1,1,1,1,1]\n"
        + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [" + ",".join([f"*{chr(97 + i)}"] * 8) + "]\n"
            for i in range(12)
        ),
    ],
)
def test_aliases_are_taken_but_not_what_they_could_grow_to(text: str, tmp_path: Path) -> None:
    (tmp_path / "bomb.yaml").write_text(text)
    with pytest.raises(UserError, match="its aliases written out"):
        read_suite(str(tmp_path / "bomb.yaml"))
