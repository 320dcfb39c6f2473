"""`--help` describes every key of every command."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from optbench.boundary.command_line import WIDTH, Command
from optbench.boundary.files import read_yaml
from optbench.cli.help import GROUPS, LAUNCHER, Described, core_keys, group_keys, help_page
from optbench.configuration.compose import compose_config, config_folders
from optbench.configuration.keys import Board, Configuration, StartFrom, Stop, Wandb
from optbench.errors import UserError
from optbench.paths import conf_folder
from tests.conftest import Command as Optbench

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
SHORTEST = 5  # characters of a description
ENTRIES = [(group, file.stem) for group in GROUPS for file in (conf_folder() / group).glob("*")]


def _composed(*words: str) -> dict[str, Any]:
    content = OmegaConf.to_container(compose_config(words), resolve=False)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _described(key: Described) -> bool:
    return len(key.about) >= SHORTEST and "See " not in key.about[:4]


def test_every_key_of_the_main_job_is_described() -> None:
    described = {key.key: key for key in core_keys(_composed())}
    keys = set(Configuration.__annotations__) - set(GROUPS)
    keys |= {f"stop.{key}" for key in Stop.__annotations__}
    keys |= {f"start_from.{key}" for key in StartFrom.__annotations__}
    keys |= {f"wandb.{key}" for key in Wandb.__annotations__}
    assert Board.__annotations__  # which nobody gives by hand: tune does
    assert keys == set(described)
    assert [key for key in described.values() if not _described(key)] == []


@pytest.mark.parametrize(("group", "entry"), sorted(ENTRIES))
def test_every_key_of_every_entry_of_a_group_is_described(group: str, entry: str) -> None:
    content = _composed(f"{group}={entry}")[group]
    keys = group_keys(group, content, config_folders(), entry)
    assert [key.key for key in keys if not _described(key)] == []
    said = {key.key for key in keys}
    assert {f"{group}.{name}" for name in _plain_keys(content)} <= said


def _plain_keys(node: Any) -> set[str]:
    """Dotted names of all that a node holds, but for what is Hydra's or about it."""
    found = set()
    for name, value in (node or {}).items():
        if name in ("_target_", "_partial_", "about", "search"):
            continue
        if isinstance(value, dict) and "_target_" in value:
            found |= {f"{name}.{below}" for below in _plain_keys(value)}
        elif not isinstance(value, dict):  # probes that another set has are tuned by some tasks
            found.add(name)
    return found


@pytest.mark.parametrize("entry", sorted(f.stem for f in (conf_folder() / LAUNCHER).glob("*")))
def test_every_key_of_a_launcher_is_described(entry: str) -> None:
    content = read_yaml(conf_folder() / LAUNCHER / f"{entry}.yaml")
    keys = group_keys(LAUNCHER, content, config_folders(), entry)
    assert {key.key for key in keys} == {f"launcher.{name}" for name in _plain_keys(content)}
    assert [key.key for key in keys if not _described(key)] == []


def test_the_page_has_the_values_of_the_entries_that_are_chosen() -> None:
    page = help_page(["optimizer=muon", "task=cifar", "seed=7"], [], [])
    for word in (
        "  optimizer.matrices.momentum=0.95\n",
        "  optimizer.rest.betas=[0.9,0.999]\n",
        "  task.padding=2 ",
        "  seed=7 ",
        "  epochs=9 ",
        "keys of model=cnn: ",
        "  schedule.T_max=${steps} ",
    ):
        assert word in page
    words = (line for line in page.splitlines() if " " in line.strip())
    assert max(map(len, words)) <= WIDTH


def test_one_group_or_key_is_told_in_full() -> None:
    page = help_page(["optimizer=adam", "optimizer"], [], [])
    assert "  optimizer=lion " in page and "arXiv:2302.06675" in page
    assert "  optimizer.weight_decay=0 " in page and "steps=" not in page
    probe = help_page(["probes.sharpness"], [], [])
    assert (
        "`share` of what training costs" in " ".join(probe.split()) and "probes.edge" not in probe
    )
    assert help_page(["seed"], [], []).startswith("  seed=0 ")
    assert "launcher.partition=null" in help_page([LAUNCHER], [], [])


def test_a_name_that_there_is_none_of_is_refused() -> None:
    with pytest.raises(UserError, match=r"no key optimiser\. Did you mean optimizer"):
        help_page(["optimiser"], [], [])


def test_an_entry_of_ones_own_is_described_by_its_docstring(
    optbench: Optbench, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch.optim import SGD\n\n\n"
        "class Mine(SGD):\n"
        "    '''Mine.\n\n    Args:\n        lr: How far it jumps.\n    '''\n"
    )
    outcome = optbench("optimizer=custom", "optimizer._target_=mine.Mine", "--help")
    assert outcome.code == 0 and "How far it jumps" in outcome.out


@pytest.mark.parametrize("module", COMMANDS)
def test_every_key_of_a_command_is_described(module: str) -> None:
    command = import_module(f"optbench.{module}").COMMAND
    assert isinstance(command, Command)
    page = command.help()
    for key in command._keys():
        assert len(key.about.about) >= SHORTEST, key.name
        assert key.word in page and key.about.about.split()[0][1:] in page
