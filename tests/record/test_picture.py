from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from optbench.record.axes import alternates, plain_log, series
from optbench.record.picture import _distance, _loss, _shade, _sharpness, draw


def test_series_skips_steps_where_the_metric_was_not_measured() -> None:
    assert series([{"step": 0, "a": 1.0}, {"step": 1}, {"step": 2, "a": 3}], "a") == (
        [0, 2],
        [1.0, 3],
    )


@pytest.mark.parametrize(
    "records",
    [
        [],
        [{"step": 0, "train/loss": 0.0}],
        [
            {"step": s, "sharpness/lambda_max": float(s), "edge/threshold": 1e9, "batch/loss": 1.0}
            for s in range(5)
        ],
        [{"step": s, "gap/loss": -1.0, "train/loss": 2.0**-s} for s in range(100)],
    ],
)
def test_any_run_can_be_drawn(tmp_path: Path, records: list[dict[str, float]]) -> None:
    draw(records, "title", tmp_path)
    pixels = plt.imread(tmp_path / "dynamics.png")
    assert pixels.shape[0] > 600 and float(np.std(pixels)) > 0.01  # neither tiny nor blank
    assert [file.name for file in tmp_path.iterdir()] == ["dynamics.png"]


def test_an_edge_that_is_off_the_picture_is_named_once_with_the_nearest_value() -> None:
    for thresholds, expected in (([100.0, 100.0], "100"), ([100.0, 300.0], "100 and above")):
        records = [
            {"step": i, "sharpness/lambda_max": 1.0, "edge/threshold": t}
            for i, t in enumerate(thresholds)
        ]
        axis = plt.figure().subplots()
        _sharpness(axis, records)
        assert axis.get_ylim()[1] < 2
        labels = axis.get_legend_handles_labels()[1]
        assert labels == [
            "sharpness $\\lambda_1$",
            f"edge of stability, off the picture at {expected}",
        ]
        plt.close()


def test_sharpness_over_more_than_two_decades_gets_a_logarithmic_axis() -> None:
    for values, scale in (
        ([1.0, 90.0], "linear"),
        ([1.0, 110.0], "log"),
        ([-1.0, 110.0], "linear"),
    ):
        records = [
            {"step": i, "sharpness/lambda_max": value, "edge/threshold": 1e9}
            for i, value in enumerate(values)
        ]
        axis = plt.figure().subplots()
        _sharpness(axis, records)
        low, high = axis.get_ylim()
        assert axis.get_yscale() == scale and low <= min(values) and max(values) < high < 200
        plt.close()


def test_losses_within_a_decade_have_plain_ticks() -> None:
    axis = plt.figure().subplots()
    _loss(axis, [{"step": i, "train/loss": loss} for i, loss in enumerate((5.0, 3.0, 1.9))])
    axis.figure.canvas.draw()
    assert {"2", "3", "4"} <= {tick.get_text() for tick in axis.get_yticklabels()}
    plt.close()


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (6.4, 18.4, ["8", "10", "12", "14", "16", "18"]),
        (0.11, 1.3, ["0.2", "0.5", "1"]),
        (0.3, 50.0, ["0.5", "1", "2", "5", "10", "20", "50"]),
        (0.3, 2000.0, ["1", "10", "100", "1000"]),
    ],
)
def test_a_logarithmic_axis_has_plain_numbers_however_narrow_it_is(
    low: float, high: float, shown: list[str]
) -> None:
    figure = plt.figure()
    axis = figure.subplots()
    plain_log(axis, "y")
    axis.set_ylim(low, high)
    figure.canvas.draw()
    ticks = zip(axis.get_yticks(), axis.get_yticklabels(), strict=True)
    assert [label.get_text() for at, label in ticks if low <= at <= high] == shown
    axis.set_ylim(1e-9, 10)
    assert 3 <= sum(1e-9 <= tick <= 10 for tick in axis.get_yticks()) <= 6, "over many decades"
    plt.close()


def test_spectra_get_a_picture_of_their_own(tmp_path: Path) -> None:
    records = [
        {
            "step": s,
            "sharpness/lambda_max": 2.0,
            "spectrum/nodes": [-1.0, 0.0, 2.0],
            "spectrum/weights": [0.1, 0.8, 0.1],
        }
        for s in range(3)
    ]
    draw(records, "title", tmp_path)
    assert float(np.std(plt.imread(tmp_path / "spectrum.png"))) > 0.01


def test_adams_picture_has_the_distance_on_a_logarithmic_axis() -> None:
    records = [
        {"step": i, "edge/distance": 10.0 ** (i / 10 - 3), "edge/preconditioned_sharpness": 1.0}
        for i in range(40)
    ]
    axis = plt.figure().subplots()
    _distance(axis, records)
    assert axis.get_yscale() == "log"
    assert axis.get_legend_handles_labels()[1] == ["distance to the edge", "edge of stability"]
    plt.close()


def test_a_series_that_alternates_is_told_from_noise_and_from_a_curve() -> None:
    steps = np.arange(200)
    assert alternates((0.1 * (-1.0) ** steps + 0.001 * steps).tolist())
    late = np.where(steps > 120, 0.1 * (-1.0) ** steps, 0) + 0.01 * steps
    assert alternates(late.tolist()), "in its last part"
    generator = np.random.default_rng(0)
    for _ in range(20):
        assert not alternates(generator.normal(size=200).tolist())
    assert not alternates(np.exp(-steps / 50).tolist()) and not alternates([1.0, -1.0] * 5)


def test_an_alternating_loss_is_drawn_as_two_lines() -> None:
    records = [{"step": i, "train/loss": 1 + 0.1 * (-1) ** i} for i in range(100)]
    axis = plt.figure().subplots()
    _loss(axis, records)
    branches = [np.asarray(line.get_ydata()) for line in axis.lines]
    assert [set(np.round(branch, 6)) for branch in branches] == [{1.1}, {0.9}]
    assert axis.get_legend_handles_labels()[1] == ["train, two branches"]
    plt.close()


def test_what_others_contradict_is_not_shaded_as_at_the_edge() -> None:
    records: list[dict[str, float]] = [
        {"step": step, "sharpness/lambda_max": 24.0, "edge/threshold": 20.0, "edge/distance": 1.2}
        for step in range(4)
    ]
    records[1] |= {"sharpness/held_out": 2.0, "sharpness/held_out_error": 1.0}
    records[2] |= {"sharpness/held_out": 18.0, "sharpness/held_out_error": 1.0}  # within two
    axis = plt.figure().subplots()
    _shade(axis, records)
    assert [(p.get_x(), p.get_width()) for p in axis.patches] == [(0, 1), (2, 1)]  # type: ignore[attr-defined]
    plt.close()
