"""Sixteen seeds trained together, beside a pool of two processes that trains them one by one.

    python -m perf.together

Whole runs, from the configuration to the closed folder, probes counted, in one call: MLP
64-64-64-10 on digits, Adam. Of the start-up of processes the import of torch is not counted on
either side. A ratio above 1 says that training together is faster. `lab.sweep` chooses by itself
between one process and one a core; both are shown beside.

Two ratios: of seconds, and of what the CPU spent, summed over processes. On a machine that others
use too the first is noise, and the second, of as many processes, is what an idle one would show.

With probes the gain is bounded: a member's Hessian is its own, and its products, matrix products of
N rows, run near the core's peak alone already; stacked they are slower (2.6 ms instead of 2.2 for 8
members of 1,000 examples). Where steps gain s and measuring takes a share m of a run alone and gains
nothing, the whole gains 1 / ((1 − m) / s + m): with s = 4, 3 takes m ≤ 0.11. So there are two
cadences: every 1,000 steps, and every 200. The last column is what probes that cost nothing but
their products would not pass: the pool's time over that of the best way together without probes
plus all products at the speed of torch's double backward alone.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from optbench import lab

SEEDS = 16
PROCESSES = 2
BATCHES: dict[str, int] = {"32": 5000, "64": 5000, "full": 300}
"""Steps at each batch size."""

RARE, OFTEN = "1000", "200"
CADENCES = {"32": ("none", RARE, OFTEN), "64": ("none", RARE, OFTEN), "full": ("none", OFTEN)}
"""Steps between measurements, at each batch size."""

Words = list[str]


def words(batch: str, probes: str) -> Words:
    """The main job's words: no measurement but of loss and error at the ends, or the default probes.

    Sharpness, edge and layers are measured at the cadence given, loss and error twice as often.
    """
    every = {"generalization": BATCHES[batch]}
    if probes != "none":
        steps = int(probes)
        every = {"sharpness": steps, "layers": steps, "generalization": steps // 2}
    return [
        "task=digits",
        "task.loss=ce",
        "model.widths=[64,64,64]",
        "optimizer=adam",
        f"batch_size={batch}",
        f"probes={'none' if probes == 'none' else 'default'}",
        *(f"probes.{name}.every={steps}" for name, steps in every.items()),
        "device=cpu",
        *lab.QUIET,
    ]


def _cpu() -> float:
    """Seconds of the CPU so far, of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def _alone(given: tuple[Words, list[int], int, str]) -> float:
    """Train one by one; return the seconds of the CPU, as `_together` does."""
    said, seeds, steps, folder = given
    before = _cpu()
    for seed in seeds:
        lab.start(*said, seed=seed, results_dir=folder).train(steps=steps)
    return _cpu() - before


def _together(given: tuple[Words, list[int], int, str]) -> float:
    said, seeds, steps, folder = given
    before = _cpu()
    lab.sweep(*said, seeds=seeds, steps=steps, results_dir=folder, processes=1)
    return _cpu() - before


def _one_thread() -> None:
    torch.set_num_threads(1)


@contextmanager
def _pool() -> Iterator["multiprocessing.pool.Pool"]:
    """Two processes of one thread, which have run something before."""
    with multiprocessing.get_context("spawn").Pool(PROCESSES, initializer=_one_thread) as pool:
        with tempfile.TemporaryDirectory() as folder:
            warm = words("64", "none")
            pool.map(_alone, [(warm, [k], 2, f"{folder}/{k}") for k in range(PROCESSES)])
        yield pool


Way = Callable[[str], float]
"""Trains all seeds into a folder, and returns the seconds of the CPU."""


def seconds(way: Way) -> tuple[float, float]:
    """Seconds that one way takes in a folder of its own, and seconds of the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        spent = way(folder)
        return time.perf_counter() - start, spent


def _ways(pool: "multiprocessing.pool.Pool", said: Words, steps: int) -> tuple[Way, ...]:
    """Alone in the pool; together in one process, and in each of two."""
    seeds = list(range(SEEDS))
    halves = [seeds[k::PROCESSES] for k in range(PROCESSES)]

    def parts(folder: str) -> list[tuple[Words, list[int], int, str]]:
        return [(said, half, steps, f"{folder}/{k}") for k, half in enumerate(halves)]

    return (
        lambda folder: sum(pool.map(_alone, parts(folder), chunksize=1)),
        lambda folder: _together((said, seeds, steps, folder)),
        lambda folder: sum(pool.map(_together, parts(folder), chunksize=1)),
    )


def _as_chosen(said: Words, steps: int) -> tuple[float, str]:
    """Seconds of `lab.sweep`, whose processes are not ours to wait for, and what it chose."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        runs = lab.sweep(*said, seeds=range(SEEDS), steps=steps, results_dir=folder)
        taken = time.perf_counter() - start
        return taken, "2 processes" if "in 2 processes" in runs[0].said else "1 process"


def products(said: Words, steps: int) -> float:
    """Seconds of the CPU that the products alone of one run's measurements take, on one thread.

    The number of products that seed 0 counts, times the quickest of 50 double backward passes by
    torch alone, of the same network on the same data.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = lab.start(*said, seed=0, results_dir=folder).train(steps=steps)
        columns = ("sharpness/hvps", "edge/hvps")
        count = sum(float(run.series(name)[1].sum()) for name in columns)
        end = run.at(step=steps)
        model, data = end.model, end.task.train
    weights = list(model.parameters())
    loss = torch.nn.functional.cross_entropy(model(data.inputs), data.targets)
    slopes = torch.autograd.grad(loss, weights, create_graph=True)
    along = [torch.randn_like(w) for w in weights]
    _one_thread()
    quickest = float("inf")
    for _ in range(50):
        start = time.process_time()
        torch.autograd.grad(slopes, weights, along, retain_graph=True)
        quickest = min(quickest, time.process_time() - start)
    return count * quickest


def main() -> None:
    """Print the table."""
    _one_thread()
    print(
        "batch  every    pool of 2 (s, CPU s)   together: 1 process, 2, by lab.sweep (ratios of both)"
        "   bound"
    )
    with _pool() as pool, tempfile.TemporaryDirectory() as warm:
        lab.sweep(*words("64", "none"), seeds=range(2), steps=2, results_dir=warm, processes=2)
        for batch, steps in BATCHES.items():
            without = float("nan")
            for probes in CADENCES[batch]:
                said = words(batch, probes)
                ways = _ways(pool, said, steps)
                (pooled, pooled_cpu), *others = (seconds(way) for way in ways)
                ratios = "   ".join(
                    f"{pooled / taken:.2f} {pooled_cpu / spent:.2f}" for taken, spent in others
                )
                taken, how = _as_chosen(said, steps)
                ratios += f"   {pooled / taken:.2f}"
                fewest = min(spent for _, spent in others)
                without = fewest if probes == "none" else without
                least = without + SEEDS * (products(said, steps) if probes != "none" else 0)
                bound = f"{pooled_cpu / least:.2f}" if probes != "none" else ""
                print(
                    f"{batch:>5}  {probes:8} {pooled:9.2f} {pooled_cpu:9.2f}   {ratios} ({how})   "
                    f"{bound}",
                    flush=True,
                )


if __name__ == "__main__":
    print(f"{Path(__file__).stem}: {SEEDS} seeds, torch {torch.__version__}")
    main()
