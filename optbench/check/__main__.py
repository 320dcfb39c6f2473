"""`python -m optbench.check TARGET ...`: try everything that is known to go wrong."""

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, TextIO

from rich.table import Table

from optbench.boundary.command_line import Command, FilePath, Key
from optbench.boundary.counting import agreeing
from optbench.check import Row, run
from optbench.check.subject import entries, one_thread
from optbench.check.targets import Target, find
from optbench.configuration.explain import explain
from optbench.record.progress import Progress
from optbench.record.terminal import show_table

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
    if not settings.json:
        return _report(_targets(settings), _show)
    with own_output() as out:  # what the targets print is no JSON
        found: dict[str, list[Row]] = {}
        code = _report(_targets(settings), found.__setitem__)
        content = {name: [asdict(row) for row in rows] for name, rows in found.items()}
        out.write(json.dumps(content, indent=2) + "\n")
    return code


@contextmanager
def own_output() -> Iterator[TextIO]:
    """Context whose stream alone is standard output; all that is printed goes to standard error.

    The descriptor is exchanged, so that C code and child processes are led there too.
    """
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr), os.fdopen(os.dup(saved), "w") as out:
            yield out
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def _targets(settings: Settings) -> list[Target]:
    sys.path.insert(0, str(Path.cwd()))
    folder = settings.config_dir
    names = [name for target in settings.targets for name in _expand(target, folder)]
    return [find(name, settings.optimizer, folder) for name in names]


def _expand(target: str, config_dir: Path | None) -> Iterator[str]:
    """The name itself; for `all`, every optimizer."""
    yield from entries("optimizer", config_dir) if target == "all" else [target]


def _report(targets: Sequence[Target], show: Callable[[str, list[Row]], None]) -> int:
    """Check the targets, show each, and return the exit code."""
    found: dict[str, list[Row]] = {}
    checks = sum(len(target.checks) for target in targets)
    with one_thread(), warnings.catch_warnings(), Progress(checks, "checks") as shown:
        warnings.simplefilter("ignore")
        for target in targets:
            shown.begin(target.name, line=False)
            rows = found[target.name] = []
            for row in run(target.checks, target.subject, target.excluded):
                rows.append(row)
                shown.advance()
            show(target.name, rows)
    failed = [name for name, rows in found.items() if any(row.verdict == "fail" for row in rows)]
    if show is _show:
        passed, seconds = (
            len(found) - len(failed),
            sum(r.seconds for own in found.values() for r in own),
        )
        print(
            f"{passed} of {len(found)} {agreeing(passed, 'passes', 'pass')}, {seconds:.0f} s"
            + f"; failed: {', '.join(failed)}" * bool(failed)
        )
    return 1 if failed else 0


def _show(name: str, rows: list[Row]) -> None:
    show_table(_table(rows), name)


def _table(rows: Sequence[Row]) -> Table:
    table = Table()
    for column in ("check", "verdict", "found"):
        table.add_column(column)
    for row in rows:
        colour = COLOURS.get(row.verdict, "dim")
        table.add_row(row.check, f"[{colour}]{row.verdict}[/]", row.detail.replace("[", r"\["))
    return table


if __name__ == "__main__":
    main()
