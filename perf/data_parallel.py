"""A Hessian product on several processes beside one process's: `python -m perf.data_parallel`.

    python -m perf.data_parallel [--processes 2] [--examples 2000] [--repeats 7]

Printed is t_R / (t_1 / R), the time of a product on R processes over a fair share of the time on
one, with one thread each: 1 is perfect, 1.15 the goal. Above 1 are the sum over processes (timed
alone in the column `sum`) and what the processes take from each other, such as memory bandwidth,
and what a part of the examples costs above its share. The last two are in `apart`: the processes
multiply with the Hessians of their parts at once, and tell each other nothing.

The kinds are timed in turn, A B C A B C …, in the same processes; while one works alone the others
sleep. Three ratios: of the shortest times, since whatever else a machine does only adds time; of
the medians; and of what the CPU spent, which others on the machine hardly change, but which does
not count waiting. With fewer idle cores than processes the first two say nothing: the line above
the table tells the load.
"""

from __future__ import annotations

import argparse
import os
import socket
import time
from collections.abc import Callable
from multiprocessing import get_context
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from optbench.curvature import Hessian
from optbench.curvature.chunks import Pair
from optbench.ranks import Ranks
from optbench.ranks.distributed import joined
from optbench.run.memory import keep_freed_memory
from perf.cases import mlp

Times = list[tuple[float, float]]
"""Seconds on the clock and of the CPU, of each call."""


def cases(examples: int) -> list[tuple[str, nn.Module, Pair]]:
    """Models of P ≥ 10⁶ parameters, with data."""
    torch.manual_seed(0)
    labels, few = torch.arange(examples) % 10, max(64, examples // 10)
    return [
        ("MLP 784-800-500-10", mlp(784, 800, 500, 10), (torch.randn(examples, 784), labels)),
        ("MLP 3072-400-200-10", mlp(3072, 400, 200, 10), (torch.randn(examples, 3072), labels)),
        ("CNN 64-128-256", _cnn(), (torch.randn(few, 3, 32, 32), labels[:few])),
    ]


def _cnn() -> nn.Module:
    blocks = [
        (nn.Conv2d(before, after, 3, stride=2, padding=1), nn.Tanh())
        for before, after in ((3, 64), (64, 128), (128, 256))
    ]
    layers = [layer for block in blocks for layer in block]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4096, 180), nn.Tanh(), nn.Linear(180, 10))


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of this process's CPU."""
    wall, used = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - used


def measure(ranks: Ranks, model: nn.Module, data: Pair, repeats: int) -> dict[str, Times]:
    """Times of a product alone, of one apart, of one together, and of the sum; in this process."""
    together = Hessian(model, cross_entropy, data, strategy="cached", ranks=ranks)
    alone = Hessian(model, cross_entropy, data, strategy="cached")
    part = tuple(tensor[ranks.shard(len(tensor))] for tensor in data)
    apart = Hessian(model, cross_entropy, (part[0], part[1]), strategy="cached")
    v = torch.randn(together.size, generator=torch.Generator().manual_seed(0))
    whole = torch.zeros_like(v)
    if ranks.leads:
        whole = alone @ v
    shared, _ = together @ v, apart @ v
    if ranks.leads:
        error = float((shared - whole).norm() / whole.norm())
        assert error < 1e-5, f"products differ by {error:.1e}"
    times: dict[str, Times] = {"alone": [], "apart": [], "together": [], "sum": []}
    for _ in range(repeats):
        if ranks.leads:
            times["alone"].append(timed(lambda: alone @ v))
        ranks.sums(0.0)  # the others wait here, asleep
        times["apart"].append(timed(lambda: apart @ v))
        ranks.sums(0.0)
        times["together"].append(timed(lambda: together @ v))
        ranks.sums(0.0)
        times["sum"].append(timed(lambda: ranks.add_up([whole])))
    return times


def worker(rank: int, size: int, port: int, examples: int, repeats: int) -> None:
    """Measure every case in one of the processes; the first prints."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    keep_freed_memory()
    with joined("cpu") as ranks:
        for name, model, data in cases(examples):
            times = measure(ranks, model, data, repeats)
            used = torch.tensor([[cpu for _, cpu in times["together"]] for _ in range(size)])
            used[torch.arange(size) != rank] = 0
            ranks.add_up([used])  # of all processes
            if ranks.leads:
                parameters = sum(p.numel() for p in model.parameters())
                _print_row(f"{name}, {len(data[0])}", parameters, size, times, used)


def _print_row(
    name: str, parameters: int, size: int, times: dict[str, Times], used: Tensor
) -> None:
    walls = {kind: [wall for wall, _ in measured] for kind, measured in times.items()}
    cpu_alone = median(cpu for _, cpu in times["alone"])
    cpu = float(used.mean(0).median()) / (cpu_alone / size)
    share = min(walls["alone"]) / size
    best, apart = min(walls["together"]) / share, min(walls["apart"]) / share
    middle = median(walls["together"]) / (median(walls["alone"]) / size)
    print(
        f"{name:27}{parameters:10,}{1e3 * min(walls['alone']):9.0f}"
        f"{1e3 * min(walls['together']):9.0f}{1e3 * min(walls['sum']):7.1f}"
        f"{best:9.2f}{middle:8.2f}{cpu:6.2f}{apart:7.2f}"
    )


def main() -> None:
    """Start the processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--examples", type=int, default=2000, help="of an MLP; a CNN has a tenth")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = options.processes
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; {size} processes")
    print(
        f"{'model, examples':27}{'P':>10}{'1: ms':>9}{f'{size}: ms':>9}{'sum ms':>7}"
        f"{'shortest':>9}{'median':>8}{'CPU':>6}{'apart':>7}"
    )
    context = get_context("spawn")
    workers = [
        context.Process(target=worker, args=(rank, size, port, options.examples, options.repeats))
        for rank in range(size)
    ]
    for process in workers:
        process.start()
    for process in workers:
        process.join()


if __name__ == "__main__":
    main()
