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

from optbench.record.mirror import Mirrors
from optbench.record.wandb import log_table
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
    written: dict[int, dict[str, Any]] = {}
    for name in ("metrics", "timings"):
        for line in map(json.loads, (folder / f"{name}.jsonl").open()):
            written.setdefault(line.pop("step"), {}).update(line)
    assert [row["_step"] for row in rows] == list(written) == list(range(31))
    for row in rows:
        assert written[row["_step"]].items() <= row.items() and "step" not in row
    assert {"dynamics", "losses_table"} <= {key.split("/")[0] for key in rows[-1]}
    run = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (config["optimizer"], config["task"], config["lr"], config["seed"]) == (
        "sgd",
        "digits",
        0.1,
        0,
    )
    assert config["settings"]["optimizer"]["lr"] == 0.1 and "choices" not in config["settings"]
    assert config["provenance"]["data_hash"]
    assert (run.run_group, run.display_name) == ("g", folder.name)
    assert set(run.tags) == {"a", "b", "sgd", "digits", "mlp"}
    summary = _summary(records)
    assert summary["status"] == "done"
    assert summary["events"] == json.loads((folder / "summary.json").read_text())["events"]
    assert (
        summary["events"]["verdict"] == "edge not reached" and summary["events"]["measurements"] > 2
    )
    assert run.job_type == "tune"
    assert "last" not in summary and "process" not in summary
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert summary["train/loss"] == {
        "min": min(losses),
        "max": max(losses),
        "last": losses[-1],
    }
    assert _artifact_files(records) - {"losses_table.table.json"} == {
        "config.yaml",
        "provenance.json",
        "metrics.jsonl",
        "summary.json",
        "checkpoint.pt",
    }


def _artifact_files(records: list[Any]) -> set[str]:
    found = set()
    for record in records:
        if record.WhichOneof("record_type") == "request":
            manifest = record.request.log_artifact.artifact.manifest
            found |= {item.path for item in manifest.contents}
        if record.WhichOneof("record_type") == "artifact":
            found |= {item.path for item in record.artifact.manifest.contents}
    return found


def test_a_divergence_is_an_alert(optbench: Command) -> None:
    diverging = ("optimizer.lr=1e9", "wandb.mode=offline", "wandb.wait_seconds=60")
    folder = optbench(*RUN, *diverging).folder
    records = _sent(folder)
    alerts = [r.alert for r in records if r.WhichOneof("record_type") == "alert"]
    assert [alert.title for alert in alerts] == ["diverged"]
    assert "has diverged at step" in alerts[0].text
    done = subprocess.run([sys.executable, "-m", "optbench.record.wandb", str(folder)], timeout=60)
    assert done.returncode == 0
    again = [r for r in _sent(folder) if r.WhichOneof("record_type") == "alert"]
    assert len(again) == 1, "told once"


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
    steps = [row["_step"] for row in _history(records)]
    assert steps == list(range(31)), "none twice, over both parts"


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
    monkeypatch.setenv("WANDB_QUIET", "true")  # its greeting tries for 10 s to learn who this is
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
        "import sys, time; from pathlib import Path; from optbench.record.mirror import Mirrors;"
        "all = Mirrors(Path(sys.argv[1]), [], 'offline')._all; "
        "print(all[0]._process.pid, flush=True); "
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
    assert Mirrors(folder, [], "disabled").close(0) == "W&B: disabled"


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
