"""The mirror, against W&B's own offline files; no network."""

import json
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optbench.record.wandb import Mirror, log_table
from tests.conftest import Command

RUN = ("task=digits", "steps=30", "model.widths=[8]", "task.train_size=100")


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def _sent(folder: Path) -> list[Any]:
    """Return every record in the offline files of a run folder, oldest file first."""
    from wandb.proto import wandb_internal_pb2

    message: Any = wandb_internal_pb2

    records = []
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for data in _log_entries(file.read_bytes()):
            record = message.Record()
            record.ParseFromString(data)
            records.append(record)
    return records


def _log_entries(content: bytes) -> Iterator[bytes]:
    """Read LevelDB's log: 7 bytes of head, then blocks of 32 KiB of (crc32, length, type, data)."""
    block, position, entry = 32768, 7, b""
    while position + 7 <= len(content):
        if block - position % block < 7:  # the rest of a block is padding
            position += block - position % block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        entry += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield entry
            entry = b""


def _history(records: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append(
                {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in items
                }
            )
    return rows


def _summary(records: list[Any]) -> dict[str, Any]:
    """What was sent as the run's summary, nested as it was sent."""
    found: dict[str, Any] = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                *parents, last = list(item.nested_key) or [item.key]
                node = found
                for parent in parents:
                    node = node.setdefault(parent, {})
                node[last] = json.loads(item.value_json)
    return found


def test_everything_recorded_reaches_wandb(optbench: Command) -> None:
    about = ("wandb.tags=[a,b]", "wandb.group=g", "wandb.job_type=tune")
    outcome = optbench(*RUN, "picture=true", "wandb.mode=auto", "wandb.wait_seconds=60", *about)
    folder = outcome.folder
    assert "W&B: offline (no login here); send it: wandb sync results/runs/" in outcome.out
    records = _sent(folder)
    rows = _history(records)
    lines = [
        json.loads(line)
        for name in ("metrics", "timings")
        for line in (folder / f"{name}.jsonl").open()
    ]
    for line in lines:
        assert any(line.items() <= row.items() for row in rows)
    assert any("dynamics" in key for row in rows for key in row)
    run = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["optimizer"]["lr"] == 0.1 and config["choices"]["task"] == "digits"
    assert config["provenance"]["data_hash"]
    assert (run.run_group, list(run.tags), run.display_name) == ("g", ["a", "b"], folder.name)
    summary = _summary(records)
    assert summary["status"] == "done"
    assert summary["events"] == json.loads((folder / "summary.json").read_text())["events"]
    assert (
        summary["events"]["verdict"] == "edge not reached" and summary["events"]["measurements"] > 2
    )
    assert run.job_type == "tune"


def test_a_leaderboard_is_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = log_table("boards", "smoke-v1", ["rank", "optimizer"], [["1", "adam"], ["2", "<b>sgd"]])
    assert said.startswith("W&B: offline (no login here); send it: wandb sync ")
    records = _sent(tmp_path)
    run = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (run.project, run.job_type, run.run_group) == ("boards", "leaderboard", "smoke-v1")
    table = next(row for row in _history(records) if "leaderboard/smoke-v1/nrows" in row)
    assert (table["leaderboard/smoke-v1/ncols"], table["leaderboard/smoke-v1/nrows"]) == (2, 2)


def test_a_resumed_run_is_one_wandb_run_with_each_record_once(optbench: Command) -> None:
    first = optbench(*RUN, "wandb.mode=offline", "wandb.wait_seconds=60").folder
    (first / "summary.json").unlink()  # as if killed before the end
    (first / "checkpoint.pt").unlink()
    (first / "checkpoint.previous.pt").unlink(missing_ok=True)
    outcome = optbench(*RUN, "wandb.mode=offline", "wandb.wait_seconds=60")
    parts = sorted(first.glob("wandb/offline-run-*"))
    assert len(parts) == 2 and f"wandb sync {parts[0]} {parts[1]}\n" in outcome.out
    records = _sent(first)
    assert (
        len({record.run.run_id for record in records if record.WhichOneof("record_type") == "run"})
        == 1
    )
    steps = [row["step"] for row in _history(records) if "batch/loss" in row]
    assert steps == list(range(30))
    rows = [
        record.history.step.num
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert rows == list(range(len(rows)))  # one count over both parts, else W&B drops the second


def test_wandb_that_hangs_or_fails_neither_stops_nor_slows_training(
    optbench: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    monkeypatch.syspath_prepend(str(broken))
    (broken / "wandb.py").write_text("import time; time.sleep(60)")
    start = time.monotonic()
    outcome = optbench(*RUN, "wandb.mode=auto", "wandb.wait_seconds=0.5")
    assert outcome.code == 0 and "W&B: still sending, on its own" in outcome.out
    assert time.monotonic() - start < 30
    (broken / "wandb.py").write_text("raise RuntimeError('W&B is broken')")
    outcome = optbench(*RUN, "wandb.mode=auto", "wandb.wait_seconds=30", "seed=1")
    assert outcome.code == 0 and "W&B: nothing was sent" in outcome.out
    assert "W&B is broken" in (outcome.folder / "wandb.log").read_text()


def test_online_without_a_network_goes_on_offline_and_says_so(
    optbench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    monkeypatch.setenv("OPTBENCH_WANDB_TIMEOUT", "2")
    outcome = optbench(*RUN, "wandb.mode=online", "wandb.wait_seconds=60")
    assert outcome.code == 0 and "W&B: offline (online failed: " in outcome.out
    assert len([row for row in _history(_sent(outcome.folder)) if "batch/loss" in row]) == 30


def test_a_folder_can_be_sent_by_hand_later(optbench: Command) -> None:
    folder = optbench(*RUN, "wandb.mode=disabled").folder
    assert not (folder / "wandb").exists()
    done = subprocess.run(
        [sys.executable, "-m", "optbench.record.wandb", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert len([row for row in _history(_sent(folder)) if "batch/loss" in row]) == 30
    wrong = subprocess.run(
        [sys.executable, "-m", "optbench.record.wandb", "nowhere"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (
        wrong.returncode == 2
        and wrong.stderr == "optbench: nowhere is no run folder: it has no config.yaml\n"
    )


def test_the_mirror_ends_when_the_training_process_is_killed(optbench: Command) -> None:
    folder = optbench(*RUN, "wandb.mode=disabled").folder
    program = (
        "import sys, time; from pathlib import Path; from optbench.record.wandb import Mirror;"
        "mirror = Mirror(Path(sys.argv[1]), 'offline'); print(mirror._process.pid, flush=True); "
        "time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and _alive(child):
        time.sleep(0.1)
    assert not _alive(child)
    assert Mirror(folder, "disabled").close(0) == "W&B: disabled"


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
