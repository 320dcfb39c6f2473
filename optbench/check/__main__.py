"""`python -m optbench.check TARGET ...`: try everything that is known to go wrong, and say what was found."""

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from optbench.boundary.command_line import Parser
from optbench.check import Row, run
from optbench.check.subject import entries, one_thread
from optbench.check.targets import Target, find
from optbench.configuration.explain import explain

COLOURS = {"pass": "green", "fail": "bold red", "warn": "yellow", "excluded": "yellow"}
EPILOG = """verdicts: pass; fail; warn (may surprise); reported (neither right nor wrong); not tried, and why;
excluded (a known failure, with the reason that its YAML gives under about.excluded).
exit code: 0 nothing failed, 1 something did, 2 the command could not be understood.

  python -m optbench.check adam
  python -m optbench.check my_file.MyOptimizer --set lr=0.05
  python -m optbench.check mine --config-dir my_conf
  python -m optbench.check digits sharpness
  python -m optbench.check all --json"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Check what the command line names; return the exit code."""
    parser = Parser(
        prog="python -m optbench.check",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "targets", nargs="+", metavar="TARGET", help="optimizer, task or probe, import path, or all"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the optimizer"
    )
    parser.add_argument(
        "--config-dir", type=Path, default=None, metavar="DIR", help="YAMLs of your own"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on standard output instead of tables"
    )
    given = parser.parse_args(arguments)
    sys.path.insert(0, str(Path.cwd()))
    try:
        names = [name for t in given.targets for name in _expand(t, given.config_dir)]
        targets = [find(name, given.set, given.config_dir) for name in names]
    except Exception as error:
        message, code = explain(error)
        if message is None:
            raise
        print(f"optbench: {message}", file=sys.stderr)
        return code
    return _report(targets, given.json)


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
    sys.exit(main())
