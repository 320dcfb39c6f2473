"""Runs an hour on each engine with the same cores, and what the driver itself costs.

    python -m perf.launch                       local, Ray and submitit here; SLURM where sbatch is
    python -m perf.launch engines=local,ray optimizer=sgd jobs=2

1. Each engine makes the runs of `smoke` for the optimizers, into a folder of its own. Ray, and the
   processes of submitit, are begun anew: their start is a part of the time.
2. `first` is the time from the command to the first run folder; `rate` counts from there on.
3. `driver` is processor time of the command per run, less that of the same command with nothing
   left to do.
4. The boards are compared: the same runs, with the same metrics to the byte.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from optbench.boundary.command_line import Command, Key, Names
from optbench.boundary.kinds import Count
from optbench.errors import UserError

ENGINES = {
    "local": ("launcher=local",),
    "ray": ("launcher=ray",),
    "submitit": ("launcher=slurm", "launcher.cluster=local"),
    "slurm": ("launcher=slurm", "launcher.memory_gb=1"),
}
NEEDS = {"ray": "ray", "submitit": "submitit", "slurm": "submitit"}


@dataclass(frozen=True)
class Settings:
    """Measure runs an hour on each engine, with the same cores."""

    engines: Annotated[Names, Key(f"of {', '.join(ENGINES)}")] = tuple(ENGINES)
    optimizer: Annotated[Names, Key("optimizers of the suite smoke, ten runs each")] = ("sgd",)
    jobs: Annotated[Count, Key("runs at a time, of one thread each")] = 2


@dataclass(frozen=True)
class Timing:
    """What an engine took."""

    runs: int
    first: float
    wall: float
    driver: float
    boards: str

    @property
    def rate(self) -> float:
        """Runs an hour, without the start."""
        return 3600 * self.runs / (self.wall - self.first)


def main() -> None:
    Command("perf.launch", Settings).run(compare)


def compare(settings: Settings) -> int:
    for name in settings.engines:
        if name not in ENGINES:
            raise UserError(f"there is no engine called {name}. Known: {', '.join(ENGINES)}")
    print(f"{'engine':10} {'runs':>5} {'first':>8} {'runs/hour':>10} {'/local':>7} {'driver':>9}")
    base: Timing | None = None
    alike = True
    for name in settings.engines:
        if why := _absent(name):
            print(f"{name:10} {why}")
            continue
        timing = measure(name, settings)
        base = base or timing
        alike &= timing.boards == base.boards
        print(
            f"{name:10} {timing.runs:5} {timing.first:6.1f} s {timing.rate:10.0f} "
            f"{timing.rate / base.rate:7.2f} {1000 * timing.driver:6.0f} ms",
            flush=True,
        )
    print("metrics of all runs alike to the byte" if alike else "METRICS DIFFER between engines")
    return 0 if alike else 1


def _absent(engine: str) -> str:
    from importlib.util import find_spec

    if engine in NEEDS and find_spec(NEEDS[engine]) is None:
        return f"not measured: {NEEDS[engine]} is not installed"
    if engine == "slurm" and shutil.which("sbatch") is None:
        return "not measured: there is no sbatch here"
    return ""


def measure(engine: str, settings: Settings) -> Timing:
    with tempfile.TemporaryDirectory(prefix="perf-launch-") as folder:
        results = Path(folder)
        words = [sys.executable, "-m", "optbench.tune", "suite=smoke", f"results_dir={results}"]
        words += [f"optimizer={','.join(settings.optimizer)}", f"jobs={settings.jobs}"]
        # rounding depends on threads, so all engines give a run one
        words += [*ENGINES[engine], "launcher.cores=1"]
        began = time.monotonic()
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        first = 0.0
        while not first and process.poll() is None:
            if any(results.glob("runs/*/run.lock")):
                first = time.monotonic() - began
            time.sleep(0.01)
        busy = _seconds_of(process)
        wall = time.monotonic() - began
        if process.returncode:
            raise UserError(f"{engine} failed: {' '.join(words)}")
        folders = sorted((results / "runs").iterdir())
        again = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        idle = _seconds_of(again)
        return Timing(
            runs=len(folders),
            first=first,
            wall=wall,
            driver=(busy - idle) / len(folders),
            boards=_digest(folders),
        )


def _seconds_of(process: subprocess.Popen[bytes]) -> float:
    """Wait for a process; return its own processor time, without that of its children."""
    used = 0.0
    tick = os.sysconf("SC_CLK_TCK")
    while process.poll() is None:
        try:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            break
        used = max(used, (int(fields[11]) + int(fields[12])) / tick)
        time.sleep(0.02)
    process.wait()
    return used


def _digest(folders: list[Path]) -> str:
    digest = hashlib.sha256()
    for folder in folders:
        digest.update(folder.name.encode())
        digest.update((folder / "metrics.jsonl").read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
