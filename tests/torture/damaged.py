"""Damaged folders: the same command ends bit-identical, or says in one line what is wrong, and runs no foreign code."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.torture import damages
from tests.torture.dying import die_after_saves
from tests.torture.runs import Child, Outcome, fault, run_folder


def prepare(scratch: Path) -> None:
    """Make a finished run and one that was killed half-way, to be damaged."""
    Child(scratch / "finished").wait()
    half = scratch / "half"
    Child(half, before=lambda: die_after_saves(6)).wait()
    if not (run_folder(half) / "checkpoint.previous.pt").exists():
        raise RuntimeError("the run was to be killed with two checkpoints")


def every(executed: Path) -> dict[str, damages.Damage]:
    """All damages by name."""
    return damages.to_every_file() | damages.to_checkpoints(executed) | damages.to_contents()


def trials(scratch: Path, truth: Outcome, chance: random.Random) -> Iterator[tuple[str, str]]:
    """Yield name and fault (empty if there is none) of every damage to both, in an order of chance."""
    executed = scratch / "executed"
    found = [(state, name) for state in ("half", "finished") for name in every(executed)]
    chance.shuffle(found)
    for state, name in found:
        yield f"{state}: {name}", trial(scratch, state, name, truth)


def trial(scratch: Path, state: str, name: str, truth: Outcome) -> str:
    """Damage a copy, give the command again, and say what is wrong with how that ended."""
    executed, results = scratch / "executed", scratch / "damaged"
    shutil.rmtree(results, ignore_errors=True)
    shutil.copytree(scratch / state, results)
    every(executed)[name](run_folder(results))
    ended = Child(results).wait()
    if executed.exists():
        executed.unlink()
        return "foreign code was run"
    told = (
        ended.code in (1, 2)
        and ended.said.count("optbench: ") == 1
        and "Traceback" not in ended.said
    )
    return "" if told else fault(results, ended, truth)
