"""Sixteen seeds trained together, beside a pool of two processes that trains them one by one.

    python -m perf.together

Whole runs, from the configuration to the closed folder, probes counted, in one call: MLP
64-64-64-10 on digits, Adam. Start-up of processes is not counted on either side. A ratio above 1
says that training together is faster.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from optbench import lab

SEEDS = 16
PROCESSES = 2
BATCHES: dict[str, int] = {"32": 1000, "64": 1000, "full": 300}
"""Steps at each batch size."""

Words = list[str]


def words(batch: str, probes: str) -> Words:
    """The main job's words: no measurement but at the ends, or the default probes.

    Sharpness and edge then are measured every 200 steps, loss and error every 100: a member's
    Hessian is its own, so that they cost as much together as one by one.
    """
    every = {"sharpness": 200, "layers": 200, "generalization": 100}
    if probes == "none":
        every = {"generalization": BATCHES[batch]}
    return [
        "task=digits",
        "task.loss=ce",
        "model.widths=[64,64,64]",
        "optimizer=adam",
        f"batch_size={batch}",
        f"probes={probes}",
        *(f"probes.{name}.every={steps}" for name, steps in every.items()),
        "device=cpu",
        *lab.QUIET,
    ]


def _alone(given: tuple[Words, list[int], int, str]) -> None:
    said, seeds, steps, folder = given
    for seed in seeds:
        lab.start(*said, seed=seed, results_dir=folder).train(steps=steps)


def _together(given: tuple[Words, list[int], int, str]) -> None:
    said, seeds, steps, folder = given
    lab.sweep(*said, seeds=seeds, steps=steps, results_dir=folder)


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


def seconds(way: Callable[[str], None]) -> float:
    """Time of one way, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        way(folder)
        return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    seeds = list(range(SEEDS))
    halves = [seeds[k::PROCESSES] for k in range(PROCESSES)]
    print("batch  probes    pool of 2   together, 1 process   together, 2 processes   (s; ratio)")
    with _pool() as pool:
        for batch, steps in BATCHES.items():
            for probes in ("none", "default"):
                said = words(batch, probes)

                def alone(folder: str, said: Words = said, steps: int = steps) -> None:
                    parts = [(said, half, steps, f"{folder}/{k}") for k, half in enumerate(halves)]
                    pool.map(_alone, parts, chunksize=1)

                def once(folder: str, said: Words = said, steps: int = steps) -> None:
                    _together((said, seeds, steps, folder))

                def twice(folder: str, said: Words = said, steps: int = steps) -> None:
                    parts = [(said, half, steps, f"{folder}/{k}") for k, half in enumerate(halves)]
                    pool.map(_together, parts, chunksize=1)

                pooled, one, two = (seconds(way) for way in (alone, once, twice))
                print(
                    f"{batch:>5}  {probes:8} {pooled:9.2f} {one:12.2f} ({pooled / one:.2f})"
                    f" {two:16.2f} ({pooled / two:.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    print(f"{Path(__file__).stem}: {SEEDS} seeds, torch {torch.__version__}")
    main()
