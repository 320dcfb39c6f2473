import subprocess
import sys

import pytest

from optbench.run.memory import keep_freed_memory

# Resident MiB that freeing a tensor of 64 MiB gives back.
GIVEN_BACK = """
import sys, torch
from pathlib import Path
from optbench.run.memory import keep_freed_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
if sys.argv[1] == "kept":
    assert keep_freed_memory()
x = torch.zeros(2**24)
x.fill_(1)
before = resident()
del x
print(before - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_what_is_freed_stays_in_the_process() -> None:
    def given_back(which: str) -> float:
        command = [sys.executable, "-c", GIVEN_BACK, which]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert given_back("as ever") > 60  # else there is nothing to gain, and the setting can go
    assert given_back("kept") < 1


def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
