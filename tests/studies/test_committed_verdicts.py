"""The committed verdicts are what the declared rules compute from the committed tables."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from optbench.studies.conduct import read_table
from optbench.studies.declaration import HISTORY, read_study
from optbench.studies.frame import REFUTED, SUPPORTED
from optbench.studies.verdict_page import render

RESULTS = Path(__file__).resolve().parents[2] / "results" / "studies"
COMMITTED = sorted(path.parent.name for path in RESULTS.glob("*/verdict.json"))


@pytest.mark.parametrize("name", [name for name in COMMITTED if "-" not in name])
def test_verdicts_follow_from_the_table(name: str) -> None:
    folder, declared = RESULTS / name, read_study(name)
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["digest"] == declared.digest, "the declaration has changed: run the study again"
    findings = {f.hypothesis: f for f in declared.study.judge(read_table(folder / "table.csv"))}
    for h in verdict["hypotheses"]:
        finding = findings[h["name"]]
        assert (h["verdict"], h["n"]) == (finding.verdict, finding.n)
        ends = (finding.estimate.value, finding.estimate.low, finding.estimate.high)
        # other versions of numpy and scipy sum in another order
        said = [math.nan if h[end] is None else h[end] for end in ("value", "low", "high")]
        finite = [end if math.isfinite(end) else math.nan for end in ends]
        np.testing.assert_allclose(said, finite, rtol=1e-6)
    assert verdict.get("errata", []) == list(declared.study.declaration.errata), "study overview"
    assert (folder / "verdict.md").read_text() == render(verdict)
    for figure in verdict["figures"]:
        assert (folder / f"{figure}.png").is_file() and (folder / f"{figure}.svg").is_file()


@pytest.mark.parametrize("name", [name for name in COMMITTED if "-" not in name])
def test_its_history_is_told_and_no_planted_world_fooled_it(name: str) -> None:
    verdict = json.loads((RESULTS / name / "verdict.json").read_text())
    history = [json.loads(line) for line in (RESULTS / name / HISTORY).read_text().splitlines()]
    study = read_study(name).study
    assert verdict["digest"] in [entry["digest"] for entry in history]
    # a declaration that was changed after runs were seen is told to the reader
    assert ("it is declaration" in verdict["declared"]) == (len(history) > 1)
    planted = {h["name"]: h["planted"] for h in verdict["hypotheses"]}
    for world, right in study.worlds.items():
        for hypothesis, there in right.items():
            counts = planted[hypothesis][world]
            wrong = {SUPPORTED: REFUTED, REFUTED: SUPPORTED}[there]
            assert counts.get(wrong, 0) <= 0.2 * sum(counts.values()), (world, hypothesis, counts)
