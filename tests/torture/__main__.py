"""`python -m tests.torture --minutes N [--seed S] [--only kills,power,damages]`: ends with a line `FIGURE …`."""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.torture import cut, damaged, killed
from tests.torture.runs import Child, Outcome, outcome, run_folder

KINDS = ("kills", "power", "damages")


def reference(scratch: Path) -> Outcome:
    """What the run comes to that nothing happens to."""
    ended = Child(scratch / "whole").wait()
    if ended.code:
        raise RuntimeError(ended.said)
    return outcome(run_folder(scratch / "whole"))


def trials(
    kind: str, scratch: Path, truth: Outcome, chance: random.Random
) -> Iterator[tuple[str, str]]:
    """Yield name and fault of the trials of a kind."""
    if kind == "kills":
        yield from killed.trials(scratch, truth, chance)
    elif kind == "power":
        yield from cut.trials(scratch, truth)
    else:
        damaged.prepare(scratch)
        yield from damaged.trials(scratch, truth, chance)


def main() -> int:
    """Try all kinds in turn until the time is up, and return whether there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(KINDS))
    given = parser.parse_args()
    scratch, end = Path(tempfile.mkdtemp(prefix="torture-")), time.monotonic() + 60 * given.minutes
    chance, truth = random.Random(given.seed), reference(scratch)
    running = {kind: trials(kind, scratch, truth, chance) for kind in given.only.split(",")}
    count, faults = dict.fromkeys(running, 0), 0
    while running and time.monotonic() < end:
        for kind, rest in list(running.items()):
            found = next(rest, None)
            if found is None:
                del running[kind]
                continue
            name, fault = found
            count[kind] += 1
            faults += bool(fault)
            print(
                f"{'FAULT' if fault else 'ok':6} {name}{': ' if fault else ''}{fault}", flush=True
            )
    shutil.rmtree(scratch, ignore_errors=True)
    print("FIGURE", *(f"{kind}={number}" for kind, number in count.items()), f"faults={faults}")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
