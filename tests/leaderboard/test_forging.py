"""Nobody is ranked who was not re-run: ways that have been tried to get onto the board."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from optbench.errors import UserError
from optbench.launch.local import LocalLauncher
from optbench.leaderboard import marks, verify
from optbench.leaderboard.__main__ import main
from optbench.leaderboard.entrants import Field, admit
from optbench.leaderboard.entries import ENTRIES, read_entries
from optbench.leaderboard.marks import Mark, add_mark, own_marks, read_marks
from optbench.leaderboard.results_folder import read_results
from optbench.leaderboard.run_line import Run
from optbench.leaderboard.verify import compare, unverified
from optbench.protocol.suite import FINAL
from tests.leaderboard.fields import entrant, run, suite

SUITE = suite()
HONEST = {"adam": 0.3, "sgd": 0.4}


def _write(results: Path, stem: str, runs: Iterable[Run], label: str = SUITE.label) -> None:
    file = results / ENTRIES / label / f"{stem}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(own.line() + "\n" for own in runs))


def _mark(results: Path, *names: str, agreed: bool = True) -> None:
    for entry in read_entries(results):
        if entry.optimizer in names:
            mark = Mark(f"{entry.label}/{entry.optimizer}", agreed, 12, {})
            add_mark(own_marks(), entry.digest, mark)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two honest entries, verified."""
    for name, error in HONEST.items():
        _write(tmp_path, name, entrant(SUITE, name, error))
    _mark(tmp_path, *HONEST)
    return tmp_path


def _admitted(results: Path) -> tuple[Field, str]:
    runs, passed_over, _ = read_results(results)
    return admit(SUITE, runs, unverified(results, SUITE)), "\n".join(
        ": ".join(reason) for reason in passed_over
    )


def _ranked(results: Path) -> list[str]:
    return [own.name for own in _admitted(results)[0].entrants]


def test_lines_under_the_name_of_another_are_not_read(results: Path) -> None:
    ghost = entrant(SUITE, "ghost", 0.0)
    better = [replace(own, name=f"{own.name}-better") for own in entrant(SUITE, "adam", 0.0)]
    _write(results, "evil", [*ghost, *better])
    admitted, said = _admitted(results)
    assert [own.name for own in admitted.entrants] == ["adam", "sgd"] and not admitted.refused
    assert "line 1: of the optimizer ghost, which has no place in simulated-v1/evil.jsonl" in said


def test_a_file_in_the_folder_of_another_suite_is_not_read(results: Path) -> None:
    _write(
        results,
        "adam",
        [replace(own, name=f"x{own.name}") for own in entrant(SUITE, "adam", 0.0)],
        "other-v1",
    )
    assert (
        "of the suite simulated-v1, which has no place in other-v1/adam.jsonl"
        in _admitted(results)[1]
    )
    assert _ranked(results) == ["adam", "sgd"]


def test_the_names_of_anothers_runs_evict_nobody(results: Path) -> None:
    names = [own.name for own in entrant(SUITE, "adam", 0.3)]
    mine = [
        replace(own, name=name)
        for own, name in zip(entrant(SUITE, "mine", 0.0), names, strict=True)
    ]
    _write(results, "mine", mine)
    admitted, said = _admitted(results)
    assert [own.name for own in admitted.entrants] == ["adam", "sgd"]
    assert (
        "simulated-v1/mine.jsonl: 16 of its runs are in simulated-v1/adam.jsonl too, such as "
        in said
    )


def test_of_two_unverified_files_that_claim_one_run_neither_has_it(tmp_path: Path) -> None:
    own = entrant(SUITE, "a", 0.1)
    _write(tmp_path, "a", own)
    _write(
        tmp_path,
        "b",
        [
            replace(r, name=own[0].name if i == 0 else r.name)
            for i, r in enumerate(entrant(SUITE, "b", 0.1))
        ],
    )
    runs, passed_over, _ = read_results(tmp_path)
    assert own[0].name not in {r.name for r in runs} and len(runs) == 30
    assert [name for name, _ in passed_over] == ["simulated-v1/a.jsonl", "simulated-v1/b.jsonl"]


def test_marks_that_come_with_the_results_count_for_nothing(results: Path) -> None:
    _write(results, "evil", entrant(SUITE, "evil", 0.0))
    [digest] = [entry.digest for entry in read_entries(results) if entry.optimizer == "evil"]
    mark = asdict(Mark("simulated-v1/evil", True, 12, {}))
    for place in (ENTRIES + "/" + SUITE.label, ENTRIES, "."):
        for content in ({digest: mark}, {"evil": {"file": digest, "agreed": True, "runs": {}}}):
            (results / place / "verified.json").write_text(json.dumps(content))
            admitted, _ = _admitted(results)
            assert (
                "unverified: `python -m optbench.leaderboard verify=unverified`"
                in admitted.refused["evil"][-1]
            )


def test_a_mark_is_of_the_bytes_that_were_verified(results: Path) -> None:
    _write(results, "adam", entrant(SUITE, "adam", 0.0))
    assert _ranked(results) == ["sgd"]
    _write(results, "adam", entrant(SUITE, "adam", HONEST["adam"]))
    assert _ranked(results) == ["adam", "sgd"]
    _mark(results, "sgd", agreed=False)
    assert _admitted(results)[0].refused["sgd"] == ["re-run, and found to differ"]


def test_one_run_folder_does_not_vouch_for_a_whole_file(results: Path) -> None:
    evil = entrant(SUITE, "evil", 0.0)
    _write(results, "evil", evil[:-1])
    runs = [*read_results(results)[0], replace(evil[-1], local=True)]
    admitted = admit(SUITE, runs, unverified(results, SUITE))
    assert [own.name for own in admitted.entrants] == [
        "adam",
        "sgd",
    ] and "unverified" in admitted.refused["evil"][0]
    assert (
        len(
            admit(
                SUITE, [replace(own, local=True) for own in evil], unverified(results, SUITE)
            ).entrants
        )
        == 1
    )


def test_a_crowd_of_unverified_files_does_not_say_what_is_usual(results: Path) -> None:
    for i in range(5):
        _write(results, f"sock{i}", entrant(SUITE, f"sock{i}", 0.0, data_hash="other"))
    admitted, _ = _admitted(results)
    assert [own.name for own in admitted.entrants] == ["adam", "sgd"]
    assert "another data hash" in admitted.refused["sock0"][0]


@pytest.mark.parametrize(
    "name",
    [
        "../../escaped",
        "/etc/x",
        "..",
        ".",
        "",
        "a/b",
        "a\\b",
        "a\0b",
        "a b",
        "-a",
        "a.b",
        "x" * 101,
    ],
)
def test_no_name_leads_out_of_the_entries(
    name: str, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a run folder of such a name get as far as `enter`."""
    line = json.loads(entrant(SUITE, "a", 0.0)[0].line())
    for key in ("optimizer", "suite", "task"):
        (results / ENTRIES / SUITE.label / "a.jsonl").write_text(
            json.dumps(line | {key: name}) + "\n"
        )
        said = _admitted(results)[1]
        assert f"line 1: {key} must be " in said and said.isprintable()
    monkeypatch.setattr(
        sys,
        "argv",
        ["leaderboard", f"results_dir={results}", "suite=smoke", f"enter={name or ','}"],
    )
    before = sorted(results.parent.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and sorted(results.parent.rglob("*")) == before


def test_all_finals_are_run_again_or_a_sample_that_nobody_can_foresee(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def again(who: str, runs: Iterable[Run], *_: Any) -> dict[str, Run]:
        asked.append([own.name for own in runs])
        return {own.name: own for own in runs}

    monkeypatch.setattr(verify, "_again", again)
    entries = [entry for entry in read_entries(results) if entry.optimizer == "adam"]
    path = results / "state" / "marks.json"
    found = verify.verify(SUITE, entries, None, LocalLauncher(1), results, path)
    assert len(asked[0]) == len(found["adam"]) == 12
    drawn = set()
    for _ in range(12):
        verify.verify(SUITE, entries, 2, LocalLauncher(1), results, path)
        drawn.add(tuple(asked[-1]))
        assert len(asked[-1]) == 2
    assert len(drawn) > 3  # of 132: alike in all twelve once in 10^20
    [mark] = json.loads(path.read_text()).values()
    assert mark["finals"] == 12 and len(mark["runs"]) == 2 and mark["entry"] == "simulated-v1/adam"


def test_the_spread_that_close_is_measured_by_is_of_the_re_runs() -> None:
    """With one wild claim an entrant could widen its own."""
    claims = [
        run(SUITE, "a", "task0", FINAL, 1, seed, error)
        for seed, error in enumerate((0.0, 0.3, 0.31, 0.32))
    ]
    again = {
        own.name: replace(own, last=dict(own.last) | {"test/error": 0.3 + 0.01 * own.seed})
        for own in claims
    }
    wide = compare(SUITE, claims[0], again[claims[0].name], claims)
    real = compare(SUITE, claims[0], again[claims[0].name], verify._peers(claims[0], claims, again))
    assert (wide.verdict, real.verdict) == ("close", "test/error 0 then, 0.3 now")


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"a": 1}', '{"' + "0" * 64 + '": {"agreed": 1}}', "\\ud800", "[" * 10_000],
)
def test_damaged_marks_of_ones_own_are_told_in_a_line(content: str) -> None:
    own_marks().parent.mkdir(parents=True, exist_ok=True)
    own_marks().write_text(content)
    with pytest.raises(UserError) as error:
        read_marks()
    assert "marks" in str(error.value) and str(error.value).isprintable()


def test_what_comes_with_optbench_is_the_committed_entries() -> None:
    results = marks.SHIPPED.parents[2] / "results"
    entries = {entry.digest: f"{entry.label}/{entry.optimizer}" for entry in read_entries(results)}
    assert entries == {digest: mark.entry for digest, mark in read_marks().items() if mark.agreed}
