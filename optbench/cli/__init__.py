"""The main job: command line → configuration → one run or a sweep."""

from optbench.cli.command_job import main

__all__ = ["main"]
