"""Plug-ins as their authors meet them: from outside the checkout, in a process of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from optbench.check.scaffold import KINDS, RUN, write
from optbench.errors import UserError
from tests.processes import command

TINY = ("steps=4", "wandb.mode=disabled")
OPTIMIZER = """
import torch

class Plain(torch.optim.SGD):
    def __init__(self, params, lr=0.01, scale=1.0):
        super().__init__(params, lr=lr * scale)
"""
TASK = """
import torch
from optbench.task import Split, Task, half_mse

def line(seed, size=10):
    x = torch.linspace(-1, 1, size)[:, None]
    return Task(Split(x, 2 * x), None, None, 1, half_mse)
"""
PROBE = """
from dataclasses import dataclass

@dataclass
class Count:
    every: int = 1

    def __call__(self, state):
        return {"count/parameters": sum(p.numel() for p in state.model.parameters())}
"""


def _last(folder: Path, done: "subprocess.CompletedProcess[str]") -> dict[str, float]:
    assert done.returncode == 0, done.stderr
    last: dict[str, float] = json.loads(
        (folder / done.stdout.splitlines()[-1] / "summary.json").read_text()
    )["last"]
    return last


def test_an_optimizer_from_a_file_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "my_file.py").write_text(OPTIMIZER)
    done = command(
        tmp_path,
        "task=quadratic",
        "optimizer=custom",
        "optimizer._target_=my_file.Plain",
        "+optimizer.scale=0.5",
        *TINY,
    )
    assert _last(tmp_path, done)["edge/threshold"] == pytest.approx(2 / 0.005)
    script = Path(sys.executable).with_name("optbench")
    # the console script, which unlike python -m has not the folder on its path by itself
    if script.exists():
        again = subprocess.run(
            [
                script,
                "task=quadratic",
                "optimizer=custom",
                "optimizer._target_=my_file.Plain",
                *TINY,
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert again.returncode == 0, again.stderr


def test_yamls_of_ones_own(tmp_path: Path) -> None:
    for name, code in (("my_optimizer", OPTIMIZER), ("my_task", TASK), ("my_probe", PROBE)):
        (tmp_path / f"{name}.py").write_text(code)
    for group, name, text in (
        (
            "optimizer",
            "mine",
            "_target_: my_optimizer.Plain\n_partial_: true\nlr: 0.1\nscale: 0.25\n",
        ),
        (
            "task",
            "line",
            "# @package _global_\ntask:\n  _target_: my_task.line\n  size: 12\nbatch_size: full\n",
        ),
        (
            "probes",
            "counting",
            "defaults:\n  - default\n\ncount:\n  _target_: my_probe.Count\n  every: 2\n",
        ),
    ):
        (tmp_path / "my_conf" / group).mkdir(parents=True)
        (tmp_path / "my_conf" / group / f"{name}.yaml").write_text(text)
    done = command(
        tmp_path, "--config-dir", "my_conf", "optimizer=mine", "task=line", "probes=counting", *TINY
    )
    last = _last(tmp_path, done)
    assert (
        last["edge/threshold"] == pytest.approx(80)
        and last["count/parameters"] == 64 * 2 + 64 * 65 + 65
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plug-in package of a user, built and installed by pip into a folder; no network."""
    source, target = (
        tmp_path_factory.mktemp("source"),
        tmp_path_factory.mktemp("a target with spaces"),
    )
    package = source / "their_plugin"
    for group in ("optimizer", "task", "probes"):
        (package / "conf" / group).mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "code.py").write_text(OPTIMIZER + TASK + PROBE)
    (package / "conf/optimizer/theirs.yaml").write_text(
        "_target_: their_plugin.code.Plain\n_partial_: true\nlr: 0.05\n"
    )
    (package / "conf/task/their_line.yaml").write_text(
        "# @package _global_\ntask:\n  _target_: their_plugin.code.line\n  size: 8\nbatch_size: "
        "full\n"
    )
    (package / "conf/probes/their_probes.yaml").write_text(
        "defaults:\n  - default\n\ncount:\n  _target_: their_plugin.code.Count\n  every: 1\n"
    )
    (package / "conf/optimizer/adam.yaml").write_text(
        "_target_: their_plugin.code.Plain\n_partial_: true\nlr: 0.05\n"
    )
    (source / "pyproject.toml").write_text(
        """[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "their-plugin"
version = "1"

[project.entry-points."optbench.optimizers"]
theirs = "their_plugin"
adam = "their_plugin"
absent = "their_plugin"

[project.entry-points."optbench.tasks"]
their_line = "their_plugin"

[project.entry-points."optbench.probes"]
their_probes = "their_plugin"

[tool.setuptools]
packages = ["their_plugin"]

[tool.setuptools.package-data]
their_plugin = ["conf/**/*.yaml"]
"""
    )
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "--target",
            target,
            source,
        ],
        check=True,
    )
    return target


def test_a_package_brings_its_yamls_along(installed: Path, tmp_path: Path) -> None:
    done = command(
        tmp_path,
        "optimizer=theirs",
        "task=their_line",
        "probes=their_probes",
        *TINY,
        path=installed,
    )
    last = _last(tmp_path, done)
    assert (
        last["edge/threshold"] == pytest.approx(40)
        and last["count/parameters"] == 64 * 2 + 64 * 65 + 65
    )
    shown = command(tmp_path, "--help", path=installed).stdout
    assert "theirs" in shown and "their_line" in shown and "their_probes" in shown


def test_what_is_wrong_with_a_package_is_said_and_stops_nobody(
    installed: Path, tmp_path: Path
) -> None:
    done = command(tmp_path, "optimizer=adam", "task=quadratic", *TINY, "steps=25", path=installed)
    assert (
        "plug-in their-plugin says it brings optimizer=absent, but their_plugin has no conf/optimizer/absent.yaml"
        in done.stderr
    )
    assert (
        "plug-in their-plugin brings optimizer=adam, a name that optbench has: its own is used"
        in done.stderr
    )
    assert "edge/preconditioned_sharpness" in _last(tmp_path, done)  # ours, not SGD under its name


@pytest.mark.parametrize("kind", KINDS)
def test_what_new_writes_passes_its_test_and_runs(kind: str, tmp_path: Path) -> None:
    done = command(tmp_path, kind, "my_thing", module="optbench.new")
    assert done.returncode == 0 and RUN[kind].format(name="my_thing") in done.stdout
    assert command(tmp_path, "-q", "test_my_thing.py", module="pytest").returncode == 0
    words = done.stdout.splitlines()[-1].split("python -m optbench ")[1].split()
    last = _last(tmp_path, command(tmp_path, *words, *TINY))
    assert "sharpness/lambda_max" in last
    assert ("my_thing/weight_norm" in last) == (kind == "probe")
    again = command(tmp_path, kind, "my_thing", module="optbench.new")
    assert again.returncode == 2 and "my_thing.py is there already" in again.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("2fast", "beginning with a letter, got 2fast"),
        ("MyThing", "small letters, digits and _"),
        ("adam", "optbench has optimizer=adam already"),
        ("json", "a Python module called json already"),
    ],
)
def test_new_refuses_names_that_cannot_be(name: str, message: str, tmp_path: Path) -> None:

    with pytest.raises(UserError, match=message):
        write("optimizer", name, tmp_path)
    assert not list(tmp_path.iterdir())
