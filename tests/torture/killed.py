"""Kills: a run that died at any moment, any number of times, ends bit-identical when the command is given again."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from optbench.record.folder import METRICS, PROVENANCE, SUMMARY
from tests.torture.dying import die_at_write
from tests.torture.runs import WITHOUT_PICTURE, WORDS, Child, Outcome, fault, run_folder

MOST_DEATHS = 5
MOST_WRITES = 150  # of a tiny run, about
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def trials(scratch: Path, truth: Outcome, chance: random.Random) -> Iterator[tuple[str, str]]:
    """Yield name and fault (empty if there is none) of trials without end."""
    while True:
        # pictures take longer than the run
        words = WORDS if chance.random() < 0.1 else WITHOUT_PICTURE
        deaths, found = trial(scratch / "killed", words, truth, chance)
        yield f"killed {' '.join(deaths)}", found


def trial(
    results: Path, words: tuple[str, ...], truth: Outcome, chance: random.Random
) -> tuple[list[str], str]:
    """Kill a run several times, let it end, and return how it died and what is wrong."""
    shutil.rmtree(results, ignore_errors=True)
    deaths: list[str] = []
    for _ in range(chance.randint(1, MOST_DEATHS)):
        deaths.append(_die(results, words, chance))
        if wrong := _torn(results, truth):
            return deaths, wrong
    ended = Child(results, words).wait()
    wrong = fault(results, ended, truth)
    if not wrong and words is WORDS and not (run_folder(results) / "dynamics.png").exists():
        wrong = "no picture"
    return deaths, wrong or ("a checkpoint was lost" if "set aside" in ended.said else "")


def _die(results: Path, words: tuple[str, ...], chance: random.Random) -> str:
    by = chance.choice(SIGNALS)
    if chance.random() < 0.7:
        write = chance.randint(1, MOST_WRITES)
        ended = Child(results, words, before=lambda: die_at_write(write, by)).wait()
        return f"{by.name}@write{write}={ended.code}"
    child, moment = Child(results, words), chance.uniform(0, 2)
    time.sleep(moment)
    os.kill(child.pid, by)
    return f"{by.name}@{moment:.2f}s={child.wait().code}"


def _torn(results: Path, truth: Outcome) -> str:
    """Say what no reader should see: a torn file, or a line that the whole run has not."""
    for folder in (results / "runs").glob("*"):
        for name in (SUMMARY, PROVENANCE):
            try:
                json.loads((folder / name).read_text())
            except FileNotFoundError:
                continue
            except ValueError:
                return f"{name} is torn"
        metrics = folder / METRICS
        if metrics.exists() and not truth.metrics.startswith(metrics.read_bytes()):
            return f"{METRICS} is no beginning of the whole run's"
    return ""
