"""Is a search space or the budget of tuning points to blame where tuning finds nothing?

    python -m perf.more_points suite=small task=modular_addition optimizer=sgd,lion points=32
    python -m perf.more_points … config_dir=perf/wider space=wider

Runs more scrambled-Sobol points of each optimizer's search space on one task of a suite, the suite's
own points first, as the tuner runs them: first tuning seed, no probes. It writes a line a run to
`results/more_points/SUITE-vN.csv`, which the leaderboard reads to say what is to blame. What is in
the file is not run again. One process, one thread: modular addition takes a second a point.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from rich.progress import track

from optbench import lab, metrics
from optbench.boundary.command_line import Command, Key, Names
from optbench.boundary.kinds import Count
from optbench.errors import UserError, nearest
from optbench.leaderboard.tuned import DECLARED, HEAD, MORE_POINTS
from optbench.protocol.points import search_spaces, sobol_points
from optbench.protocol.suite import TUNE, Suite, read_suite

Place = tuple[str, str, str, int]  # task, optimizer, space, point


@dataclass(frozen=True)
class Settings:
    """Try more tuning points than a suite has, and keep what each gave in a table."""

    task: Annotated[str, Key("a task of the suite that is tuned on", "NAME")]
    optimizer: Annotated[Names, Key("names of optimizers", "NAMES")]
    suite: Annotated[str, Key("the suite")] = "small"
    points: Annotated[Count, Key("how many points, the suite's among them")] = 32
    config_dir: Annotated[
        Path | None, Key("folder of YAMLs with other search spaces, as for tune", "DIR")
    ] = None
    space: Annotated[str, Key("what the table calls that search space")] = DECLARED
    scratch: Annotated[Path, Key("folder for the run folders")] = Path("results")


COMMAND = Command(
    "perf.more_points",
    Settings,
    examples=("task=modular_addition optimizer=sgd,lion",),
    elsewhere="scratch=DIR",
)


def main() -> None:
    """Run what the table lacks."""
    COMMAND.run(more_points)


def more_points(settings: Settings) -> int:
    """Run what the table lacks, and return the exit code."""
    suite = read_suite(settings.suite)
    if settings.task not in suite.tuned:
        raise UserError(
            f"{suite.name} tunes on no task {settings.task}.{nearest(settings.task, suite.tuned)}"
        )
    torch.set_num_threads(1)
    file = Path("results") / MORE_POINTS / f"{suite.label}.csv"
    known = _known(file)
    spaces = search_spaces(settings.optimizer, settings.config_dir)
    todo = [
        (name, point, words)
        for name, space in spaces.items()
        for point, words in enumerate(sobol_points(space, settings.points, suite.sobol_seed))
        if (settings.task, name, settings.space, point) not in known
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    for name, point, words in track(todo, "points"):
        row = _run(suite, settings, name, point, words)
        new = not file.exists()
        with file.open("a", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            if new:
                writer.writerow(HEAD)
            writer.writerow(row)
    print(file)
    return 0


def _known(file: Path) -> set[Place]:
    if not file.exists():
        return set()
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {(r["task"], r["optimizer"], r["space"], int(r["point"])) for r in rows}


def _run(suite: Suite, settings: Settings, name: str, point: int, words: list[str]) -> list[object]:
    command = suite.command(name, settings.task, TUNE, point, words, suite.tuning_seeds[0])
    own = [word for word in command if not word.startswith("board=")]
    quiet = ("wandb.mode=disabled", "picture=false", "device=cpu", "checkpoint_seconds=600")
    run = lab.start(*own, *quiet, f"results_dir={settings.scratch}")
    run.train()
    select, last = suite.tasks[settings.task].select, {}
    for metric in (select, metrics.TRAIN_ERROR):
        series = run.series(metric)[1]
        last[metric] = f"{float(series[-1]):.6g}" if len(series) else ""
    settings_of_point = " ".join(word.removeprefix("optimizer.") for word in words)
    values = (last[select], last[metrics.TRAIN_ERROR])
    return [settings.task, name, settings.space, point, *values, settings_of_point]


if __name__ == "__main__":
    main()
