"""`python -m optbench`, or the script `optbench`: the main job, or the command that is named."""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from optbench import __version__, startup

COMMANDS = (
    "tune",
    "leaderboard",
    "study",
    "report",
    "measure",
    "landscape",
    "lr_range",
    "check",
    "new",
    "metrics",
)


def main() -> None:
    """Begin before the slow imports; `optbench tune` is `python -m optbench.tune`."""
    startup.begin()
    command = next(iter(sys.argv[1:]), "")
    if command in COMMANDS:
        del sys.argv[1]
        runpy.run_module(f"optbench.{command}", run_name="__main__", alter_sys=True)
        return
    if "--version" in sys.argv[1:]:  # which needs none of the slow imports
        print(f"optbench {__version__}")
        return
    from optbench.launch.multirun import main as run

    run(_report)


def _report(runs: Sequence[Path], folder: Path) -> str:
    from optbench.leaderboard.run_report import report_sweep

    return report_sweep(runs, folder)


if __name__ == "__main__":
    main()
