"""Slices of the loss, against closed forms, eigenvalues, and the losses that runs recorded."""

import csv
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optbench import lab
from optbench.errors import UserError
from optbench.lab import loss_slices
from optbench.lab.landscape_command import COMMAND, Plane, _draw_plane, draw_landscape
from optbench.lab.loss_slices import Direction, Landscape, Losses
from optbench.lab.point import Point
from optbench.probes.after_update import flat
from optbench.task import Split, Task

GENERATOR = torch.Generator().manual_seed(0)


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def _half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(1).mean()


def _linear() -> tuple[Point, Split, Split]:
    """A linear model of 3 inputs and 2 outputs: its loss is a quadratic that can be written down."""
    train, val, test = (Split(_normal(n, 3), _normal(n, 2)) for n in (20, 7, 5))
    task = Task(train, val, test, output_width=2, loss=_half_square)
    model = nn.Linear(3, 2).double()
    return Point(model, task), train, val


def _exact(model: nn.Linear, split: Split, offset: Tensor) -> float:
    W = model.weight.detach() + offset[:6].view(2, 3)
    b = model.bias.detach() + offset[6:]
    return float(0.5 * (split.inputs @ W.T + b - split.targets).square().sum(1).mean())


def test_a_line_and_a_plane_are_the_closed_form_of_a_linear_models_loss() -> None:
    point, train, val = _linear()
    assert isinstance(point.model, nn.Linear)
    before = flat(point.parameters)
    d, e = (Direction("d", _normal(8), radius=2.0, center=c) for c in (0.0, 0.5))
    landscape, count = Landscape(point), []
    alphas, losses = landscape.line(d, 5, lambda: count.append(1))
    assert alphas.tolist() == [-2, -1, 0, 1, 2] and len(count) == 5
    for a, found in zip(alphas, losses, strict=True):
        assert found.train == pytest.approx(_exact(point.model, train, a * d.vector), rel=1e-12)
        assert found.val == pytest.approx(_exact(point.model, val, a * d.vector), rel=1e-12)
    alphas, betas, rows = landscape.plane(d, e, 3)
    assert betas.tolist() == [-1.5, 0.5, 2.5]
    for b, row in zip(betas, rows, strict=True):
        for a, found in zip(alphas, row, strict=True):
            offset = a * d.vector + b * e.vector
            assert found.train == pytest.approx(_exact(point.model, train, offset), rel=1e-12)
    assert torch.equal(flat(point.parameters), before) and point.model.training


def test_no_slice_looks_at_the_test_split() -> None:
    point, _, _ = _linear()
    nothing = Split(torch.full((5, 3), torch.nan), torch.full((5, 2), torch.nan))
    point.task = Task(point.task.train, point.task.val, nothing, 2, _half_square)
    found = Landscape(point).at(_normal(8))
    assert np.isfinite(found.train) and found.val is not None and np.isfinite(found.val)


def _curved(width: int = 5) -> Point:
    """A network that is no quadratic, in double precision."""
    data = Split(_normal(30, 4), _normal(30, 2))
    task = Task(data, None, None, output_width=2, loss=_half_square)
    torch.manual_seed(1)
    return Point(nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2)).double(), task)


def test_the_second_difference_along_an_eigenvector_is_its_eigenvalue() -> None:
    point = _curved()
    H = torch.autograd.functional.hessian(_loss_of(point), flat(point.parameters))
    exact = torch.linalg.eigvalsh(H).flip(0)[:2].tolist()
    landscape, h = Landscape(point), 1e-4
    for direction, eigenvalue in zip(loss_slices.eigenvectors(point, 2, None), exact, strict=True):
        assert float(direction.vector.norm()) == pytest.approx(1)
        low, middle, high = (landscape.at(a * direction.vector).train for a in (-h, 0.0, h))
        # truncation h²/12 · L⁗ and rounding 4ε·L/h² are below 1e-6 here
        second = (high - 2 * middle + low) / h**2
        assert second == pytest.approx(float(direction.vector @ H @ direction.vector), abs=1e-6)
        assert second == pytest.approx(eigenvalue, rel=1e-3)  # the accuracy of the eigenvector
        assert direction.curvature == pytest.approx(eigenvalue, rel=1e-3)
        assert (high - low) / (2 * h) == pytest.approx(direction.slope, abs=1e-6)


def _loss_of(point: Point):  # type: ignore[no-untyped-def]
    names = [name for name, _ in point.model.named_parameters()]
    shapes = [p.shape for p in point.parameters]

    def loss(w: Tensor) -> Tensor:
        pieces = w.split([s.numel() for s in shapes])
        named = {n: x.view(s) for n, x, s in zip(names, pieces, shapes, strict=True)}
        outputs = torch.func.functional_call(point.model, named, (point.train.inputs,))
        return _half_square(outputs, point.train.targets)

    return loss


def test_the_range_along_eigenvectors_is_where_the_largest_adds_four_losses() -> None:
    point = _curved()
    first = loss_slices.eigenvectors(point, 1, None)[0]
    assert first.curvature is not None
    added = first.curvature * first.radius**2 / 2
    assert added == pytest.approx(4 * point.loss.value(), rel=1e-6)
    assert loss_slices.eigenvectors(point, 1, 0.5)[0].radius == 0.5


def test_a_filter_gets_the_norm_of_the_models_own_and_a_bias_nothing() -> None:
    convolution = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3, 4))
    parameters = list(convolution.parameters())
    with torch.no_grad():
        parameters[0][1] = 0  # a filter of zeros stays one
    d = Direction("d", torch.randn(sum(p.numel() for p in parameters)), radius=3.0)
    found = loss_slices.filter_normalized(d, parameters, None)
    pieces = found.vector.split([p.numel() for p in parameters])
    old = d.vector.split([p.numel() for p in parameters])
    for piece, before, p in zip(pieces, old, parameters, strict=True):
        if p.ndim < 2:
            assert not piece.any()
            continue
        rows, filters = piece.view_as(p).flatten(1), p.detach().flatten(1)
        torch.testing.assert_close(rows.norm(dim=1), filters.norm(dim=1))
        cosine = nn.functional.cosine_similarity(rows, before.view_as(p).flatten(1))
        assert set(cosine.round(decimals=5).tolist()) <= {0.0, 1.0}
    assert found.radius == 1 and found.curvature is None and "filter-normalized" in found.name
    with pytest.raises(UserError, match="no weights have filters"):
        loss_slices.filter_normalized(Direction("d", torch.ones(3), 1.0), [torch.ones(3)], None)


def test_filter_normalized_slices_are_the_same_for_rescaled_networks() -> None:
    """The paper's reason for it: cW₂, W₁/c is the same function of ReLU layers; so are its slices."""
    data = Split(_normal(30, 4), _normal(30, 2))
    task = Task(data, None, None, output_width=2, loss=_half_square)
    d, losses = _normal(30), []
    for factor in (1.0, 8.0):
        torch.manual_seed(1)
        layers = [nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False)]
        model = nn.Sequential(*layers).double()
        with torch.no_grad():
            layers[0].weight.mul_(factor)  # type: ignore[operator]
            layers[2].weight.div_(factor)  # type: ignore[operator]
        point = Point(model, task)
        direction = loss_slices.filter_normalized(Direction("d", d, 1.0), point.parameters, None)
        losses.append([found.train for found in Landscape(point).line(direction, 9)[1]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_orthogonal_is_orthogonal_and_random_directions_have_the_weights_norm() -> None:
    point = _curved()
    one, other = loss_slices.random_directions(point, 2, None)
    assert float(one.vector.norm()) == pytest.approx(float(point.weights.norm()))
    assert not torch.equal(one.vector, other.vector)
    apart = loss_slices.orthogonal(other, one)
    assert abs(float(apart.vector @ one.vector)) < 1e-10 and apart.curvature is None


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[lab.Run]:
    """Two runs of one model in double precision, with a checkpoint before the last update."""
    results = tmp_path_factory.mktemp("runs")
    words = ["task=digits", "optimizer=adam", "dtype=float64", "model.widths=[8]", *lab.QUIET]
    words += [f"results_dir={results}", "probes.generalization.every=1"]
    return [lab.start(*words, seed=seed).train(steps=12, keep_steps=[11]) for seed in (0, 1)]


def _rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def _do(*words: str) -> int:
    return draw_landscape(COMMAND.read(words))


def test_along_the_update_the_next_loss_is_at_one(
    runs: list[lab.Run], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs[0].folder
    assert _do(str(folder), "along=update", "step=11", "points=9", "grid=0") == 0
    rows = [
        r for r in _rows(folder / "landscape-update.csv") if r["direction"] == "the next update"
    ]
    for coefficient, step in (("0.0", 11), ("1.0", 12)):
        [row] = [r for r in rows if r["coefficient"] == coefficient]
        for column, metric in (("train_loss", "train/loss"), ("val_loss", "val/loss")):
            [value] = [r[metric] for r in runs[0].records if r["step"] == step]
            assert float(row[column]) == pytest.approx(value, rel=1e-9)
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "landscape-update.png")


def test_between_two_runs_both_ends_are_their_own_losses(runs: list[lab.Run]) -> None:
    folder = runs[0].folder
    assert _do(str(folder), str(runs[1].folder), "along=runs", "points=5") == 0
    rows = {row["coefficient"]: row for row in _rows(folder / "landscape-runs.csv")}
    assert list(rows) == ["-0.5", "0.0", "0.5", "1.0", "1.5"]
    for coefficient, metric in (("0.0", "train/loss"), ("0.0", "val/loss")):
        assert float(rows[coefficient][metric.replace("/", "_")]) == pytest.approx(
            runs[0].last[metric], rel=1e-9
        )
    assert float(rows["1.0"]["train_loss"]) == pytest.approx(runs[1].last["train/loss"], rel=1e-9)
    assert not (folder / "landscape-runs-plane.csv").exists()


def test_the_files_of_eigenvectors_and_that_a_run_is_left_as_it_was(
    runs: list[lab.Run], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs[0].folder
    before = _contents(folder)
    assert _do(str(folder), "points=11", "grid=5") == 0
    said = capsys.readouterr().out
    assert f"curvature {runs[0].last['sharpness/lambda_max']:.3g}"[:13] in said
    plane = _rows(folder / "landscape-eigenvectors-plane.csv")
    assert len(plane) == 25
    pixels = plt.imread(folder / "landscape-eigenvectors.png")
    assert pixels.shape[1] > 1000 and float(np.std(pixels)) > 0.01
    assert _contents(folder) == before
    assert json.loads(before["summary.json"])["status"] == "done"


def _contents(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and "landscape" not in file.name]
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("grid=1",), "grid must be 0"),
        (("along=runs",), "two runs or three, got 1"),
        (("RUN", "along=update"), "about one run, got 2: say along=runs"),
        (("RUN", "along=runs", "normalize=filter"), "leave it out"),
        (("RUN", "along=runs"), "there is nothing between them"),
        (("step=5",), "5"),
    ],
)
def test_what_cannot_be_is_told(words: tuple[str, ...], said: str, runs: list[lab.Run]) -> None:
    folder = str(runs[0].folder)
    with pytest.raises(UserError, match=said):
        _do(folder, *(folder if word == "RUN" else word for word in words))


def test_an_update_of_nothing_is_told(tmp_path: Path) -> None:
    words = ("task=quadratic", "optimizer=sgd", "schedule=linear", *lab.QUIET)
    run = lab.start(*words, f"results_dir={tmp_path}").train(steps=3)
    with pytest.raises(UserError, match="is 0, as at the end of a schedule"):
        _do(str(run.folder), "along=update")


def test_a_plane_is_as_wide_as_the_line_above_it() -> None:
    ends = np.array([-1.0, 1.0])
    losses = [[Losses(1.0, None), Losses(2.0, None)], [Losses(3.0, None), Losses(4.0, None)]]
    one, other = (Direction(name, torch.ones(2), radius=1.0) for name in ("one", "other"))
    figure = plt.figure(layout="constrained")
    above, below = figure.subplots(2, 1)
    _draw_plane(figure, below, Plane(one, other, ends, ends, losses), "train")
    figure.draw_without_rendering()
    assert below.get_position().width == pytest.approx(above.get_position().width)
    assert below.get_position().x1 > 0.95, "the colours' scale stands below, not beside"
    plt.close()
