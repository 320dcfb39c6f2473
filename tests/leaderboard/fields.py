"""Simulated entrants: runs of a small protocol, made without training."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from optbench.leaderboard.run_line import Run
from optbench.protocol.suite import FINAL, TUNE, Suite, SuiteTask

TASK = SuiteTask(
    kind="vision",
    run=("task=digits", "steps=100"),
    metric="test/error",
    select="val/loss",
    start=1.0,
    good=0.0,
    targets=(0.8, 0.5, 0.2),
    floor=0.0,
)


def suite(tasks: int = 3, points: int = 2, seeds: int = 4, **changes: Any) -> Suite:
    """A protocol; its last task is held out."""
    return Suite(
        name="simulated",
        version=1,
        points=points,
        sobol_seed=0,
        tuning_seeds=(1000,),
        final_seeds=tuple(range(seeds)),
        held_out=f"task{tasks - 1}",
        common=(),
        tasks={f"task{t}": replace(TASK, **changes) for t in range(tasks)},
    )


def run(
    of: Suite,
    optimizer: str,
    task: str,
    phase: str,
    point: int,
    seed: int,
    error: float,
    **changes: Any,
) -> Run:
    """One run whose error falls in a straight line from 1; infinite is a divergence half-way."""
    diverged = math.isinf(error)
    steps = [0, 25, 50, 75, 100]
    falling = [1 - (1 - (1.0 if diverged else error)) * s / 100 for s in steps]
    content: dict[str, Any] = {
        "suite": of.name,
        "version": of.version,
        "digest": of.digest[:16],
        "task": task,
        "phase": phase,
        "point": point,
        "optimizer": optimizer,
        "seed": seed,
        "name": f"{task}-{optimizer}-{phase}{point}-seed{seed}",
        "status": "diverged" if diverged else "done",
        "step": 50 if diverged else 100,
        "steps": 100,
        "problem": f"problem of {task}",
        "data_hash": f"data of {task}",
        "init_hash": f"weights {seed}",
        "initial_loss": 2.3,
        "checked": None,
        "settings": {"lr": 0.1 * (point + 1)},
        "command": list(
            of.command(optimizer, task, phase, point, [f"optimizer.lr={0.1 * (point + 1):g}"], seed)
        ),
        "last": {}
        if diverged
        else {"test/error": error, "test/loss": 2 * error, "val/loss": error},
        "curve": {
            "step": steps,
            "cost/gradients": steps,
            "val/loss": falling,
            "test/loss": falling,
        },
        "gradients": 100,
        "train_seconds": 1.0,
    }
    return Run(**(content | changes))


def entrant(
    of: Suite,
    optimizer: str,
    errors: Any,
    diverged: Mapping[tuple[int, int], bool] | None = None,
    **changes: Any,
) -> list[Run]:
    """Every run of one optimizer, with final errors (T, S); its point 1 is the better one."""
    errors = np.broadcast_to(np.asarray(errors, dtype=float), (len(of.tasks), len(of.final_seeds)))
    runs = [
        run(of, optimizer, task, TUNE, point, seed, 0.9 - 0.1 * point, **changes)
        for task in of.tuned
        for point in range(of.points)
        for seed in of.tuning_seeds
    ]
    best = of.points - 1
    for t, task in enumerate(of.tasks):
        for s, seed in enumerate(of.final_seeds):
            error = math.inf if diverged and diverged.get((t, s)) else float(errors[t, s])
            runs.append(run(of, optimizer, task, FINAL, best, seed, error, **changes))
    return runs
