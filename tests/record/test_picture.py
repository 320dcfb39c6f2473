from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from optbench.record.picture import _loss, _sharpness, draw, series


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
    assert {"2", "3", "4"} <= {tick.get_text() for tick in axis.get_yticklabels(minor=True)}
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
