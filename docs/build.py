"""`python -m docs.build`, in a checkout: the pages that are made from code and from results.

These are docs/optimizers.md, the table of all optimizers, from their YAMLs and from what
`python -m perf.optimizers` has measured; docs/metrics.md, from `optbench.metrics`; docs/gallery.md,
from the verdicts of the studies; the table in docs/edge_atlas.md, from its study; and the result in
README.md, from the committed board.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docs import gallery_page
from optbench import metrics
from optbench.boundary.command_line import Command
from optbench.check.parameter_kinds import tensors
from optbench.check.subject import Subject, Training, entries, optimizer
from optbench.dynamics import UnknownEdge, described, edge

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "optimizers.md"
METRICS = ROOT / "docs" / "metrics.md"
GALLERY = ROOT / "docs" / "gallery.md"
README = ROOT / "README.md"
BOARD = ROOT / "results" / "leaderboard.csv"
ATLAS = ROOT / "docs" / "edge_atlas.md"
ENTRIES = ROOT / "results" / "studies" / "edge_atlas" / "entries.md"
BEGIN, END = "<!-- made by python -m docs.build -->\n", "<!-- end of it -->"
ROWS = 5
COSTS = ROOT / "perf" / "optimizers.json"
HEAD = """# Optimizers

Made by `python -m docs.build` from the YAMLs in `conf/optimizer/`; do not edit by hand.

- **edge**: where stability is lost, and where that is known from: a closed form, a conjecture, probed on copies of the
  optimizer, or unknown; `on` names the quantity that is compared with it: λ₁(H), λ₁(P⁻¹H), or sharpness in a norm.
- **time**: of an update (forward, backward, step) beside plain SGD's, by `python -m perf.optimizers` on {machine};
  the fastest of the implementations that it has (looped, `foreach`, `fused`).
- **state**: numbers kept between updates, for each parameter, on matrices of 5×7 and 7×3 with their vectors; what
  grows with the square of a side, as Shampoo's does, is relatively more on larger ones.

| optimizer | does | paper | edge | on | time | state |
|---|---|---|---|---|---|---|
"""
METRICS_HEAD = """# Metrics

Made by `python -m docs.build` from `optbench.metrics`; do not edit by hand.

Notation: L is the training loss, w the weights, H = ∇²L(w), λ₁ ≥ λ₂ ≥ … its eigenvalues, g = ∇L(w), η the learning
rate, P the preconditioner, d the last update, B a mini-batch. `…_low` and `…_high` beside a metric are the ends of its
95 % interval. A part in capitals stands for a name or a number.

"""


@dataclass(frozen=True)
class Settings:
    """Write docs/optimizers.md, docs/metrics.md, docs/gallery.md, and parts of two other pages.

    They are made from conf/optimizer/ and perf/optimizers.json, from optbench.metrics, and from
    results/studies/*/verdict.json. The parts are the table of docs/edge_atlas.md, from that study,
    and the board of README.md, from results/leaderboard.csv.
    """


COMMAND = Command("docs.build", Settings)


def main() -> None:
    """Write the pages that are made from code."""
    COMMAND.run(build)


def build(_: Settings) -> int:
    """Write the pages, and return the exit code."""
    pages = (
        (METRICS, render_metrics()),
        (TABLE, render()),
        (GALLERY, gallery_page.render()),
        (ATLAS, with_entries(ATLAS.read_text())),
        (README, with_board(README.read_text())),
    )
    for path, page in pages:
        path.write_text(page)
        print(path)
    return 0


def with_board(readme: str) -> str:
    """Return the README with the first rows of the committed board between its two marks."""
    return _with_part(readme, "\n".join(_board()) + "\n")


def with_entries(page: str) -> str:
    """Return the page of the edge atlas with the table of its study between its two marks."""
    return _with_part(page, ENTRIES.read_text())


def _with_part(page: str, part: str) -> str:
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + part + END + after


def _board() -> Iterator[str]:
    with BOARD.open(newline="") as stream:
        every = {row["optimizer"]: row for row in csv.DictReader(stream)}
    rows = sorted(every.values(), key=lambda row: int(row["rank"]))
    yield f"| rank | may be | optimizer | score, 95 % interval (of {len(rows)}) |"
    yield "|---|---|---|---|"
    for row in rows[:ROWS]:
        score, low, high = (float(row[f"score_{end}"]) for end in ("iqm", "low", "high"))
        place = f"{row['rank_low']}–{row['rank_high']}"
        yield f"| {row['rank']} | {place} | {row['optimizer']} | {score:.2f} [{low:.2f}, {high:.2f}] |"


def render_metrics() -> str:
    """Return the page of all metrics."""
    return METRICS_HEAD + "\n".join(metrics.table()) + "\n"


def render() -> str:
    """Return the whole page."""
    costs: dict[str, Any] = (
        json.loads(COSTS.read_text())
        if COSTS.exists()
        else {"machine": "no machine yet", "ratios": {}}
    )
    subjects = [optimizer(name) for name in entries("optimizer")]
    rows = [_row(subject, costs["ratios"].get(subject.name, {})) for subject in subjects]
    return HEAD.format(machine=costs["machine"]) + "".join(rows) + "\n" + "".join(_notes(subjects))


def _row(subject: Subject, costs: Mapping[str, float]) -> str:
    training = Training(subject)
    training.steps(30)
    known = edge(training.optimizer)
    about = subject.settings["about"]
    threshold, quantity = "unknown", "–"
    if not isinstance(known, UnknownEdge):
        threshold = known.source if known.source == "probed" else described(known)
        quantity = known.quantity
    cells = [
        f"`{subject.name}`",
        about["does"],
        _link(about["paper"]),
        threshold,
        quantity,
        _time(costs),
        f"{_state(training):.3g}",
    ]
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n"


def _time(costs: Mapping[str, float]) -> str:
    if not costs:
        return "–"
    name, value = min(costs.items(), key=lambda pair: pair[1])
    return f"{value:.2f}" if name == "default" else f"{value:.2f} ({name.partition('=')[0]})"


def _link(paper: str) -> str:
    kind, _, number = paper.partition(":")
    return f"[{number}](https://arxiv.org/abs/{number})" if kind == "arXiv" else f"[link]({paper})"


def _state(training: Training) -> float:
    size = sum(p.numel() for p in training.model.parameters())
    return sum(t.numel() for t in tensors(training.optimizer.state_dict()) if t.numel() > 1) / size


def _notes(subjects: Iterable[Subject]) -> Iterator[str]:
    """What departs from the paper, and what fails a check, with the reason."""
    named: list[tuple[str, Mapping[str, Any]]] = [
        (subject.name, subject.settings["about"]) for subject in subjects
    ]
    yield "## Departures from the papers\n\n"
    yield from (f"- `{name}`: {about['departs']}\n" for name, about in named if "departs" in about)
    yield "\n## Checks that one does not pass, and why\n\n"
    for name, about in named:
        yield from (
            f"- `{name}`, {check}: {why}.\n" for check, why in about.get("excluded", {}).items()
        )


if __name__ == "__main__":
    main()
