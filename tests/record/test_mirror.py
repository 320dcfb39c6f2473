"""The mirror against a W&B that only notes what it is given: every step is sent once."""

import json
import os
import subprocess
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from optbench.errors import MachineError, UserError
from optbench.record import mirror as mirroring
from optbench.record import tensorboard, trackio
from optbench.record import wandb as wandb_mirror
from optbench.record.folder import MIRRORS
from optbench.record.last_lines import Tail
from optbench.record.mirror import Mirrors, Rows, State, check_mirrors, short_config
from optbench.record.wandb import open_sink, where

STATE, LOCK = "wandb.json", "wandb.lock"

CONFIG = "wandb: {mode: offline, project: p, entity: null, group: null, tags: []}\n"


def mirror(folder: Path, follow: bool) -> State:
    """Mirror to W&B; return the state that is left."""
    said = mirroring.mirror(folder, "wandb", open_sink, follow)
    state = State.read(folder / STATE)
    assert said.startswith(where(folder, state)) or not (folder / STATE).exists()
    return state


class _Run:
    offline, url, starting_step = True, None, 0

    def __init__(self, folder: Path, parts: int) -> None:
        self.dir = str(folder / "wandb" / f"offline-run-{parts}" / "files")
        Path(self.dir).mkdir(parents=True)
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.summary: dict[str, Any] = {}
        self.alerts: list[dict[str, Any]] = []
        self.artifacts: list[Any] = []
        self.fails_at: int | None = None

    def define_metric(self, *_: object, **__: object) -> None: ...

    def alert(self, **about: Any) -> None:
        self.alerts.append(about)

    def log_artifact(self, artifact: Any) -> None:
        self.artifacts.append(artifact)

    def log(self, row: dict[str, Any], step: int, commit: bool) -> None:
        assert commit
        if self.fails_at is not None and step == self.fails_at:
            raise ConnectionError("the service is dead")
        self.rows.append((step, row))

    def finish(self, exit_code: int) -> None: ...


class _Wandb(types.ModuleType):
    """As much of W&B as the mirror uses."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.ids: list[str] = []
        self.runs: list[_Run] = []
        self.fails_at: int | None = None

    def Settings(self, **_: object) -> None: ...  # noqa: N802

    def Histogram(self, values: Any = None, np_histogram: Any = None) -> str:  # noqa: N802
        return f"histogram of {sum(values)}" if values else "histogram"

    def Image(self, file: str) -> str:  # noqa: N802
        if not Path(file).read_bytes():
            raise OSError(f"cannot identify image file {file}")
        return "picture"

    def init(self, **options: Any) -> _Run:
        self.ids.append(options["id"])
        run = _Run(Path(options["dir"]), len(self.runs))
        run.fails_at = self.fails_at
        self.runs.append(run)
        return run

    @property
    def steps(self) -> list[list[int]]:
        return [[step for step, _ in run.rows] for run in self.runs]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> _Wandb:
    module = _Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def _write(file: Path, *lines: object) -> None:
    file.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    )


def _timings(*seconds: float) -> list[dict[str, float]]:
    return [{"step": 10 * i, "seconds": value} for i, value in enumerate(seconds)]


def test_a_series_written_again_with_other_bytes_goes_on_by_step(
    fake: _Wandb, folder: Path
) -> None:
    _write(folder / "timings.jsonl", *_timings(0.1, 0.25, 0.5))
    mirror(folder, follow=False)
    _write(folder / "timings.jsonl", *_timings(0.123456789, 0.2, 0.500001, 1.0, 2.0))
    state = mirror(folder, follow=False)
    assert fake.steps == [[0, 10, 20], [30, 40]] and len(set(fake.ids)) == 1
    first, second = (folder / "wandb" / f"offline-run-{i}" for i in (0, 1))
    assert (
        where(folder, state)
        == f"W&B: offline (wandb.mode says so); send it: wandb sync {first} {second}"
    )
    mirror(folder, follow=False)
    assert fake.steps[2] == []


def test_damaged_lines_are_passed_over_and_counted(fake: _Wandb, folder: Path) -> None:
    odd = [
        "",
        "[1]",
        "7",
        "{",
        '{"loss": 1}',
        '{"step": true}',
        '{"step": 1.5}',
        "[" * 100_000,
        "9" * 5000,
    ]
    _write(
        folder / "metrics.jsonl",
        {"step": 0, "a": 1},
        *odd,
        {"step": 1, "h": ["word"]},
        {"step": 2, "h": [1, 2]},
    )
    with (folder / "metrics.jsonl").open("ab") as stream:
        stream.write(b'\xff\xfe{"step": 3}\n{"step": 4, "a": 5}\n{"step": 5, "a"')
    state = mirror(folder, follow=False)
    assert fake.steps == [[0, 2, 4]]
    assert fake.runs[0].rows[1][1]["h"] == "histogram of 3"
    assert state.damaged == len(odd) + 2
    # the word had a step, and is old news now
    assert mirror(folder, follow=False).damaged == len(odd) + 1


def test_a_damaged_picture_does_not_end_the_mirror(fake: _Wandb, folder: Path) -> None:
    (folder / "broken.png").touch()
    (folder / "folder.png").mkdir()
    (folder / "whole.png").write_bytes(b"1")
    mirror(folder, follow=False)
    assert fake.runs[0].rows == [(0, {"whole": "picture"})]


def test_a_file_cut_back_under_the_readers_eyes_loses_no_step(tmp_path: Path) -> None:
    file = tmp_path / "timings.jsonl"
    tail = Tail(file, -1)
    assert tail.read() == []
    _write(file, *_timings(0.1, 0.2, 0.3))
    assert [line["step"] for line in tail.read()] == [0, 10, 20]
    # Longer than before, so that the old offset is in the middle of a line.
    _write(file, *_timings(0.11111, 0.22222, 0.33333, 0.44444, 0.55555))
    assert [line["step"] for line in tail.read()] == [30, 40]
    _write(file, *_timings(0.1))
    assert tail.read() == [] and tail.damaged == 0
    with file.open("a") as stream:
        stream.write('{"step": 50, "seco')
        stream.flush()
        assert tail.read() == []
        stream.write('nds": 1}\n')
    assert tail.read() == [{"step": 50, "seconds": 1}]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        '{"id": "abcd1234", "offsets": {"metrics.jsonl": 99}}',
        '{"id": 5}',
        '{"id": "../../x"}',
        '{"id": "abcd1234", "steps": {"metrics.jsonl": 9}, "rows": 10}',
        '{"id": "abcd1234", "step": "9"}',
        '{"id": "abcd1234", "step": 1e99}',
        '{"id": "abcd1234", "told": 1}',
        '{"id": "abcd1234", "offline": [null]}',
        '{"id": "abcd1234", "offline": "wandb", "url": 7}',
    ],
)
def test_a_state_of_another_shape_starts_anew(fake: _Wandb, folder: Path, content: str) -> None:
    _write(folder / "metrics.jsonl", {"step": 0, "a": 1})
    (folder / STATE).write_text(content)
    mirror(folder, follow=False)
    assert fake.steps == [[0]] and fake.ids != ["abcd1234"]
    assert State.read(folder / STATE).step == 0


def test_what_was_sent_before_wandb_died_is_not_sent_again(
    fake: _Wandb, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(folder / "metrics.jsonl", {"step": 0, "a": 1})

    def one_more_then_end(_: float) -> bool:
        _write(folder / "metrics.jsonl", {"step": 0, "a": 1}, {"step": 1, "a": 1})
        return True

    monkeypatch.setattr(mirroring, "standard_input_ended", one_more_then_end)
    fake.fails_at = 1
    with pytest.raises(ConnectionError):
        mirror(folder, follow=True)
    fake.fails_at = None
    mirror(folder, follow=False)
    assert fake.steps == [[0], [1]]


def test_the_mirror_of_a_cleared_folder_leaves_no_state_to_the_next(
    fake: _Wandb, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overwritten(_: float) -> bool:
        (folder / STATE).unlink()
        _write(folder / "metrics.jsonl", {"step": 0, "a": 2}, {"step": 1, "a": 2})
        return True

    _write(folder / "metrics.jsonl", {"step": 0, "a": 1})
    monkeypatch.setattr(mirroring, "standard_input_ended", overwritten)
    with pytest.raises(MachineError, match="has been cleared"):
        mirror(folder, follow=True)
    assert not (folder / STATE).exists()
    mirror(folder, follow=False)
    assert fake.steps[1] == [0, 1] and len(set(fake.ids)) == 2


def test_a_full_disk_costs_the_state_not_the_mirror(
    fake: _Wandb, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("optbench.record.mirror.write_whole", no_room)
    _write(folder / "metrics.jsonl", {"step": 0, "a": 1})
    mirror(folder, follow=False)
    assert fake.steps == [[0]] and "cannot write wandb.json" in capsys.readouterr().out


def test_online_after_offline_still_names_the_part_that_is_offline(folder: Path) -> None:
    (folder / "wandb" / "offline-run-0").mkdir(parents=True)
    state = State(url="https://wandb.ai/x", offline=["wandb/offline-run-0", "wandb/cleaned-away"])
    part = folder / "wandb" / "offline-run-0"
    assert where(folder, state).endswith(
        f"x, but for a part recorded offline; send it: wandb sync {part}"
    )


def _main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> str:
    """The one line that the command ends with."""
    monkeypatch.setattr(sys, "argv", ["wandb", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        wandb_mirror.main()
    assert stop.value.code == 1
    return capsys.readouterr().err.removeprefix("optbench: ").removesuffix("\n")


def test_one_mirror_at_a_time(
    fake: _Wandb,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with FileLock(folder / LOCK):
        assert (
            _main(monkeypatch, capsys, folder)
            == f"another mirror is at work on {folder}: wait until it has ended"
        )
        # One that follows waits while its training goes on, and a little longer.
        monkeypatch.setattr(mirroring, "LOCK_SECONDS", 0.1)
        monkeypatch.setattr(mirroring, "POLL_SECONDS", 0.05)
        polls = iter([False, False, True])
        monkeypatch.setattr(mirroring, "standard_input_ended", lambda _: next(polls))
        assert "another mirror" in _main(monkeypatch, capsys, folder, "follow=true")
        assert next(polls, None) is None
    assert fake.runs == []


@pytest.mark.parametrize("content", ["", "[1", "wandb: 5", "wandb: {mode: offline}", "[" * 500])
def test_a_folder_without_its_configuration_is_one_line(
    fake: _Wandb,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str,
) -> None:
    (folder / "config.yaml").write_text(content)
    said = _main(monkeypatch, capsys, folder)
    assert (
        said.startswith(f"cannot read what to send from {folder / 'config.yaml'} (")
        and "\n" not in said
    )


def test_a_mirror_that_cannot_start_is_a_line_not_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(folder / "wandb.log")
    said = Mirrors(folder, [], "offline").close(1)
    assert said.startswith("W&B: nothing was sent (") and "python -m optbench.record.wandb" in said
    (folder / "wandb.log").unlink()

    def no_process(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", no_process)
    assert "Resource temporarily unavailable" in Mirrors(folder, [], "offline").close(1)


def test_a_row_is_given_once_all_of_its_lines_are_there(tmp_path: Path) -> None:
    metrics, timings = tmp_path / "metrics.jsonl", tmp_path / "timings.jsonl"
    rows = Rows([metrics, timings], -1)
    assert rows.read() == [] and rows.rest() == []
    _write(metrics, {"step": 0, "a": 1}, {"step": 1, "a": 2})
    _write(timings, {"step": 0, "s": 0.1})
    assert rows.read() == [(0, {"a": 1, "s": 0.1})], "a timing of step 1 may come"
    # written between the two reads: the timing is there before the line that it belongs to
    _write(timings, {"step": 0, "s": 0.1}, {"step": 1, "s": 0.2}, {"step": 2, "s": 0.3})
    assert rows.read() == []
    _write(metrics, {"step": 0, "a": 1}, {"step": 1, "a": 2}, {"step": 2, "a": 3})
    assert rows.read() == [(1, {"a": 2, "s": 0.2})]
    assert rows.rest() == [(2, {"a": 3, "s": 0.3})] and rows.rest() == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", r"there is no tensorbord. Did you mean tensorboard\? There are"),
        ("no_such.module", "there is no module no_such.module to import"),
        ("absent", "absent is not installed: pip install 'optbench\\[absent\\]'"),
    ],
)
def test_a_mirror_that_cannot_run_is_told_before_training(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MIRRORS, "absent", "absent")
    with pytest.raises(UserError, match=message):
        check_mirrors([name])
    check_mirrors(["tests.record.test_mirror"])


SHORT = {
    "choices": {"optimizer": "adam", "task": "digits"},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.1},
    "seed": 3,
    "wandb": {"mode": "auto"},
}


def test_settings_are_short() -> None:
    assert short_config(SHORT) == {"seed": 3, "optimizer": "adam", "task": "digits", "lr": 0.1}


def test_tensorboard_shows_each_step_once(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def told() -> str:
        return mirroring.mirror(folder, "tensorboard", tensorboard.open_sink, follow=False)

    def seen(name: str) -> list[tuple[int, float]]:
        events = EventAccumulator(str(folder), {"scalars": 0})
        events.Reload()
        return [(event.step, event.value) for event in events.Scalars(name)]

    lines = [{"step": step, "train/loss": 1 / (1 + step)} for step in range(4)]
    _write(folder / "metrics.jsonl", *lines[:2], {"step": 2, "h": ["word"]})
    assert told().endswith("; 1 damaged lines were not sent")
    _write(folder / "metrics.jsonl", *lines)
    assert told() == f"TensorBoard: tensorboard --logdir {folder.parent}"
    # a float32 of 1/4 and 1/2 is exact
    assert seen("train/loss") == [(0, 1.0), (1, 0.5), (3, 0.25)]


def test_trackio_is_given_what_wandb_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, dict[str, Any]]] = []
    about: dict[str, Any] = {}

    class Run:
        def log(self, row: dict[str, Any], step: int) -> None:
            given.append((step, row))

        def finish(self) -> None: ...

    def init(**settings: Any) -> Run:
        about.update(settings)
        return Run()

    fake: Any = types.ModuleType("trackio")
    fake.__spec__ = ModuleSpec("trackio", None)
    fake.init, fake.Histogram, fake.Image = init, sum, str
    monkeypatch.setitem(sys.modules, "trackio", fake)
    _write(folder / "metrics.jsonl", {"step": 0, "a": 1.0}, {"step": 5, "h": [1, 2]})
    said = mirroring.mirror(folder, "trackio", trackio.open_sink, follow=False)
    assert given == [(0, {"a": 1.0}), (5, {"h": 3})]
    assert (about["project"], about["resume"], said) == (
        "p",
        "never",
        "trackio: trackio show --project p",
    )
