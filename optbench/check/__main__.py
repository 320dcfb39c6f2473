"""`python -m optbench.check TARGET ...`: try everything that is known to go wrong."""

import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Table

from optbench.boundary.command_line import Command, FilePath, Key
from optbench.check import Row, run
from optbench.check.subject import entries, one_thread
from optbench.check.targets import Target, find
from optbench.configuration.explain import explain

COLOURS = {"pass": "green", "fail": "bold red", "warn": "yellow", "excluded": "yellow"}


@dataclass(frozen=True)
class Settings:
    """Try everything that is known to go wrong with an optimizer, a task or a probe.

    Verdicts: pass; fail; warn (may surprise); reported (neither right nor wrong); not tried, and
    why; excluded (a known failure, with the reason that its YAML gives under about.excluded).
    """

    targets: Annotated[
        tuple[str, ...],
        Key(
            "an optimizer, a task, a probe or an import path; all: every optimizer",
            placeholder="TARGET",
            positional=True,
        ),
    ]
    optimizer: Annotated[
        tuple[str, ...],
        Key("a setting of the optimizer, as for a run", below=True, option="--set"),
    ] = ()
    config_dir: Annotated[FilePath | None, Key("folder of your YAMLs", placeholder="DIR")] = None
    json: Annotated[bool, Key("one JSON object on standard output instead of tables")] = False


COMMAND = Command(
    "optbench.check",
    Settings,
    examples=(
        "adam",
        "my_file.MyOptimizer optimizer.lr=0.05",
        "mine config_dir=my_conf",
        "digits sharpness",
        "all json=true",
    ),
)


def main() -> None:
    """Check what the command line names; exit code 1 if a check fails."""
    # a target may be anybody's code, and fail as it likes
    COMMAND.run(check, explain=lambda error, _: explain(error))


def check(settings: Settings) -> int:
    """Check the targets, and return the exit code."""
    sys.path.insert(0, str(Path.cwd()))
    folder = settings.config_dir
    names = [name for target in settings.targets for name in _expand(target, folder)]
    targets = [find(name, settings.optimizer, folder) for name in names]
    return _report(targets, settings.json)


def _expand(target: str, config_dir: Path | None) -> Iterator[str]:
    """The name itself; for `all`, every optimizer."""
    yield from entries("optimizer", config_dir) if target == "all" else [target]


def _report(targets: Sequence[Target], as_json: bool) -> int:
    console, progress = Console(), Console(stderr=True)
    found: dict[str, list[Row]] = {}
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, target in enumerate(targets, 1):
            with progress.status(f"{target.name} ({number} of {len(targets)})"):
                found[target.name] = list(run(target.checks, target.subject, target.excluded))
            if not as_json:
                console.print(_table(target.name, found[target.name]))
    if as_json:
        print(
            json.dumps(
                {name: [asdict(row) for row in rows] for name, rows in found.items()}, indent=2
            )
        )
    failed = [name for name, rows in found.items() if any(row.verdict == "fail" for row in rows)]
    if not as_json:
        seconds = sum(row.seconds for rows in found.values() for row in rows)
        print(
            f"{len(found) - len(failed)} of {len(found)} pass, {seconds:.0f} s"
            + f"; failed: {', '.join(failed)}" * bool(failed)
        )
    return 1 if failed else 0


def _table(name: str, rows: Sequence[Row]) -> Table:
    table = Table(title=name, title_justify="left")
    for column in ("check", "verdict", "found"):
        table.add_column(column)
    for row in rows:
        colour = COLOURS.get(row.verdict, "dim")
        table.add_row(row.check, f"[{colour}]{row.verdict}[/]", row.detail.replace("[", r"\["))
    return table


if __name__ == "__main__":
    main()
