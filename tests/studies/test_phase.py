"""Phase diagrams."""

from pathlib import Path

import numpy as np
import pytest

from optbench.errors import UserError
from optbench.studies import phase
from optbench.studies.command import COMMAND, study
from optbench.studies.phase import Axis


def test_a_diagram_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "phase",
        "xs=0.05,1e6",
        "ys=20,full",
        "seeds=1",
        "run.task=digits",
        "run.task.train_size=100",
        "run.model.widths=[8]",
        "run.steps=10",
        f"results_dir={tmp_path}",
    ]
    assert study(COMMAND.read(words)) == 0
    said = capsys.readouterr().out
    (folder,) = (tmp_path / "studies").glob("phase-*")
    assert (folder / "phase.png").stat().st_size > 10_000 and (folder / "phase.svg").is_file()
    rows = (folder / "table.csv").read_text().splitlines()
    assert len(rows) == 5 and rows[0].startswith("x,y,seed,diverged")
    diverged = [row.split(",")[3] for row in rows[1:]]
    assert diverged == ["0.0", "0.0", "1.0", "1.0"]
    assert "distance to the edge" in said and str(folder / "phase.png") in said


def test_cells_hold_medians_and_shares() -> None:
    x, y = Axis("a", ("1", "2")), Axis("b", ("3", "4"))
    rows = [
        {"x": "1", "y": "3", "distance": value, "diverged": flag}
        for value, flag in ((0.1, 0.0), (0.2, 1.0), (0.9, 1.0), (None, 0.0))
    ]
    assert phase.grid_of(rows, "distance", x, y)[0, 0] == pytest.approx(0.2)
    assert phase.grid_of(rows, "diverged", x, y)[0, 0] == 0.5
    assert np.isnan(phase.grid_of(rows, "distance", x, y)[1, 1])


def test_axes_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match=r"say xs=VALUE,VALUE"):
        Axis.of("model.depth", (), "x")
    with pytest.raises(UserError, match=r"ys must be two different values or more, got 1"):
        Axis.of("seed", ("1",), "y")
    one = Axis("optimizer.lr", ("1", "2"))
    with pytest.raises(UserError, match=r"x and y are both optimizer.lr"):
        phase.plan(one, one, (), 1)
    with pytest.raises(UserError, match=r"run.batch_size=3 is set by the diagram itself"):
        phase.plan(one, Axis("batch_size", ("1", "2")), ("batch_size=3",), 1)


def test_the_studies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert study(COMMAND.read(["list"])) == 0
    said = capsys.readouterr().out
    assert "which_property (8c): Which property goes along with generalization?" in said


def test_a_key_of_another_study_is_refused() -> None:
    with pytest.raises(UserError, match=r"only= is of the study edge_atlas, not of one_slope"):
        study(COMMAND.read(["one_slope", "only=Adam"]))
    with pytest.raises(UserError, match=r"there is no study called one_slop. Did you mean one_s"):
        study(COMMAND.read(["one_slop"]))
