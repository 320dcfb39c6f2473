"""What a run's closing lines say of the edge, and how tables and sentences fit a terminal."""

import sys
from io import StringIO
from typing import Any

import numpy as np
import pytest
from rich.table import Table

from optbench.dynamics.run_events import report
from optbench.record.summary import summarise
from optbench.record.terminal import _findings, _try_next, say, show_table


def _summary(lr: "np.ndarray[Any, Any]", ratio: "np.ndarray[Any, Any]") -> dict[str, Any]:
    """The summary of a run that was measured every ten steps."""
    records = [
        {
            "step": 10 * i,
            "batch/loss": 1.0,
            "sharpness/lambda_max": float(r),
            "edge/threshold": float(2 / rate),
            "edge/distance": float(r * rate / 2),
            "edge/lr": float(rate),
        }
        for i, (rate, r) in enumerate(zip(lr, ratio, strict=True))
    ]
    rest = {"status": "done", "steps": 990, "train_seconds": 1.0, "probe_seconds": 1.0}
    return rest | summarise(records) | {"events": report(records)}


def test_a_constant_rate_is_told_with_its_last_its_largest_and_its_plateau() -> None:
    _, *lines = _findings(_summary(np.full(100, 0.1), np.where(np.arange(100) == 50, 25.0, 20.2)))
    assert lines[0].startswith("1.010 of the edge at 20")
    assert lines[1:4] == [
        "at most 1.250 of the edge, at step 500",
        "reached the edge at step 0",
        "plateau at 1.010 of the edge (quartiles 1.010 to 1.010), 100% of the steps at it, 0 catapults",
    ]
    assert not any("annealed" in line for line in lines)


def test_an_annealed_rate_is_not_told_with_the_artefact_of_its_last_step() -> None:
    rate = 0.1 * np.append((1 + np.cos(np.pi * np.arange(99) / 99)) / 2, 1e-9)
    summary = _summary(rate, np.full(100, 22.0))
    _, *lines = _findings(summary)
    assert lines[0].startswith("lr annealed to 1e-10")
    assert lines[1:3] == ["at most 1.100 of the edge, at step 0", "reached the edge at step 0"]
    # from half the way to lr/2, where the cosine's rates are (1 + cos(π/4))/2 = .854 to .5: in
    # between near .69
    assert lines[3].startswith("plateau at 0.7") and "2.2e+10" not in " ".join(lines)
    assert _try_next(summary, 0.1).startswith("schedule=constant")


def test_what_measuring_was_spent_on_is_told_the_dearest_first() -> None:
    summary = _summary(np.full(100, 0.1), np.full(100, 21.0)) | {"probe_seconds": 25.31}
    summary["each_probe_seconds"] = {"sharpness": 7.74, "edge": 17.36, "layers": 0.04}
    assert "training 1.0 s, measuring 25.3 s (edge 17.4, sharpness 7.7)" in _findings(summary)


def test_a_search_that_did_not_converge_is_told() -> None:
    summary = _summary(np.full(100, 0.1), np.full(100, 21.0))
    summary["last"] |= {"sharpness/lambda_max": 21.0, "sharpness/lambda_max_bound": 3.0}
    assert _findings(summary)[0] == "sharpness 21 ± 3"
    summary["last"]["sharpness/converged"] = 0
    assert _findings(summary)[0] == "sharpness 21 ± 3; not every search for it converged"


def test_what_is_so_of_some_examples_is_told_with_what_it_is_on_others() -> None:
    summary = _summary(np.full(100, 0.1), np.full(100, 21.0))
    summary["last"] |= {
        "sharpness/lambda_max_bound": 0.02,
        "sharpness/held_out": 18.25,
        "sharpness/held_out_error": 1.5,
        "edge/held_out": 0.9125,
        "edge/held_out_error": 0.075,
    }
    assert _findings(summary)[:2] == [
        "sharpness 21 ± 0.02 on the examples measured, 18.25 ± 2 along it on others",
        "1.050 of the edge at 20 on the examples measured, 0.9125 ± 0.07 along it on others",
    ]
    summary["status"] = "interrupted"  # the last of each may be of another step
    assert _findings(summary)[:2] == ["sharpness 21 ± 0.02", "1.050 of the edge at 20"]


def test_an_edge_that_few_examples_reached_is_not_told_as_that_of_all() -> None:
    summary = _summary(np.full(100, 0.1), np.full(100, 10.0))
    summary["events"] |= {
        "verdict": "edge reached on the examples measured",
        "first_crossing": 22,
        "max_ratio": 2.2512,
        "max_ratio_at": 78,
        "max_ratio_on_others": 0.3342,
        "max_ratio_on_others_error": 0.047,
    }
    lines = _findings(summary)
    assert lines[2:4] == [
        "at most 2.251 of the edge, at step 78, on the examples measured, 0.3342 ± 0.05 along it "
        "on others",
        "reached the edge at step 22 on the examples measured, but not along the same directions "
        "on others: whether all reach it is undecided",
    ]
    assert _try_next(summary, 0.1).startswith("more examples, such as probes.sharpness.examples=")


def test_one_catapult_is_singular() -> None:
    summary = _summary(np.full(100, 0.1), np.full(100, 21.0))
    for count, text in ((0, "0 catapults"), (1, "1 catapult"), (2, "2 catapults")):
        summary["events"]["catapults"] = [{}] * count
        assert any(line.endswith(text) for line in _findings(summary))


def _ended(status: str, sharpness: float, crossed: int | None) -> dict[str, Any]:
    """A run at lr = 100, whose threshold is 0.02."""
    last = {"edge/lr": 100.0, "edge/threshold": 0.02, "edge/distance": sharpness / 0.02}
    verdict = "edge not reached" if crossed is None else "edge reached"
    events = {"verdict": verdict, "first_crossing": crossed}
    return {"status": status, "steps": 10, "last": last, "events": events}


def test_no_advice_goes_beyond_the_threshold() -> None:
    assert _try_next(_ended("diverged", 6.9, 0), 100.0).startswith(
        "optimizer.lr=0.145, half of what"
    )
    assert _try_next(_ended("diverged", 0.01, None), 100.0).startswith("optimizer.lr=25, a quarter")
    assert _try_next(_ended("done", 6.9, 0), 100.0).startswith(
        "optimizer.lr=0.29, whose threshold is"
    )
    assert _try_next(_ended("done", 0.021, 0), 100.0).startswith("optimizer.lr=50, which doubles")
    assert _try_next(_ended("done", 0.009, None), 100.0).startswith(
        "optimizer.lr=200, which halves"
    )
    assert _try_next(_ended("done", 0.015, None), 100.0) == "steps=20"


class _Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def _wide_table() -> Table:
    table = Table("first", "second", "third")
    table.add_row("a" * 12, "b" * 12, "c" * 12)
    return table


@pytest.mark.parametrize(("columns", "left_out"), [(80, ""), (40, "third"), (25, "second, third")])
def test_a_table_leaves_out_what_a_terminal_has_no_room_for_and_says_so(
    columns: int, left_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", shown := _Terminal())
    show_table(_wide_table(), all_in="the page")
    said = shown.getvalue()
    assert "a" * 12 in said and ("c" * 12 in said) == (not left_out)
    assert " ".join(said.split()).count(f"{left_out}: in the page") == bool(left_out)


def test_a_table_in_a_file_has_every_column(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "25")
    show_table(_wide_table(), width=110, all_in="the page")
    assert "c" * 12 in capsys.readouterr().out


def test_a_sentence_breaks_between_words_in_a_terminal_and_nowhere_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    sentence = "Mean ranks of the [others] change their order."
    say(sentence)
    assert capsys.readouterr().out == f"{sentence}\n"
    monkeypatch.setattr(sys, "stdout", shown := _Terminal())
    say(sentence)
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= 20 and " ".join(lines) == sentence
    shown.truncate(0)
    say(f"- {sentence}")
    first, *others = shown.getvalue().lstrip("\0").splitlines()
    assert first.startswith("- Mean") and all(line.startswith("  ") for line in others)
    shown.truncate(0)
    say("    results/runs/a-name-that-is-longer-than-it")
    assert "results/runs/a-name-that-is-longer-than-it" in shown.getvalue()
