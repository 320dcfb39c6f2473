"""Times of the measures of a checkpoint: `python -m perf.measures [NAME ...]`, default: all cheap ones.

An MLP 64-64-10 on digits (P = 4,810, n = 1,000), trained for 600 steps, on one thread. Each
measure is timed on a point of its own, as if it were asked for alone; "shared" is its share where
all are asked for at once, and what they have in common is computed once. Both are the shortest of
several repetitions, since whatever else a machine does only adds time.
"""

import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch import nn

from optbench import lab
from optbench.lab import Point
from optbench.lab.measures import chosen
from optbench.task import Task, classification

REPETITIONS = 5
EXAMPLES, WIDTH, STEPS, LR = 1000, 64, 600, 0.3
TARGET = 1.0  # seconds, for all that are cheap together


def digits() -> Task:
    """The first 1,000 digits to train on, the rest to test."""
    data = load_digits()
    inputs, labels = torch.tensor(data.data / 16).float(), torch.tensor(data.target)
    splits = {
        "train": (inputs[:EXAMPLES], labels[:EXAMPLES]),
        "test": (inputs[EXAMPLES:], labels[EXAMPLES:]),
    }
    return classification(splits, 10, "ce")


def trained(task: Task) -> tuple[nn.Module, torch.optim.Optimizer]:
    """An MLP after some full-batch steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))
    optimizer = torch.optim.SGD(model.parameters(), LR)
    for _ in range(STEPS):
        optimizer.zero_grad()
        task.loss(model(task.train.inputs), task.train.targets).backward()
        optimizer.step()
    return model, optimizer


def main() -> None:
    """Time the measures named, and all of them together."""
    parser = argparse.ArgumentParser(prog="python -m perf.measures", description=__doc__)
    parser.add_argument("names", nargs="*", help="default: all that are cheap; or `everything`")
    asked = parser.parse_args().names or ["all"]
    wanted = chosen(asked[0] if asked in (["all"], ["everything"]) else asked)
    names = [m.name for m in wanted]
    torch.set_num_threads(1)
    task = digits()
    model, optimizer = trained(task)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"torch {torch.__version__}, 1 thread, P = {parameters:,}, n = {EXAMPLES:,}")
    dear = any(m.dear for m in wanted)
    times = 1 if dear else REPETITIONS
    lab.measure(Point(model, task, optimizer))  # what torch does once a process
    totals, shared = [], []
    for _ in range(times):
        start = time.perf_counter()
        shared.append(lab.measure(Point(model, task, optimizer), names))
        totals.append(time.perf_counter() - start)
    print(f"{'measure':36} {'value':>11} {'alone, ms':>10} {'shared, ms':>11}  note")
    for name in names:
        alone = [lab.measure(Point(model, task, optimizer), [name])[name] for _ in range(times)]
        value, best = alone[0].value, min(r.seconds for r in alone)
        part = min(readings[name].seconds for readings in shared)
        said = alone[0].reason or alone[0].note or ""
        print(f"{name:36} {value:11.4g} {1e3 * best:10.1f} {1e3 * part:11.1f}  {said}", flush=True)
    median = sorted(totals)[len(totals) // 2]
    target = "" if dear else f"; target {TARGET} s"
    print(f"together {min(totals):.2f} s, median {median:.2f} s of {times}{target}")


if __name__ == "__main__":
    main()
