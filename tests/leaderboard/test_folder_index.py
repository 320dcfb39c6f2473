"""The index of run folders: it saves reading, and is used for nothing that may have changed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from optbench.leaderboard import folder_index, results_folder
from optbench.leaderboard.folder_index import index_file, signature
from optbench.leaderboard.results_folder import ANY, OF_A_SUITE, read_folders
from optbench.leaderboard.run_folders import read_run
from tests.leaderboard.fields import entrant, suite
from tests.leaderboard.hostile import write_folder

RUNS = entrant(suite(), "a", 0.2)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run folders that an index knows, however young they are."""
    monkeypatch.setattr(folder_index, "TICK_SECONDS", -1.0)
    for run in RUNS:
        write_folder(tmp_path / "results" / "runs" / run.name, run)
    read_folders(tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the folders that are read, not taken from the index."""
    names: list[str] = []

    def counted(folder: Path, any_run: bool = False) -> object:
        names.append(folder.name)
        return read_run(folder, any_run)

    monkeypatch.setattr(results_folder, "read_run", counted)
    return names


def _index(results: Path) -> Path:
    path = index_file(results, OF_A_SUITE)
    assert path is not None and path.is_file()
    return path


def test_what_is_known_is_not_read_again_and_is_the_same(results: Path, opened: list[str]) -> None:
    again, reasons = read_folders(results)
    assert opened == [] and reasons == []
    _index(results).unlink()
    anew, _ = read_folders(results)
    assert len(opened) == len(RUNS) and again == anew and all(run.local for run in again)
    straight = {run.name: run for run in map(read_run, (results / "runs").iterdir()) if run}
    assert {run.name: run for run in again} == straight


def _same_size_and_time(path: Path) -> None:
    """What a hostile or hasty hand would do: another number, the size and the date put back."""
    before, text = path.stat(), path.read_text()
    assert '"train_seconds": 1.0' in text
    path.write_text(text.replace('"train_seconds": 1.0', '"train_seconds": 9.0'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replace(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name(".new"))
    shutil.rmtree(folder)
    folder.with_name(".new").rename(folder)


CHANGES: dict[str, Callable[[Path], object]] = {
    "touched": lambda f: os.utime(f / "summary.json", (1, 1)),
    "longer": lambda f: (f / "metrics.jsonl").write_text(
        (f / "metrics.jsonl").read_text() + '{"step": 101}\n'
    ),
    "same size and time": lambda f: _same_size_and_time(f / "summary.json"),
    "a file gone": lambda f: (f / "timings.jsonl").unlink(),
    "a file more": lambda f: (f / "digests.json").write_text("{}"),
    "replaced": lambda f: _replace(f),
    "a link": lambda f: f.symlink_to(f.rename(f.parent.parent / "moved")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_has_changed_is_read_anew(
    change: str, results: Path, opened: list[str]
) -> None:
    changed = sorted((results / "runs").iterdir())[3]
    CHANGES[change](changed)
    runs, reasons = read_folders(results)
    assert opened == [changed.name]
    refused = change in ("a file gone", "a link")
    assert len(runs) == len(RUNS) - refused and len(reasons) == refused
    if change == "same size and time":
        assert next(r for r in runs if r.name == changed.name).train_seconds == 9.0


def _cut(text: bytes) -> bytes:
    return text[: len(text) // 2]


def _flipped(text: bytes) -> bytes:
    """A score turned into a better one in each line, the digests left as they were."""
    assert b'"train_seconds":1.0' in text
    return text.replace(b'"train_seconds":1.0', b'"train_seconds":0.1')


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], bool]] = {
    "cut": (_cut, False),
    "numbers changed": (_flipped, True),
    "another code": (lambda t: t.replace(b"\t", b"\t0", 2), True),
    "no text": (lambda t: bytes(range(256)), True),
    "empty": (lambda t: b"", True),
    "lines exchanged": (
        lambda t: b"\n".join(
            [(lines := t.split(b"\n"))[0]]
            + [
                a.split(b"\t")[0] + b"\t" + b.partition(b"\t")[2]
                for a, b in zip(lines[1:-1], lines[2:-1] + lines[1:2], strict=True)
            ]
        ),
        True,
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_index_is_not_believed(damage: str, results: Path, opened: list[str]) -> None:
    right, _ = read_folders(results)
    change, everything = DAMAGE[damage]
    path = _index(results)
    path.write_bytes(change(path.read_bytes()))
    runs, reasons = read_folders(results)
    assert runs == right and reasons == []
    assert len(opened) == len(RUNS) if everything else opened
    opened.clear()
    assert read_folders(results)[0] == right and opened == []  # it has been mended


def test_other_code_reads_everything_anew(
    results: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_index, "code_digest", lambda: "of another version")
    read_folders(results)
    assert len(opened) == len(RUNS)


def test_what_has_only_just_changed_is_not_entered(tmp_path: Path, opened: list[str]) -> None:
    write_folder(tmp_path / "runs" / "one", RUNS[0])
    read_folders(tmp_path)
    read_folders(tmp_path)
    assert opened == ["one", "one"]


def test_a_run_without_a_suite_is_known_by_kind(
    results: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert index_file(results, ANY) != index_file(results, OF_A_SUITE)
    read_folders(results, any_run=True)
    assert len(opened) == len(RUNS)


def test_an_index_that_cannot_be_written_is_told_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "taken"))
    monkeypatch.setattr(folder_index, "TICK_SECONDS", -1.0)
    write_folder(tmp_path / "runs" / "one", RUNS[0])
    runs, _ = read_folders(tmp_path)
    assert len(runs) == 1 and "the index could not be written" in capsys.readouterr().err


def test_many_folders_are_read_by_processes_to_the_same_runs(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, _ = read_folders(results)
    _index(results).unlink()
    monkeypatch.setattr(results_folder, "WORTH_PROCESSES", 2)
    monkeypatch.setattr(results_folder, "A_BATCH", 3)
    monkeypatch.setattr(results_folder, "cores", lambda: 2)
    assert read_folders(results)[0] == right


def test_a_signature_is_of_every_file_that_is_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "one", RUNS[0])
    before, _ = signature(tmp_path / "one")
    (tmp_path / "one" / "checkpoint.pt").write_text("")
    assert signature(tmp_path / "one")[0] == before
    for name in (
        "config.yaml",
        "summary.json",
        "provenance.json",
        "metrics.jsonl",
        "timings.jsonl",
    ):
        path = tmp_path / "one" / name
        path.write_text(path.read_text() + " ")
        after, _ = signature(tmp_path / "one")
        assert after != before
        before = after
