"""`python -m optbench.measure`."""

import json

import pytest

from optbench import lab
from optbench.errors import UserError
from optbench.lab.measure_command import COMMAND, measure


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> lab.Run:
    words = ["task=digits", "task.train_size=60", "model.widths=[8]", "probes=none", *lab.QUIET]
    folder = tmp_path_factory.mktemp("results")
    return lab.start(*words, results_dir=folder).train(keep_steps=[2], steps=4)


def test_it_prints_a_table_and_writes_json(
    run: lab.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    names = "sharpness,weight_norm,path_norm"
    assert measure(COMMAND.read([str(run.folder), f"measures={names}", "steps=kept"])) == 0
    said = capsys.readouterr().out
    assert "weight_norm" in said and "step 2" in said and "step 4" in said
    assert "path_norm: a path norm is of linear layers and ReLUs" in said
    assert all(len(line) <= 80 for line in said.splitlines() if "│" in line)
    content = json.loads((run.folder / "measures.json").read_text())
    assert list(content) == ["2", "4"]
    expected = lab.measure(run.at(step=2), ["sharpness"])["sharpness"].value
    assert content["2"]["sharpness"]["value"] == pytest.approx(expected)
    assert content["4"]["path_norm"]["value"] is None and content["4"]["path_norm"]["reason"]


def test_it_lists_what_it_can_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(COMMAND.read(["list=true"])) == 0
    said = capsys.readouterr().out
    assert "λ₁(∇²L(w))" in said and "invariant under rescaling" in said


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "name a run folder or more"),
        (["RUN", "measures=sharpnes"], "Did you mean sharpness"),
        (["RUN", "steps=3"], "has not kept a checkpoint of step 3"),
        (["RUN", "steps=x"], "steps must be numbers, last or kept, got x"),
        (["nowhere"], "is no run folder"),
    ],
)
def test_what_cannot_be_is_refused(run: lab.Run, words: list[str], why: str) -> None:
    given = [str(run.folder) if word == "RUN" else word for word in words]
    with pytest.raises(UserError, match=why):
        measure(COMMAND.read(given))
