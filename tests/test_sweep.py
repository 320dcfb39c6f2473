"""A failing run of a sweep is told, and is in the exit code, wherever it ran."""

import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from omegaconf import open_dict

from tests.conftest import Command

TINY = ("task=quadratic", "steps=2", "probes=none", "picture=false")


class ElsewhereLauncher(Launcher):
    """Does as joblib's and submitit's launchers: each job in a process that sends its return."""

    def __init__(self) -> None:
        self.about: dict[str, Any] = {}

    def setup(self, **about: Any) -> None:
        self.about = about

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        task = pickle.dumps(self.about["task_function"])
        context = multiprocessing.get_context("fork")
        returns: list[JobReturn] = []
        for overrides in job_overrides:
            here, there = context.Pipe(duplex=False)
            process = context.Process(
                target=self._work, args=(task, list(overrides), initial_job_idx, there)
            )
            process.start()
            returns.append(pickle.loads(here.recv_bytes()))
            process.join()
        return returns

    def _work(self, task: bytes, overrides: list[str], number: int, there: Any) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1), os.dup2(nowhere, 2)
        setup_globals()
        config = self.about["hydra_context"].config_loader.load_sweep_config(
            self.about["config"], overrides
        )
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        ended = run_job(
            hydra_context=self.about["hydra_context"],
            task_function=pickle.loads(task),
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        there.send_bytes(pickle.dumps(ended))


ElsewhereLauncher.__module__ = "hydra_plugins.elsewhere"  # Hydra takes plug-ins from there alone


@pytest.fixture(params=["basic", "elsewhere"])
def launcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "elsewhere" and not hasattr(os, "fork"):
        pytest.skip("needs fork")
    package, module = ModuleType("hydra_plugins"), ModuleType("hydra_plugins.elsewhere")
    vars(package).update(elsewhere=module, __path__=[])
    vars(module).update(ElsewhereLauncher=ElsewhereLauncher)
    for found in (package, module):
        monkeypatch.setitem(sys.modules, found.__name__, found)
    node = {"_target_": "hydra_plugins.elsewhere.ElsewhereLauncher"}
    ConfigStore.instance().store(group="hydra/launcher", name="elsewhere", node=node)
    Plugins.instance().register(ElsewhereLauncher)
    return f"hydra/launcher={request.param}"


def test_every_failing_run_is_told_once_and_the_others_are_made(
    optbench: Command, launcher: str, tmp_path: Path
) -> None:
    outcome = optbench("--multirun", launcher, *TINY, "optimizer.lr=-1,0.1,-2")
    assert outcome.code == 2
    lines = [line for line in outcome.err.splitlines() if line.startswith("optbench: failed: ")]
    assert [line.partition("optimizer.lr=")[2][:2] for line in lines] == ["-1", "-2"]
    assert lines[0].endswith(": optimizer.lr must be a finite number, above 0, got -1")
    assert "Traceback" not in outcome.err and outcome.err.count("got -1") == 1
    assert len(list((tmp_path / "results/runs").iterdir())) == 1


def test_a_failure_in_one_batch_of_a_sweep_leaves_the_next_to_be_made(
    optbench: Command, launcher: str, tmp_path: Path
) -> None:
    batches = "hydra.sweeper.max_batch_size=1"
    assert optbench("--multirun", launcher, batches, *TINY, "optimizer.lr=-1,0.1").code == 2
    assert len(list((tmp_path / "results/runs").iterdir())) == 1


def test_a_divergence_is_no_failure(optbench: Command, launcher: str) -> None:
    outcome = optbench("--multirun", launcher, *TINY, "steps=40", "optimizer.lr=1e9,0.1")
    assert outcome.code == 0 and "failed" not in outcome.err


EXITS: dict[str, Callable[[str], str]] = {
    "at its import": lambda call: f"import sys\n{call}\n",
    "in a step": lambda call: (
        "import sys, torch\nclass Mine(torch.optim.SGD):\n    def step(self, closure=None):\n     "
        f"   {call}\n"
    ),
}


@pytest.mark.parametrize("call", ["sys.exit(0)", "raise SystemExit"])
@pytest.mark.parametrize("when", EXITS)
@pytest.mark.parametrize("mode", [(), ("--multirun",)])
def test_a_module_that_ends_the_process_is_an_error(
    optbench: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
    call: str,
    mode: tuple[str, ...],
) -> None:
    module = f"ending_{abs(hash((when, call, mode)))}"
    (tmp_path / f"{module}.py").write_text(EXITS[when](call))
    monkeypatch.syspath_prepend(str(tmp_path))
    outcome = optbench(*mode, *TINY, "optimizer=custom", f"optimizer._target_={module}.Mine")
    assert outcome.code == 2
    [line] = [line for line in outcome.err.splitlines() if line.startswith("optbench: ")]
    assert f"{module}.py, line" in line and f"calls for the end of the process ({call})" in line


def test_the_line_that_ends_the_process_is_named_also_after_wandb_has_replaced_the_exit(
    optbench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced(code: object = 0) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(sys, "exit", replaced)  # as W&B does in a process that has had a run of its
    (tmp_path / "ending_replaced.py").write_text(EXITS["at its import"]("sys.exit(0)"))
    monkeypatch.syspath_prepend(str(tmp_path))
    outcome = optbench(*TINY, "optimizer=custom", "optimizer._target_=ending_replaced.Mine")
    assert outcome.code == 2 and "ending_replaced.py, line 2, calls for the end" in outcome.err
