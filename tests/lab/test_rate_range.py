"""The learning rate range, against 2/λ₁ of a quadratic, where theory and training agree."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from optbench.errors import UserError
from optbench.lab.lr_range_command import COMMAND, draw, find, findings
from optbench.lab.rate_range import NoTheory, Theory, Trial, bracket, search, theory, where_one


def _trial(scale: float, stable: bool = True, rate: float | None = None) -> Trial:
    status = "done" if stable else "diverged"
    return Trial(scale, rate, status, 1.0, 0.5, 2.0, scale / 8, scale / 8, 0, "run")


def test_rates_rise_to_two_unstable_ones_and_then_halve_the_interval() -> None:
    tried = [t.scale for t in search(lambda s: _trial(s, s < 5), 0.1, 1e9, 10.0, 3)]
    middle = math.sqrt(1 * 10)
    upper = math.sqrt(middle * 10)
    last = math.sqrt(middle * upper)
    assert tried == pytest.approx([0.1, 1, 10, 100, middle, upper, last])


def test_one_unstable_rate_below_a_stable_one_ends_what_is_called_stable() -> None:
    trials = [_trial(s, s != 2) for s in (4.0, 1.0, 2.0)]
    stable, unstable = bracket(trials)
    assert stable is not None and unstable is not None
    assert (stable.scale, unstable.scale) == (1, 2)
    assert bracket(trials[:2]) == (trials[0], None)
    assert bracket([trials[2]]) == (None, trials[2])


def test_no_rate_above_the_highest_is_tried() -> None:
    tried = [t.scale for t in search(lambda s: _trial(s), 1.0, 9.0, 3.0, 5)]
    assert tried == pytest.approx([1, 3, 9])


def test_a_run_that_ends_above_its_initial_loss_is_not_stable() -> None:
    assert _trial(1.0).is_stable and not _trial(1.0, stable=False).is_stable
    risen = Trial(1.0, None, "done", 1.0, 1.1, 2.0, 1.0, 1.0, 0, "run")
    assert not risen.is_stable and risen.at == 1.0 and _trial(2.0, rate=0.1).at == 0.1


def test_where_the_distance_is_one() -> None:
    assert where_one([(1.0, 0.1), (100.0, 10.0)]) == pytest.approx(10)
    assert where_one([(1.0, 0.1), (2.0, 0.2)]) == pytest.approx(10)  # beyond the last one
    assert where_one([(1.0, 4.0), (2.0, 8.0)]) == pytest.approx(0.25)  # before the first
    assert where_one([(1.0, 0.25), (4.0, 4.0)]) == pytest.approx(2)  # D ∝ rate²


def test_the_theory_of_few_examples_says_what_others_have() -> None:
    trials = [replace(_trial(s), on_others=0.4 * s / 8) for s in (1.0, 2.0)]
    found = theory(trials, None)  # type: ignore[arg-type]
    assert isinstance(found, Theory) and found.scale == pytest.approx(8)
    assert found.source == (
        "threshold/λ at step 0, λ being that of the examples measured: along its direction others "
        "have 0.4 λ"
    )
    settled = theory([replace(t, measured_at=20) for t in trials], None)  # type: ignore[arg-type]
    assert isinstance(settled, Theory) and settled.source.endswith("others have 0.4 λ")
    of_all = theory([_trial(1.0)], None)  # type: ignore[arg-type]
    assert of_all == Theory(8.0, "threshold/λ at step 0")


@pytest.fixture
def quadratic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _rows(folder: Path) -> list[dict[str, str]]:
    [file] = folder.glob("results/lr_range/*/lr_range.csv")
    return list(csv.DictReader(file.read_text().splitlines()))


@pytest.mark.parametrize(
    ("words", "largest"),
    [
        (("optimizer=sgd",), 2 / 7),
        (("optimizer=momentum",), 2 * 1.9 / 7),
        (("optimizer=sgd", "run.optimizer.weight_decay=3"), 2 / 10),
    ],
)
def test_theory_and_training_agree_on_a_quadratic(
    words: tuple[str, ...], largest: float, quadratic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """λ₁ = 7; η below 2/λ₁, or (2 + 2β)/λ₁, or 2/(λ₁ + weight decay), and no other is stable."""
    spectrum = "run.task.spectrum=[7,3,1]"
    assert (
        find(
            COMMAND.read([*words, "task=quadratic", spectrum, "steps=300", "low=0.3", "halvings=3"])
        )
        == 0
    )
    said = capsys.readouterr().out
    [line] = [line for line in said.splitlines() if line.startswith("by theory: ")]
    theory = float(line.split()[2].rstrip(","))
    assert theory == pytest.approx(largest, rel=5e-3)  # the accuracy of λ₁
    rows = _rows(quadratic)
    stable = [float(row["rate"]) for row in rows if row["stable"] == "true"]
    unstable = [float(row["rate"]) for row in rows if row["stable"] == "false"]
    assert max(stable) < largest * 1.001 and largest * 0.999 < min(unstable)
    assert min(unstable) / max(stable) < 3 ** (1 / 8) * 1.001  # three halvings of a factor 3
    [png] = quadratic.glob("results/lr_range/*/lr_range.png")
    assert said.splitlines()[-1] == str(png.relative_to(quadratic))
    assert float(np.std(plt.imread(png))) > 0.01


def test_an_optimizer_without_a_known_edge_is_told_so(
    quadratic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["optimizer=lbfgs", "task=quadratic", "steps=3", "high=0.1", "halvings=0"]
    assert find(COMMAND.read(words)) == 0
    [line] = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("by theory: ")
    ]
    assert line.startswith("by theory: none, ") and len(line) > 30


def test_a_preconditioner_that_has_to_settle_is_read_at_the_least_rate(
    quadratic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["optimizer=adam", "task=quadratic", "steps=30", "high=1", "halvings=0"]
    assert find(COMMAND.read(words)) == 0
    assert "of the least rate, by proportion" in capsys.readouterr().out
    first = _rows(quadratic)[0]
    assert int(first["measured_first_at_step"]) > 0


def test_what_was_found_is_said_also_where_nothing_was() -> None:
    reason = NoTheory("nobody knows")
    trials = [_trial(1.0, rate=0.1), _trial(2.0, stable=False, rate=0.2)]
    found, theory = findings(trials, Theory(1.5, "here"))
    assert found == "largest stable learning rate found: 0.1 (0.2 is not stable)"
    assert theory == "by theory: 0.15, from here"
    assert "say a higher high=" in findings(trials[:1], reason)[0]
    assert "say a lower low=" in findings(trials[1:], reason)[0]
    assert findings(trials, reason)[1] == "by theory: none, nobody knows"
    assert (
        "scale of the learning rates found"
        in findings([_trial(1.0), _trial(2.0, stable=False)], reason)[0]
    )


@pytest.mark.parametrize("stable", [True, False])
def test_any_range_can_be_drawn(stable: bool, tmp_path: Path) -> None:
    trials = [_trial(s, stable) for s in (1.0, 10.0)]
    for by_theory in (Theory(2.0, "here"), NoTheory("nothing")):
        draw(trials, by_theory, 5, "sgd", tmp_path / "one.png")
        assert float(np.std(plt.imread(tmp_path / "one.png"))) > 0.01


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run.optimizer.scale=2"], "run.optimizer.scale=2 is set by the command itself"),
        (["low=3", "high=2"], "low must be below high, got 3 and 2"),
        (["optimizer=nobody"], "nobody"),
    ],
)
def test_what_cannot_be_is_told(words: list[str], said: str, quadratic: Path) -> None:
    with pytest.raises(UserError, match=said):
        find(COMMAND.read(words))
