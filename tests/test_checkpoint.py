import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from optbench.run import checkpoint
from tests import checkpoints


def test_the_newest_comes_back_and_the_one_before_is_kept(tmp_path: Path) -> None:
    for step in range(3):
        checkpoint.save(tmp_path, {"step": step, "w": torch.full((3,), float(step))})
    state, damaged = checkpoints.newest(tmp_path)
    assert state is not None and state["step"] == 2 and not damaged
    assert {file.name for file in tmp_path.iterdir()} == {checkpoint.NAME, checkpoint.PREVIOUS}


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text"])
def test_a_damaged_one_is_passed_over_and_named(tmp_path: Path, damage: str) -> None:
    for step in range(2):
        checkpoint.save(tmp_path, {"step": step, "w": torch.rand(1000)})
    newest = tmp_path / checkpoint.NAME
    whole = newest.read_bytes()
    half = len(whole) // 2
    damages: dict[str, bytes] = {
        "truncate": whole[:half],
        "flip": whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :],
        "empty": b"",
        "text": b"not a zip",
    }
    newest.write_bytes(damages[damage])
    state, damaged = checkpoints.newest(tmp_path)
    assert state is not None and state["step"] == 0
    assert len(damaged) == 1 and damaged[0].startswith("checkpoint.pt is damaged")


def test_without_any_there_is_none(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) == (None, [])


def test_a_checkpoint_from_elsewhere_executes_nothing(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save({"step": Hostile()}, tmp_path / checkpoint.NAME)
    state, damaged = checkpoints.newest(tmp_path)
    assert state is None and len(damaged) == 1 and not (tmp_path / "executed").exists()


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX limits on file sizes")
def test_a_full_disk_is_said_to_be_one_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"step": 1})
    program = (
        "import resource, signal, sys, torch; from pathlib import Path;"
        "from optbench.run import checkpoint;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY));"
        "checkpoint.save(Path(sys.argv[1]), {'step': 2, 'w': torch.rand(1_000_000)})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True
    )
    assert "OSError: [Errno 27]" in done.stderr  # EFBIG, which stands in for ENOSPC
    state, damaged = checkpoints.newest(tmp_path)
    assert state == {"step": 1} and not damaged
    assert [file.name for file in tmp_path.iterdir()] == [checkpoint.NAME]
