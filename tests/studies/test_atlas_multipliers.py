"""Multipliers of optimizers outside the edge atlas: what is run, and the page."""

from pathlib import Path

import pytest

from optbench.check.subject import entries
from optbench.studies.atlas_entries import read_atlas
from optbench.studies.atlas_multipliers import PAGE, Row, markdown, read_plan, write
from optbench.studies.edge_reading import Reading, obeyed

NAN = float("nan")
DOCUMENT = (Path(__file__).resolve().parents[2] / "docs/edge_multipliers.md").read_text()


def _reading(
    formula: float, multiplier: float, status: str = "done", amplitude: float = NAN
) -> Reading:
    return Reading(formula, 0.0, multiplier, 1.0, 1.0, amplitude, 1.0, 0.01, status, 10)


def test_medians_are_over_the_seeds_that_have_a_number(tmp_path: Path) -> None:
    row = Row("x", [_reading(1.0, 0.9), _reading(NAN, 1.0), _reading(1.2, 1.2)])
    assert row.median("formula") == pytest.approx(1.1)
    assert row.median("multiplier") == 1.0
    assert row.obeyed(0.05) == "multiplier"
    assert Row("x", [_reading(1.0, 1.0), _reading(1.0, 1.0, "diverged")]).obeyed(0.05) == "diverged"
    write([row], tmp_path, 0.05)
    said = (tmp_path / PAGE).read_text()
    assert "| x | 1.100 | 0.000 | 1.000 | 1.000 | 1.000 | – | 1.000 | 0.010 | multiplier |" in said


def test_the_page_has_every_row_with_the_verdict_that_its_numbers_give() -> None:
    """The numbers are of runs that are not here."""
    lines = [line for line in DOCUMENT.splitlines() if line.startswith("|")]
    assert lines[0] + "\n" == next(markdown([], 0.05))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert [row[0] for row in rows] == [name for name, _ in read_plan().runs()]
    for name, *cells, said in rows:
        formula, _, multiplier, _, _, amplitude, *_ = (NAN if c == "–" else float(c) for c in cells)
        assert obeyed(formula, multiplier, amplitude, False, 0.05) == said, name


def test_every_optimizer_has_a_row_here_or_in_the_atlas() -> None:
    """But L-BFGS, whose step is not smooth and costs twenty gradients."""
    plan = read_plan()
    atlas = {word for e in read_atlas().entries for word in e.overrides}
    here = {own[0] for _, own in plan.runs()}
    names = {f"optimizer={name}" for name in entries("optimizer")}
    assert not here & atlas
    # the atlas has the class of pytorch_optimizer of these two
    assert names - here - atlas == {"optimizer=lbfgs", "optimizer=shampoo", "optimizer=soap"}
    assert {f"optimizer._target_=pytorch_optimizer.{name}" for name in ("Shampoo", "SOAP")} <= atlas
    assert len({tuple(plan.command(own, 1)) for _, own in plan.runs()}) == len(list(plan.runs()))
    assert set(plan.fixed_size) <= set(plan.others)
