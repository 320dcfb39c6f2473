"""What tracking costs: whole runs of the main job with its probes and without, in pairs.

    python -m perf.tracking                           the default run, five pairs
    python -m perf.tracking pairs=1 run.task=cifar run.optimizer=adam
    python -m perf.tracking run.device=cuda           the same on a GPU

Both runs of a pair train the same weights, bit for bit, which is checked; the run without probes
looks at loss and error at its ends alone. Pairs take turns in which comes first. Shown are the
median over pairs of what measuring adds to the seconds of the other run's updates, its share of its
own run, and what each probe took; beside it the range over the pairs.
"""

import json
import statistics
import tempfile
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from rich.console import Console
from rich.table import Table

from optbench import lab
from optbench.boundary.command_line import Command, Key
from optbench.boundary.kinds import Count
from optbench.errors import UserError
from optbench.record.folder import PROVENANCE

FAR = 10**9  # steps: the ends alone
SET_HERE = ("results_dir", "probes")


@dataclass(frozen=True)
class Settings:
    """Time whole runs of the main job with its probes and without, in pairs."""

    pairs: Annotated[Count, Key("pairs of runs")] = 5
    run: Annotated[
        tuple[str, ...], Key("a setting of every run, as of the main job", below=True)
    ] = ()


COMMAND = Command(
    "perf.tracking", Settings, examples=("pairs=1 run.task=cifar run.optimizer=adam",)
)


def run(words: list[str], without: bool) -> tuple[dict[str, Any], bytes]:
    """Train a run in a folder of its own; return its summary and the bytes of its last weights."""
    none = ["probes=none", f"probes.generalization.every={FAR}"] if without else []
    with tempfile.TemporaryDirectory() as folder:
        made = lab.start(*words, *none, *lab.QUIET, results_dir=folder).train()
        if made.status != "done":
            raise UserError(f"the run with {' '.join(words)} is {made.status}: nothing to compare")
        weights = b"".join(p.detach().cpu().numpy().tobytes() for p in made.end.model.parameters())
        hardware = json.loads((made.folder / PROVENANCE).read_text())["hardware"]
        return made.summary | {"device": hardware["device"]}, weights


def pair(words: list[str], first_without: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Summaries of a run with probes and one without; the weights must be the same."""
    order = [first_without, not first_without]
    found = dict(zip(order, [run(words, without) for without in order], strict=True))
    if found[True][1] != found[False][1]:
        raise SystemExit("the weights differ: a probe has changed the training")
    return found[False][0], found[True][0]


def middle(values: list[float], unit: str = "") -> str:
    """Median, and the range where there is one."""
    scale, sign = (100, " %") if unit == "%" else (1, unit)
    low, mid, high = (
        f"{scale * x:.{0 if unit == '%' else 2}f}"
        for x in (min(values), statistics.median(values), max(values))
    )
    return f"{mid}{sign}" + (f" ({low} to {high})" if len(values) > 1 else "")


def main() -> None:
    """Do what the command line says."""
    COMMAND.run(compare)


def compare(settings: Settings) -> int:
    """Run the pairs and print the table; return the exit code."""
    words = list(settings.run)
    for word in words:
        if word.partition("=")[0] in SET_HERE:
            raise UserError(f"run.{word} is set by the command itself: leave it out")
    console = Console()
    with console.status("") as status:
        run([*words, "steps=2"], without=False)  # imports, and the data
        found = []
        for number in range(settings.pairs):
            status.update(f"pair {number + 1} of {settings.pairs}")
            found.append(pair(words, first_without=bool(number % 2)))
    said = " ".join(words) or "the default run"
    console.print(f"{said}, torch {torch.__version__}, {found[0][0]['device']}")
    table = Table("", "seconds", "of the training without")
    bare = [without["train_seconds"] for _, without in found]

    def row(name: str, seconds: list[float]) -> None:
        parts = [s / b for s, b in zip(seconds, bare, strict=True)]
        table.add_row(name, middle(seconds), middle(parts, "%"))

    row("training, without probes", bare)
    row("training, with probes", [seen["train_seconds"] for seen, _ in found])
    row("measuring", [seen["probe_seconds"] for seen, _ in found])
    for name in found[0][0]["each_probe_seconds"]:
        row(f"  {name}", [seen["each_probe_seconds"][name] for seen, _ in found])
    console.print(table)
    shares = [s["probe_seconds"] / (s["probe_seconds"] + s["train_seconds"]) for s, _ in found]
    console.print(f"measuring is {middle(shares, '%')} of the run")
    return 0


if __name__ == "__main__":
    main()
