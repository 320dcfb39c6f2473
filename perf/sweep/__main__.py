"""Hessian products on every kind of layer: `python -m perf.sweep [--only SUBSTRING] [--jobs N]`.

Every case is measured in float64: H v by optbench, against (∇L(w + hv) − ∇L(w − hv)) / 2h by
torch alone, extrapolated from two steps h. It ends in one verdict:

- right: the error is within the tolerance, H is symmetric, nothing was moved.
- refused: optbench raised a ValueError of one line, though torch's double backward runs.
- torch: the same, where torch's double backward does not run either.
- raw: an error that optbench did not put in words.
- WRONG: not the reference's product, a gradient that is not the loss's, or H not symmetric.
- MOVED: a weight, a buffer, a mode, a .grad or a generator is not as it was.
- skipped: a package is missing.

The exit code is 1 if any case is raw, WRONG or MOVED. All cases take about three minutes on two
cores.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from perf.sweep.cases import CASES, judge
from perf.sweep.compare import BAD, Result, Verdict


def results(names: list[str], jobs: int) -> Iterator[Result]:
    """The result of each case, in order, from as many processes as asked for."""
    if jobs == 1:
        yield from map(judge, names)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(judge, names)


def summary(counts: Counter[tuple[str, Verdict]]) -> str:
    """Number of cases by package and verdict, as a table."""
    packages = list(dict.fromkeys(package for package, _ in counts))
    lines = [f"{'':14}" + "".join(f"{verdict:>9}" for verdict in Verdict) + f"{'all':>9}"]
    for package in [*packages, "all"]:
        row = [
            sum(n for (p, v), n in counts.items() if v is verdict and package in (p, "all"))
            for verdict in Verdict
        ]
        lines.append(f"{package:14}" + "".join(f"{n:9}" for n in (*row, sum(row))))
    return "\n".join(lines)


def main() -> int:
    """Run the cases asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m perf.sweep", description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="SUBSTRING", help="run cases whose name holds this"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes; default: 2")
    asked = parser.parse_args()
    names = [name for name in CASES if asked.only.lower() in name.lower()]
    print(f"torch {torch.__version__}, {len(names)} cases, {asked.jobs} processes", flush=True)
    counts: Counter[tuple[str, Verdict]] = Counter()
    start = time.perf_counter()
    for number, (name, result) in enumerate(zip(names, results(names, asked.jobs), strict=True), 1):
        counts[name.split("/")[0], result.verdict] += 1
        place = f"{number} of {len(names)}"
        print(
            f"{place:>10}  {result.verdict:8} {name:42} {result.seconds:5.1f} s  {result.remark}",
            flush=True,
        )
    print(f"\n{summary(counts)}\n{time.perf_counter() - start:.0f} s")
    return int(any(counts[key] for key in counts if key[1] in BAD))


if __name__ == "__main__":
    sys.exit(main())
