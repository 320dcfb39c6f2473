"""Two norms among the levers: each planted world is told apart, and fresh seeds are fresh."""

import pytest

from optbench.studies.declaration import read_study
from optbench.studies.frame import REFUTED, SUPPORTED
from optbench.studies.tug_of_war_norms import TugOfWarNorms


def _study() -> TugOfWarNorms:
    study = read_study("tug_of_war_norms").study
    assert isinstance(study, TugOfWarNorms)
    return study


@pytest.mark.parametrize("world", list(TugOfWarNorms.worlds))
def test_planted_worlds_are_told_apart(world: str) -> None:
    study = _study()
    said = {f.hypothesis: f.verdict for f in study.judge(study.planted(world, 78))}
    wrong = {SUPPORTED: REFUTED, REFUTED: SUPPORTED}
    for hypothesis, right in study.worlds[world].items():
        assert said[hypothesis] != wrong[right], (world, said)
    if world in ("fisher_rao", "path_norm", "nothing"):
        for norm in ("fisher_rao", "path_norm"):
            assert said[norm] == study.worlds[world][norm]


def test_no_run_is_one_of_the_first_study() -> None:
    first = {cell.command for cell in read_study("tug_of_war").study.plan("small")}
    own = {cell.command for cell in _study().plan("small")}
    assert len(own) == len(first) == 90 and not own & first
