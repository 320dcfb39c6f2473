"""The main job: command line → configuration → one run or a sweep; and the start of a plug-in."""

from typing import Any


def main() -> Any:
    """Run what the command line says; see `optbench.cli.command_job.main`."""
    from optbench.cli.command_job import main as run

    return run()
