"""The leaderboard over many run folders: `python -m perf.board [--folders N] [--keep DIR]`.

Makes up run folders of the suite `small` (optimizers that do not exist, curves that nobody trained,
files as long as real ones), and times `python -m optbench.leaderboard` over them, each time in a
process of its own:

- first: nothing is known of the folders, so every file is read;
- again: the index knows what they hold;
- one changed: the index knows all but one.

Printed beside the goals: 3 s and 1 GiB for 10,000 folders, a page of 3 MB, and as a ratio to the
plain work that nobody can avoid, a look at the date and the size of every file.

Measured on two idle cores with 10,000 folders (120 optimizers): first 13 s, which is mostly YAML;
again 2.8 s, of which imports take 0.5 s, the index and the look at files 0.6 s, statistics 0.8 s,
the page 0.7 s, admission, tables and the terminal 0.3 s; one changed 3.1 s, since the index is
written anew; 0.3 GiB; a page of 2.2 MB.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.progress import track

from optbench.leaderboard.run_folders import CURVES
from optbench.paths import conf_folder
from optbench.protocol.suite import FINAL, TUNE, Suite, read_suite

SECONDS, GIB, PAGE_MB = 3.0, 1.0, 3.0
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
POINTS = 30  # measurements of a made-up final run
Place = tuple[str, str, int, int]  # task, phase, point, seed


def places(suite: Suite) -> list[Place]:
    """All runs that the suite asks of one optimizer; point 1 is selected everywhere."""
    tuning = [
        (task, TUNE, point, seed)
        for task in suite.tuned
        for point in range(suite.points)
        for seed in suite.tuning_seeds
    ]
    return tuning + [(task, FINAL, 1, seed) for task in suite.tasks for seed in suite.final_seeds]


def runs(suite: Suite, count: int) -> Iterator[tuple[str, Place]]:
    """So many places, optimizer by optimizer."""
    of_one = places(suite)
    for number in range(count):
        yield f"made_up_{number // len(of_one)}", of_one[number % len(of_one)]


def make_folder(folder: Path, suite: Suite, optimizer: str, place: Place) -> None:
    """One run folder, its files as a finished run leaves them."""
    task, phase, point, seed = place
    rng = np.random.default_rng(int(hashlib.sha256(folder.name.encode()).hexdigest()[:8], 16))
    skill = int(optimizer.rpartition("_")[2]) / 200
    best = skill + (0.0 if phase == FINAL else 0.05 * (point != 1)) + 0.02 * rng.random()
    about = suite.tasks[task]
    end = about.good + (about.start - about.good) * min(1.0, best)
    words = suite.command(
        optimizer, task, phase, point, [f"optimizer.lr={0.1 / (1 + point):g}"], seed
    )
    steps = np.linspace(0, 600, POINTS if phase == FINAL else 2).astype(int)
    falling = about.start + (end - about.start) * (steps / 600) + 0.001 * rng.random(len(steps))
    lines = [
        {"step": int(s)}
        | {key: float(v) * (1 + 1e-3 * k) for k, key in enumerate(CURVES[:-2])}
        | {"cost/gradients": int(s)}
        for s, v in zip(steps, falling, strict=True)
    ]
    last = {key: value for key, value in lines[-1].items() if key != "step"}
    last[about.metric] = last[about.select] = float(end)
    config = _config() | {
        "steps": 600,
        "seed": seed,
        "task": {"_target_": f"optbench.tasks.{task}"},
        "board": {
            "suite": suite.name,
            "version": suite.version,
            "digest": suite.digest[:16],
            "task": task,
            "phase": phase,
            "point": point,
        },
    }
    config["optimizer"] = config["optimizer"] | {"lr": 0.1 / (1 + point)}
    summary = {
        "schema": 1,
        "status": "done",
        "task": task,
        "optimizer": optimizer,
        "seed": seed,
        "step": 600,
        "steps": 600,
        "gradients": 600,
        "train_seconds": 1.5,
        "peak_gib": 0.25,
        "optimizer_gib": 1e-4,
        "last": last,
        "digests": "sha256",
    }
    origin = {
        "data_hash": hashlib.sha256(task.encode()).hexdigest(),
        "init_hash": hashlib.sha256(f"{task} {seed}".encode()).hexdigest(),
        "initial_loss": 2.3,
        "task": {},
        "versions": {"torch": "2.13.0+cpu", "optbench": "0.1.0"},
        "hardware": {"device": "cpu"},
        "git_commit": "0" * 40,
        "sessions": [{"command": ["optbench", *words]}],
    }
    files = {
        "config.yaml": yaml.dump(config, Dumper=DUMPER, sort_keys=False),
        "provenance.json": json.dumps(origin, indent=2),
        "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
    }
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    digests["summary.json"] = hashlib.sha256(
        json.dumps(summary, sort_keys=True).encode()
    ).hexdigest()
    files |= {
        "timings.jsonl": "".join(
            json.dumps({"step": int(s), "time/train_seconds": s / 400}) + "\n" for s in steps
        ),
        "summary.json": json.dumps(summary, indent=2),
        "digests.json": json.dumps(digests),
    }
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)


@cache
def _config() -> dict[str, Any]:
    """As many keys as a real configuration has."""
    parts = {
        name: yaml.safe_load((conf_folder() / name).read_text())
        for name in ("config.yaml", "optimizer/adam.yaml", "model/mlp.yaml")
    }
    whole = {k: v for k, v in parts["config.yaml"].items() if k not in ("defaults", "hydra")}
    return whole | {"optimizer": parts["optimizer/adam.yaml"], "model": parts["model/mlp.yaml"]}


def make_folders(results: Path, count: int) -> None:
    """So many run folders of the suite `small`."""
    suite = read_suite("small")
    for optimizer, place in track(runs(suite, count), "making folders", total=count):
        name = f"{place[0]}-{optimizer}-{place[1]}{place[2]}-seed{place[3]}"
        make_folder(results / "runs" / name, suite, optimizer, place)


def board(results: Path, home: Path) -> tuple[float, float]:
    """Seconds and peak GiB of one board, in a process of its own."""
    before = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "optbench.leaderboard", f"results_dir={results}", "suite=small"],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"XDG_STATE_HOME": str(home)},
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the board ended with {process.returncode}")
    return time.perf_counter() - before, usage.ru_maxrss / 2**20


def look(results: Path) -> float:
    """Seconds of a look at every file: what knowing that nothing has changed costs at least."""
    before = time.perf_counter()
    for folder in os.scandir(results / "runs"):
        for file in os.scandir(folder.path):
            file.stat()
    return time.perf_counter() - before


def main() -> None:
    """Make the folders, and time the board."""
    parser = argparse.ArgumentParser(prog="python -m perf.board", description=__doc__)
    parser.add_argument("--folders", type=int, default=10_000)
    parser.add_argument("--keep", type=Path, help="folder to make them in, and to leave them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        results = options.keep or Path(scratch) / "results"
        if not (results / "runs").is_dir():
            make_folders(results, options.folders)
        home = Path(scratch) / "state"
        floor = look(results)
        print(
            f"a look at every file: {floor:.2f} s; goals: {SECONDS:g} s, {GIB:g} GiB, page {PAGE_MB:g} MB"
        )
        print(f"{'':14}{'s':>8}{'ratio':>8}{'GiB':>8}")
        changed = min((results / "runs").iterdir()) / "summary.json"
        for when in ("first", "again", "one changed"):
            if when == "one changed":
                changed.write_text(changed.read_text() + " ")
            spent, peak = board(results, home)
            print(f"{when:14}{spent:8.2f}{spent / floor:8.1f}{peak:8.2f}", flush=True)
        megabytes = (results / "leaderboard.html").stat().st_size / 1e6
        print(f"page {megabytes:.2f} MB")


if __name__ == "__main__":
    main()
