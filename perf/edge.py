"""Distance to the edge beside plain sharpness: `python -m perf.edge [OPTIMIZER ...]`, of adam, rmsprop, sign, spectral.

The digits run, full batch, measured every 10 steps: once with λ₁(H) alone, once as the default
probes measure an optimizer whose edge is not on λ₁(H), which is the distance at every one of these
times and λ₁(H) at every tenth. Probes only read, so both sides follow one trajectory. Both run in
turn, A B A B …; the ratios are of the seconds spent in probes, of the shortest of each side and the
median over the pairs, and of the products that were spent.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from optbench.tasks.digits import digits
from torch.optim import Optimizer

from optbench.models.mlp import mlp
from optbench.optimizers.sign import Signum
from optbench.optimizers.steepest import SteepestDescent
from optbench.probes import Probe
from optbench.probes.edge import Edge
from optbench.probes.sharpness import Sharpness
from optbench.record.folder import METRICS, RunFolder, read_lines
from optbench.record.terminal import Terminal
from optbench.run.batches import Batches
from optbench.run.loop import Experiment, Runner, Settings
from optbench.run.update import Update

STEPS, PAIRS = 600, 7
Make = Callable[..., Optimizer]
OPTIMIZERS: dict[str, tuple[Make, str]] = {
    "adam": (lambda p: torch.optim.Adam(p, 2e-3), "≤ 1.3"),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, 1e-4), "≤ 1.3"),
    "sign": (lambda p: Signum(p, 1e-3, momentum=0), "none: 30 products and a gradient"),
    "spectral": (
        lambda p: SteepestDescent(p, 0.02, "spectral"),
        "none: 30 products with an SVD each",
    ),
}


@dataclass(frozen=True)
class Cost:
    """What the probes of one run took: seconds, and Hessian-vector products."""

    seconds: float
    hvps: int


def cost(make: Make, probes: Mapping[str, Probe]) -> Cost:
    """Run the digits MLP with these probes."""
    task = digits(seed=0)
    torch.manual_seed(0)
    net = mlp(task.input_shape, task.output_width, widths=[32, 32])
    update = Update(net, task.loss, make(net.parameters()))
    experiment = Experiment(task, Batches(task, "full", 0), update, probes, Settings(STEPS, 0), 1.0)
    with tempfile.TemporaryDirectory() as folder, RunFolder(Path(folder)) as run_folder:
        run_folder.open_series({})
        runner = Runner(experiment, run_folder, Terminal(STEPS))
        runner.terminal.say = lambda line: None  # type: ignore[method-assign]
        seconds = float(runner.run()["probe_seconds"])
        records = read_lines(Path(folder) / METRICS)
    return Cost(
        seconds, sum(r.get(key, 0) for r in records for key in ("sharpness/hvps", "edge/hvps"))
    )


def compare(name: str) -> None:
    """Print how much dearer the distance is than λ₁(H)."""
    make, target = OPTIMIZERS[name]
    pairs = []
    for _ in range(PAIRS):
        distance = cost(make, {"sharpness": Sharpness(10, thin=10), "edge": Edge()})
        plain = cost(make, {"sharpness": Sharpness(10, thin=1)})
        pairs.append((distance, plain))
    best = min(a.seconds for a, _ in pairs) / min(b.seconds for _, b in pairs)
    ratios = [a.seconds / b.seconds for a, b in pairs]
    print(
        f"{name:10} distance to the edge / sharpness {best:5.2f}  median "
        f"{statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}, {PAIRS} pairs), products {pairs[0][0].hvps} / "
        f"{pairs[0][1].hvps}  "
        f"target {target}",
        flush=True,
    )


def main() -> None:
    """Compare the optimizers named, all of them by default."""
    parser = argparse.ArgumentParser(prog="python -m perf.edge", description=__doc__)
    parser.add_argument("optimizers", nargs="*", choices=[*OPTIMIZERS, []], help="default: all")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {STEPS} steps, every 10")
    for name in parser.parse_args().optimizers or OPTIMIZERS:
        compare(name)


if __name__ == "__main__":
    main()
