"""`--help` describes every key of every command."""

from importlib import import_module

import pytest

from optbench.boundary.command_line import Command
from optbench.cli.help import described_keys, key_page
from optbench.configuration.keys import Board, Configuration, StartFrom, Stop, Wandb

COMMANDS = [
    "check.__main__",
    "check.scaffold",
    "lab.landscape_command",
    "lab.lr_range_command",
    "lab.measure_command",
    "leaderboard.__main__",
    "leaderboard.run_report",
    "protocol.tuner",
    "studies.command",
]
GROUPS = {"model", "optimizer", "schedule", "probes", "task"}


def test_every_key_of_the_main_job_is_described() -> None:
    described, page = described_keys(), key_page()
    keys = set(Configuration.__annotations__) - GROUPS
    keys |= {f"stop.{key}" for key in Stop.__annotations__}
    keys |= {f"start_from.{key}" for key in StartFrom.__annotations__}
    keys |= {f"wandb.{key}" for key in Wandb.__annotations__}
    assert Board.__annotations__  # which nobody gives by hand: tune does
    assert keys <= set(described)
    assert [key for key in sorted(keys) if len(described[key][1]) < 5] == []
    assert all(f"  {key}" in page for key in keys)


@pytest.mark.parametrize("module", COMMANDS)
def test_every_key_of_a_command_is_described(module: str) -> None:
    command = import_module(f"optbench.{module}").COMMAND
    assert isinstance(command, Command)
    page = command.help()
    for key in command._keys():
        assert len(key.about.about) >= 5, key.name
        assert key.word in page and key.about.about.split()[0] in page
