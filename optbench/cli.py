"""`python -m optbench`: command line → configuration → run."""

import os
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from optbench.arguments import VERSION
from optbench.compose import find_plugins
from optbench.config import run_name
from optbench.configuration import check
from optbench.errors import UserError
from optbench.job import run_job
from optbench.location import conf_folder
from optbench.messages import explain
from optbench.reuse import PresentData


def main() -> None:
    """Run what the command line says; exit code 0 is finished (a divergence too), 1 and 2 an error, 130 Ctrl-C."""
    if "--version" in sys.argv[1:]:  # Hydra's own else
        print(VERSION)
        return
    wants_tracebacks = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    if str(Path.cwd()) not in sys.path:  # `optbench` the script, unlike `python -m optbench`, would not find my_file.py
        sys.path.insert(0, str(Path.cwd()))
    for problem in find_plugins():
        print(f"optbench: {problem}", file=sys.stderr)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints and exits by itself; we say it in one line
    failures: list[int] = []
    present = PresentData()

    def job(config: DictConfig) -> None:
        try:
            _job(config, present)
        except Exception as error:
            failures.append(_report(error, wants_tracebacks))
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                sys.exit(failures[-1])

    try:
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(job)()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        sys.exit(_report(error, wants_tracebacks))
    sys.exit(max(failures, default=0))


def _job(config: DictConfig, present: PresentData) -> None:
    """Run one point of the configuration space; Ctrl-C during it ends a sweep too."""
    hydra_config = HydraConfig.get()
    choices = {key: value for key, value in hydra_config.runtime.choices.items() if not key.startswith("hydra/")}
    given = {override.lstrip("+").split("=")[0] for override in hydra_config.overrides.task}
    if "epochs" in given:
        if "steps" in given:
            raise UserError("steps and epochs both say how long to train: give one of them")
        config.steps = None
    check(config)
    if choices["optimizer"] == "custom" or "optimizer._target_" in given:
        choices["optimizer"] = str(config.optimizer._target_).rsplit(".", 1)[-1]
    if hydra_config.mode == RunMode.MULTIRUN and config.wandb.group is None:
        config.wandb.group = "sweep-" + Path(hydra_config.sweep.dir).name
    name = run_name(config, choices)
    status = run_job(config, name, choices, present)
    if status == "interrupted":
        raise KeyboardInterrupt


def _report(error: BaseException, wants_traceback: bool) -> int:
    """Print an error, in one line where it is one that the user can mend, and return the exit code."""
    message, code = explain(error)
    if message is None or wants_traceback:
        traceback.print_exception(error)
    if message is not None:
        print(f"optbench: {message}", file=sys.stderr)
    return code
