"""Who is ranked, who is not and why, and what is said of it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optbench.errors import UserError
from optbench.leaderboard import tables
from optbench.leaderboard.board import Board, make_board
from optbench.leaderboard.entrants import admit
from optbench.leaderboard.run_line import Run, read_line
from optbench.leaderboard.scores import cost_to_target
from optbench.leaderboard.tuned import read_more_points
from optbench.leaderboard.words import words
from optbench.protocol.suite import FINAL, Suite
from tests.leaderboard.fields import entrant, run, suite

SUITE = suite()
RNG = np.random.default_rng(0)


def _noisy(level: float, of: Suite = SUITE, spread: float = 0.02) -> np.ndarray:
    return np.clip(
        level + spread * RNG.normal(size=(len(of.tasks), len(of.final_seeds))), 0.01, 0.99
    )


def _board(runs: list[Run], of: Suite = SUITE) -> Board:
    board = make_board(of, admit(of, runs))
    return replace(board, words=words(board))


def test_the_better_one_is_first_and_sure_of_it() -> None:
    board = _board([*entrant(SUITE, "bad", _noisy(0.6)), *entrant(SUITE, "good", _noisy(0.1))])
    assert [(s.name, s.rank, s.ranks) for s in board.standings] == [
        ("good", 1, (1, 1)),
        ("bad", 2, (2, 2)),
    ]
    assert board.pairs["good", "bad"].wins == 1 and board.adjusted["good", "bad"] < 0.01
    assert board.words[0] == "good is first, and sure to be ahead of every other entrant."
    assert board.standings[0].score.value == pytest.approx(0.9, abs=0.02)


def test_equals_are_said_to_be_equal() -> None:
    board = _board(
        [
            *entrant(SUITE, "a", _noisy(0.3, spread=0.1)),
            *entrant(SUITE, "b", _noisy(0.3, spread=0.1)),
        ]
    )
    assert all(s.ranks == (1, 2) for s in board.standings)
    assert "it cannot be told apart from" in board.words[0]


def test_divergences_rank_last_and_are_neither_dropped_nor_padded() -> None:
    lost = {(t, s): True for t in range(3) for s in range(2)}  # half of the runs
    runs = [*entrant(SUITE, "wild", 0.01, lost), *entrant(SUITE, "tame", 0.9)]
    board = _board(runs)
    last = board.standings[-1]
    assert (last.name, last.score.value, last.diverged) == ("wild", -math.inf, 0.5)
    assert "diverged in 6 of 12 runs" in tables.markdown(board)
    assert ",-inf," in tables.comma_separated(board)
    row = next(r for r in board.rows if r.optimizer == "wild")
    assert row.metrics["test/error"].high == math.inf and row.score.count(-math.inf) == 2


def test_time_to_target_is_of_the_first_measurement_below_it_and_a_miss_is_infinite() -> None:
    own = run(SUITE, "a", "task0", FINAL, 1, 0, error=0.0)  # 1, 0.75, 0.5, 0.25, 0
    assert cost_to_target(SUITE, own, 0.5, "cost/gradients") == 50
    assert cost_to_target(SUITE, own, 0.49, "cost/gradients") == 75
    assert cost_to_target(SUITE, own, -1, "cost/gradients") == math.inf
    board = _board([*entrant(SUITE, "fast", 0.0), *entrant(SUITE, "never", 0.9)])
    hit = {s.name: s.hit_rate for s in board.standings}
    assert hit == {"fast": 1.0, "never": 0.0}
    assert board.profiles["never"] == [0.0] * 25 and board.profiles["fast"] == [1.0] * 25


UNLIKE: dict[str, dict[str, Any]] = {
    "another data hash": {"data_hash": "other"},
    "another hash of the initial weights": {"init_hash": "other"},
    "another initial loss": {"initial_loss": 2.4},
    "another configuration (budget, model, data or schedule)": {"problem": "other"},
    "of version 2, and this board is of version 1": {"version": 2},
    "of another simulated than this one": {"digest": "0123456789abcdef"},
    "not finished (running)": {"status": "running"},
    "done after 99 of 100 steps": {"step": 99},
    "unverified data": {"checked": False},
    "without test/error": {"last": {"val/loss": 0.1}},
    "whose command is not the protocol's": {"command": ["optimizer=a", "steps=1000000"]},
}


@pytest.mark.parametrize("why", UNLIKE)
def test_what_is_not_alike_is_not_ranked_and_says_why(why: str) -> None:
    odd = [replace(r, **UNLIKE[why]) for r in entrant(SUITE, "odd", 0.0)]
    runs = [*entrant(SUITE, "a", 0.2), *entrant(SUITE, "b", 0.3), *odd]
    board = _board(runs)
    assert [s.name for s in board.standings] == ["a", "b"]
    assert why in "; ".join(board.admitted.refused["odd"])
    assert why in tables.markdown(board).replace("\\", "")


def test_a_missing_run_a_double_one_and_another_point_than_the_selected_are_refused() -> None:
    whole = entrant(SUITE, "a", 0.2)
    board = _board([*whole[1:], *entrant(SUITE, "b", 0.3)])
    assert board.admitted.refused["a"] == ["unfinished: 3 of 4 tuning runs"]
    board = _board([*whole[:-1], *entrant(SUITE, "b", 0.3)])
    assert board.admitted.refused["a"] == ["unfinished: 11 of 12 final runs"]
    board = _board([*whole, replace(whole[-1], name="again"), *entrant(SUITE, "b", 0.3)])
    assert "two runs fill one place" in board.admitted.refused["a"][0]
    best = whole[-1]
    cheat = run(SUITE, "a", best.task, FINAL, 0, best.seed, 0.2)
    board = _board([*whole[:-1], cheat, *entrant(SUITE, "b", 0.3)])
    assert board.admitted.refused["a"] == ["reports point 0 on task2, where tuning selects point 1"]


def test_what_beats_a_provable_floor_raises_an_alarm() -> None:
    of = suite(floor=0.1, floor_slack=0.02)
    board = _board([*entrant(of, "a", 0.09), *entrant(of, "b", 0.3)], of)
    assert not board.admitted.alarms
    board = _board([*entrant(of, "a", 0.07), *entrant(of, "b", 0.3)], of)
    assert "below the 0.1 that no learner can beat" in board.admitted.alarms[0]
    assert "**ALARM**" in tables.markdown(board)


def test_nobody_or_one_alone_makes_a_board_too() -> None:
    assert _board([]).words == ["Nobody is ranked: see who is listed, and why."]
    assert "alone" in _board(entrant(SUITE, "a", 0.2)).words[0]
    assert "# Leaderboard" in tables.markdown(_board([]))


def test_how_sure_names_what_the_ranking_depends_on() -> None:
    errors = np.full((3, 4), 0.3)
    errors[0] = 0.0
    board = _board(
        [*entrant(SUITE, "a", errors), *entrant(SUITE, "b", 0.25), *entrant(SUITE, "c", 0.5)]
    )
    choices = {r.choice: r for r in board.robust}
    assert {
        "gradients to the easy target",
        "gradients to the hard target",
        "without the task task0",
    } <= choices.keys()
    assert {
        "best of 1 tuning point by validation",
        "best of 2 tuning points by validation",
    } <= choices.keys()
    assert "mean rank without c" in choices
    assert choices["without the task task0"].first == ["b"]


@given(st.permutations(range(4)))
@settings(max_examples=4, deadline=None)
def test_the_order_in_which_entrants_come_changes_nothing(order: list[int]) -> None:
    levels = {"a": 0.2, "b": 0.21, "c": 0.4, "d": 0.4}
    rng = np.random.default_rng(1)
    groups = [
        entrant(SUITE, name, level + 0.05 * rng.random((3, 4))) for name, level in levels.items()
    ]
    usual = _board([r for group in groups for r in group])
    other = _board([r for i in order for r in groups[i]])
    assert other.standings == usual.standings and other.words == usual.words


def test_a_run_survives_its_line() -> None:
    own = entrant(SUITE, "a", 0.2)[-1]
    assert read_line(own.line()) == own and read_line(own.line()).line() == own.line()


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a|b\nc", "=cmd()", "[x](javascript:alert(1))"]
)
def test_a_hostile_name_is_but_a_name(name: str) -> None:
    runs = [*entrant(SUITE, name, 0.2), *entrant(SUITE, "b", 0.3)]
    runs = [replace(r, local=True) for r in runs]
    board = _board(runs)
    text, lines = tables.markdown(board), tables.comma_separated(board).splitlines()
    assert "<script" not in text and "](javascript" not in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("| 1 |")}) == 1
    assert not any(cell.startswith("=") for line in lines for cell in line.split(","))


def _stuck_board() -> Board:
    """Point 1 of 8 is the best of `a` and reaches nothing; `b` learns at its highest rate."""
    of = suite(points=8)
    runs = []
    for name, reach in (("a", 0.95), ("b", 0.3)):
        for own in entrant(of, name, 0.5):
            best = own.point == 7
            last = dict(own.last) | {"val/error": 0.1, "train/error": 0.0 if best else 0.9}
            last["val/loss"] = reach if best else 0.99
            runs.append(replace(own, last=last, local=True))
    return make_board(of, admit(of, runs))


def test_a_best_point_at_the_edge_of_what_was_tried_is_said() -> None:
    board = _stuck_board()
    for found in board.tuned:
        assert found.point == 7 and found.at_edge == {"lr": "greatest"}
    lines = " ".join(words(board))
    assert "the greatest lr of the 8 values tried" in lines and "a (2 of 2 tasks)" in lines
    assert "lr 0.8 ⚠ greatest" in tables.markdown(board)


def test_a_best_point_in_the_middle_is_not_at_the_edge() -> None:
    of = suite(points=4)
    runs = [
        replace(own, last=dict(own.last) | {"val/loss": abs(own.point - 2.0)}, point=own.point)
        if own.phase == "tune"
        else run(of, "a", own.task, "final", 2, own.seed, 0.2)
        for own in entrant(of, "a", 0.2)
    ]
    board = make_board(of, admit(of, [replace(own, local=True) for own in runs]))
    assert {found.point for found in board.tuned} == {2}
    assert all(not found.at_edge for found in board.tuned)
    assert "⚠ " not in "".join(map("".join, tables.tuned_rows(board)))


def _more(*rows: str) -> str:
    return "task,optimizer,space,point,select,train_error,settings\n" + "\n".join(rows) + "\n"


BLAMED = {
    "Whether the 8 points or the search space are to blame has not been tried": None,
    "The budget of 8 points is to blame for a (point 3 is the first to reach it)": _more(
        *[f"task0,a,declared,{p},{0.7 if p == 2 else 0.99},0,lr=1" for p in range(4)]
    ),
    "Not the budget is to blame for a: none of 4 points": _more(
        *[f"task0,a,declared,{p},0.99,0,lr=1" for p in range(4)]
    ),
    "The search space is, for a (point 2 is the first to reach it) of a wider one": _more(
        *[f"task0,a,declared,{p},0.99,0,lr=1" for p in range(4)],
        *[f"task0,a,wider,{p},{0.7 if p == 1 else ''},0,lr=1" for p in range(4)],
    ),
    "Nor does any of 4 points of a wider space help a": _more(
        *[f"task0,a,{space},{p},0.99,0,lr=1" for space in ("declared", "wider") for p in range(4)]
    ),
}


@pytest.mark.parametrize("said", BLAMED)
def test_who_never_leaves_the_start_is_said_with_what_is_to_blame(
    said: str, tmp_path: Path
) -> None:
    board, text = _stuck_board(), BLAMED[said]
    if text is not None:
        (tmp_path / "more_points").mkdir()
        (tmp_path / "more_points" / "simulated-v1.csv").write_text(text)
    lines = words(board, read_more_points(tmp_path, board.suite))
    [line] = [line for line in lines if "on task0 no tuning point" in line]
    assert "no tuning point of a reaches val/loss ≤ 0.8" in line and said in line
    assert "2 of these 8 runs" not in line and "1 of these 8 runs fit their training set" in line


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", _more("task0,a,declared,x,1,1,")])
def test_a_damaged_table_of_more_points_takes_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "more_points").mkdir()
    (tmp_path / "more_points" / "simulated-v1.csv").write_text(text)
    if not text:
        assert read_more_points(tmp_path, suite()) == {}
        return
    with pytest.raises(UserError, match="is not a table of tuning points"):
        read_more_points(tmp_path, suite())


def test_divergences_are_counted_and_never_shown_as_infinite() -> None:
    of = suite()
    runs = entrant(of, "a", 0.2) + entrant(
        of, "b", 0.3, {(0, s): True for s in range(4)} | {(1, 0): True, (1, 1): True, (1, 2): True}
    )
    runs += entrant(of, "c", 0.3, {(0, 0): True})
    board = make_board(of, admit(of, [replace(own, local=True) for own in runs]))
    cells = {(r.optimizer, r.task): tables.task_cells(r)[2] for r in board.rows}
    assert cells["b", "task0"] == "diverged in 4 runs"
    assert cells["b", "task1"] == "diverged in 3 of 4 runs [0.3, –]"
    assert cells["c", "task0"] == "0.3 [0.3, diverged in 1 run]"
    text = tables.markdown(board)
    assert "∞ [" not in text and "−∞" not in text
    assert "without bound: a" not in text and "b diverged in 7 runs" in text


def test_a_metric_that_a_task_lacks_is_not_measured_though_a_run_diverged() -> None:
    of = suite()
    runs = [
        replace(own, local=True, last={k: v for k, v in own.last.items() if k != "test/loss"})
        for own in entrant(of, "a", 0.2, {(0, 0): True})
    ]
    board = make_board(of, admit(of, runs))
    assert {tables.task_cells(r)[1] for r in board.rows} == {"–"}
