from pathlib import Path

import pytest

from optbench.errors import MachineError
from optbench.record.folder import (
    METRICS,
    MIRROR_FILES,
    RUN_FILES,
    TIMINGS,
    RunFolder,
    read_finished,
    read_json,
    read_lines,
    write_whole,
)
from optbench.record.picture import PICTURE, SPECTRUM
from optbench.run import checkpoint


def test_clock_readings_go_to_a_series_of_their_own(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.open_series({})
        folder.log(0, {"train/loss": 1.0, "time/train_seconds": 2.0, "memory/peak_gib": 3.0})
        folder.log(1, {"train/loss": 0.5})
    assert read_lines(tmp_path / METRICS) == [
        {"step": 0, "train/loss": 1.0},
        {"step": 1, "train/loss": 0.5},
    ]
    assert read_lines(tmp_path / TIMINGS) == [
        {"step": 0, "time/train_seconds": 2.0, "memory/peak_gib": 3.0}
    ]


def test_numbers_come_back_bit_for_bit_and_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.open_series({})
        folder.log(
            0,
            {
                "a": 0.1 + 0.2,
                "b": 1e-310,
                "c": float("nan"),
                "d": float("-inf"),
                "e": [1.0, float("inf")],
            },
        )
    assert read_lines(tmp_path / METRICS) == [{"step": 0, "a": 0.1 + 0.2, "b": 1e-310}]


def test_series_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.open_series({})
        folder.log(0, {"a": 1})
        offsets = folder.offsets
        folder.log(1, {"a": 2})
    with RunFolder(tmp_path) as folder:
        folder.open_series(offsets)
        folder.log(1, {"a": 3})
    assert [line["a"] for line in read_lines(tmp_path / METRICS)] == [1, 3]


def test_a_line_still_being_written_is_not_read(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"step": 0}\n{"step": 1, "tr')
    assert read_lines(tmp_path / METRICS) == [{"step": 0}]


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.write_summary("running", {})
        with (
            pytest.raises(MachineError, match=r"another process \(.+:\d+\) is at work"),
            RunFolder(tmp_path),
        ):
            pass
    with RunFolder(tmp_path):
        pass


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_a_damaged_json_file_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    assert read_json(tmp_path / "x.json") is None


@pytest.mark.parametrize(
    ("status", "ended"),
    [
        ("done", True),
        ("diverged", True),
        ("running", False),
        ("interrupted", False),
        ("crashed", False),
    ],
)
def test_a_run_is_finished_once_it_is_done_or_has_diverged(
    tmp_path: Path, status: str, ended: bool
) -> None:
    assert read_finished(tmp_path) is None
    with RunFolder(tmp_path) as folder:
        folder.write_summary(status, {"step": 3})
        assert read_finished(tmp_path) == (folder.summary if ended else None)


def test_clear_deletes_what_a_run_writes_and_nothing_else(tmp_path: Path) -> None:
    mine = [
        tmp_path / name
        for name in ("notes.txt", "weights.pt", "mine.json", "figure.png", "plan.yaml", "sync.log")
    ]
    for file in mine:
        file.write_text("mine")
    with RunFolder(tmp_path) as folder:
        folder.open_series({})
        folder.write_summary("done", {})
        for name in (*RUN_FILES, *MIRROR_FILES, "checkpoint.pt.part"):
            (tmp_path / name).write_text("a run's")
        folder.clear()
        assert {file.name for file in tmp_path.iterdir()} == {
            "run.lock",
            *(file.name for file in mine),
        }
    assert all(file.read_text() == "mine" for file in mine)


def test_what_a_run_writes_is_known_by_its_names() -> None:
    assert {checkpoint.NAME, checkpoint.PREVIOUS, PICTURE, SPECTRUM, "wandb.json", "wandb.log"} < {
        *RUN_FILES,
        *MIRROR_FILES,
    }
