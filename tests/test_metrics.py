"""The one home of metrics: every recorded name is in it, and the run folder's table is made from it."""

from pathlib import Path

import pytest

from docs.build import render_metrics
from optbench import metrics
from optbench.record.folder import is_timing
from tests.conftest import Command

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("probes", ["default", "dynamics", "spectrum"])
def test_every_metric_that_a_run_records_has_an_entry(
    optbench: Command, tmp_path: Path, probes: str
) -> None:
    command = ["task=digits_small", "model.widths=[8]", f"probes={probes}", "optimizer=adam"]
    outcome = optbench(*command, "steps=25")
    assert outcome.code == 0, outcome.err
    lines = "".join(f.read_text() for f in tmp_path.glob("results/runs/*/*.jsonl"))
    names = {name for name in lines.split('"') if "/" in name}
    assert {name for name in names if metrics.described(name) is None} == set()
    assert metrics.SHARPNESS in names


def test_names_with_a_number_a_layer_or_an_interval_are_described() -> None:
    for name, entry in {
        "sharpness/lambda_7": metrics.SHARPNESS_K,
        "edge/preconditioned_lambda_2": metrics.PRECONDITIONED_K,
        "layers/0.weight/x/angle": metrics.ANGLE,
        "spectrum/trace_low": metrics.TRACE,
    }.items():
        found = metrics.described(name)
        assert found is not None and found.name == entry
    assert metrics.described("mine/own") is None
    assert metrics.numbered(metrics.SHARPNESS_K, 2) == "sharpness/lambda_2"


def test_what_the_clock_says_is_what_the_record_takes_for_timings() -> None:
    assert [m.name for m in metrics.METRICS.values() if m.clock != is_timing(m.name)] == []


def test_what_a_threshold_is_on() -> None:
    thinned = [{metrics.SHARPNESS: 1.0}, {metrics.EDGE_THRESHOLD: 2.0, metrics.NORM_SHARPNESS: 3.0}]
    assert metrics.threshold_is_on(thinned) == metrics.NORM_SHARPNESS
    assert metrics.threshold_is_on([]) == metrics.SHARPNESS


def test_the_tables_are_made_from_the_entries() -> None:
    assert "\n".join(metrics.table(metrics.HEADLINES)) in (ROOT / "docs/run_folder.md").read_text()
    assert (ROOT / "docs" / "metrics.md").read_text() == render_metrics()
