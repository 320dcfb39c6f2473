"""The numbers of runs are those of an earlier commit; and what compares them sees what differs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.golden.__main__ import ROOT, differences, digest_of_run

SINCE = (Path(__file__).parent / "SINCE").read_text().strip()
"""The last commit that was to change results."""


@pytest.mark.slow
def test_nothing_has_moved_since_results_were_last_to_change() -> None:
    known = subprocess.run(
        ["git", "-C", str(ROOT), "cat-file", "-e", SINCE], capture_output=True, check=False
    )
    if known.returncode:
        pytest.skip(f"commit {SINCE[:9]} is not in this clone")
    subprocess.run([sys.executable, "-m", "tests.golden", SINCE], cwd=ROOT, check=True)


def _folder(path: Path, metric: float, weight: float) -> Path:
    path.mkdir()
    (path / "metrics.jsonl").write_text(f'{{"step": 0, "train/loss": {metric}}}\n')
    torch.save({"model": {"w": torch.tensor([1.0, weight])}}, path / "checkpoint.pt")
    return path


def test_a_metric_or_a_weight_that_differs_is_seen(tmp_path: Path) -> None:
    same = [digest_of_run(_folder(tmp_path / name, 0.5, 2.0)) for name in ("a", "b")]
    metric = digest_of_run(_folder(tmp_path / "c", 0.5 + 2**-50, 2.0))
    weight = digest_of_run(_folder(tmp_path / "d", 0.5, 2.0 + 2**-22))
    assert same[0] == same[1] and len({same[0], metric, weight}) == 3
    assert differences({"run": same[0]}, {"run": same[1]}) == []
    assert differences({"run": same[0]}, {"run": metric}) == [
        f"run: {same[0]} before, {metric} now"
    ]


def test_what_is_missing_or_failed_on_both_sides_is_no_agreement() -> None:
    failed = "exit code 2: no"
    assert differences({"a": failed}, {"a": failed}) == [f"a: {failed} before, {failed} now"]
    assert len(differences({"a": "0" * 64}, {"b": "0" * 64})) == 2
