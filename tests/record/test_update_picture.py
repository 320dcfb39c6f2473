"""`updates.png`: what `probes=dynamics` measures is drawn where it was measured."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from optbench.record.picture import draw, pictures
from optbench.record.update_picture import (
    _kinds_of_sharpness,
    _noise,
    _predicted,
    alignment,
    decades_about_0,
)
from tests.conftest import Command

UPDATE = {"update/predicted_change": -0.5, "update/loss_change": -0.4}


def test_alignment_is_over_the_sharpness_at_the_weights_that_the_update_left() -> None:
    records = [
        {"step": 0, "sharpness/lambda_max": 4.0},
        {"step": 1, "update/sharpness": 2.0, "sharpness/lambda_max": 100.0},
        {"step": 2, "update/sharpness": 25.0, "sharpness/lambda_max": -1.0},
        {"step": 3, "update/sharpness": 1.0},
    ]
    assert alignment(records, "update/sharpness") == ([1, 2], [0.5, 0.25])
    assert alignment(records[1:2], "update/sharpness") == ([], [])


def test_an_update_is_a_point_at_its_prediction_and_what_it_was() -> None:
    axis = plt.figure().subplots()
    _predicted(axis, [{"step": 1, **UPDATE}, {"step": 2}, {"step": 3, **UPDATE, "other": 1.0}])
    offsets = np.asarray(axis.collections[0].get_offsets())
    assert offsets.tolist() == [[-0.5, -0.4], [-0.5, -0.4]]
    ends = axis.lines[0].get_xydata()
    assert np.asarray(ends).tolist() == [[-0.5, -0.5], [-0.4, -0.4]]
    plt.close()


def test_changes_over_many_decades_have_few_ticks_none_of_them_near_0() -> None:
    assert decades_about_0(0.02, 0.5) == [-0.1, 0.0, 0.1]
    assert decades_about_0(1.0, 1000.0) == [-1000.0, -10.0, 0.0, 10.0, 1000.0]
    changes = [*(-(10.0 ** -np.arange(1.0, 8.0))), 1e-4, 1e-4, 1e-4]
    rows = [{"step": i, **dict.fromkeys(UPDATE, float(c))} for i, c in enumerate(changes)]
    axis = plt.figure().subplots()
    _predicted(axis, rows)
    assert axis.get_xticks().tolist() == axis.get_yticks().tolist()
    assert min(abs(tick) for tick in axis.get_xticks() if tick) >= 1e-4 and 0 in axis.get_xticks()
    plt.close()


def test_the_edge_stands_beside_sharpness_only_where_it_is_on_that() -> None:
    one = {"step": 0, "sharpness/lambda_max": 5.0, "edge/threshold": 6.0}
    for more, expected in (({}, True), ({"edge/preconditioned_sharpness": 2.0}, False)):
        axis = plt.figure().subplots()
        _kinds_of_sharpness(axis, [one | more | {"update/critical_sharpness": 4.0}])
        labels = axis.get_legend_handles_labels()[1]
        assert ("edge of stability" in labels) is expected and len(labels) == 2 + expected
        plt.close()


def test_an_interval_is_a_band() -> None:
    rows = [
        {"step": i, "noise/scale": 2.0, "noise/scale_low": 1.0, "noise/scale_high": 4.0}
        for i in (0, 1)
    ]
    axis = plt.figure().subplots()
    _noise(axis, rows)
    [path] = axis.collections[0].get_paths()
    assert {float(y) for _, y in np.asarray(path.vertices)} == {1.0, 4.0}
    plt.close()


@pytest.mark.parametrize(
    "record",
    [UPDATE, {"noise/scale": 0.0}, {"batch/sharpness": -1.0}, {"update/critical_sharpness": 3.0}],
)
def test_any_part_of_it_can_be_drawn_alone(tmp_path: Path, record: dict[str, Any]) -> None:
    records = [{"step": 1, **record}]
    assert pictures(records) == ("dynamics.png", "updates.png")
    draw(records, "title", tmp_path)
    assert float(np.std(plt.imread(tmp_path / "updates.png"))) > 0.01
    assert pictures([{"step": 1, "train/loss": 1.0}]) == ("dynamics.png",)


def test_a_run_with_the_probes_of_dynamics_has_the_picture(optbench: Command) -> None:
    words = ("task=quadratic", "steps=12", "probes=dynamics", "picture=true")
    folder = optbench(*words).folder
    assert (folder / "updates.png").is_file()
    (folder / "updates.png").unlink()
    optbench(*words)  # finished: it only completes what is missing
    assert (folder / "updates.png").is_file()
