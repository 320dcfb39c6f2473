"""The training loop beside its peers: `python -m perf.loop [PART ...]`, parts: cnn mlp loader memory start.

Both sides run in turn, A B A B …, in one process. Two ratios are printed: of the shortest times of
each side, since whatever else a machine does only adds time, and the median over the pairs, with
its range. The peers are the shortest PyTorch loop that does the same mathematics, and a DataLoader
with torchvision's transforms.
"""

import argparse
import gc
import io
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from optbench.tasks.cifar import MEAN, STD, crop_and_mirror
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from optbench.data.torchvision import import_datasets
from optbench.models.cnn import cnn
from optbench.models.mlp import mlp
from optbench.record.folder import RunFolder
from optbench.record.terminal import Terminal
from optbench.run.batches import Batches
from optbench.run.loop import Experiment, Runner, Settings
from optbench.run.memory import keep_freed_memory
from optbench.run.update import Update
from optbench.task import Task, classification


def images(n: int) -> Task:
    """Random images: speed does not depend on what is on them."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, 3, 32, 32, generator=generator).contiguous(
        memory_format=torch.channels_last
    )
    return classification(
        {"train": (inputs, torch.arange(n) % 10)}, 10, "ce", partial(crop_and_mirror, padding=4)
    )


def vectors(n: int) -> Task:
    """Digits in shape."""
    generator = torch.Generator().manual_seed(0)
    return classification(
        {"train": (torch.rand(n, 1, 8, 8, generator=generator), torch.arange(n) % 10)}, 10, "mse"
    )


def ours(task: Task, net: nn.Module, batch: int, steps: int) -> None:
    """Run our loop, with everything that it does but probes: records, divergence checks, the bar."""
    update = Update(net, task.loss, torch.optim.SGD(net.parameters(), 0.01))
    experiment = Experiment(
        task, Batches(task, batch, 0), update, {}, Settings(steps, 0, log_every=20), 1.0
    )
    with tempfile.TemporaryDirectory() as folder, RunFolder(Path(folder)) as run_folder:
        run_folder.open_series({})
        with io.StringIO() as unseen:
            Runner(experiment, run_folder, Terminal(steps, Console(file=unseen))).run()


def bare(task: Task, net: nn.Module, batch: int, steps: int) -> None:
    """Run the shortest loop with the same mathematics."""
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    X, Y, loss = task.train.inputs, task.train.targets, task.loss
    generator = torch.Generator().manual_seed(0)
    done = 0
    while True:
        for i in torch.randperm(len(X), generator=generator).split(batch)[: len(X) // batch]:
            if done == steps:
                return
            x = X[i] if task.augment is None else task.augment(X[i], generator)
            optimizer.zero_grad()
            loss(net(x), Y[i]).backward()
            optimizer.step()
            done += 1


def paired(
    a: Callable[[], object], b: Callable[[], object], pairs: int
) -> list[tuple[float, float]]:
    """Return the seconds that a and b take, pair by pair, after one run of each that is not counted."""
    a(), b()
    rows = []
    console = Console(stderr=True)
    for _ in track(range(pairs), "pairs", console=console, transient=True):
        seconds = []
        for run in (a, b):
            gc.collect()
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        rows.append((seconds[0], seconds[1]))
    return rows


def report(what: str, rows: list[tuple[float, float]], target: str) -> None:
    best = min(a for a, _ in rows) / min(b for _, b in rows)
    ratios = [a / b for a, b in rows]
    print(
        f"{what:52} {best:5.2f}  median {statistics.median(ratios):.2f} ({min(ratios):.2f} to "
        f"{max(ratios):.2f}, "
        f"{len(ratios)} pairs)  target {target}",
        flush=True,
    )


def _net(task: Task, factory: Callable[..., nn.Module]) -> nn.Module:
    net = factory(task.input_shape, task.output_width)
    return net.to(memory_format=torch.channels_last) if factory is cnn else net  # type: ignore[call-overload]


def compare_cnn() -> None:
    task = images(4000)
    nets = [_net(task, cnn) for _ in range(2)]
    ratios = paired(lambda: ours(task, nets[0], 64, 30), lambda: bare(task, nets[1], 64, 30), 25)
    report("our loop / shortest loop, CIFAR CNN, batch 64", ratios, "≤ 1.05")


def compare_mlp() -> None:
    task = vectors(1000)
    nets = [_net(task, mlp) for _ in range(2)]
    ratios = paired(
        lambda: ours(task, nets[0], 64, 3000), lambda: bare(task, nets[1], 64, 3000), 25
    )
    report("our loop / shortest loop, digits MLP, batch 64", ratios, "≤ 1.05")


def compare_loader() -> None:
    """A DataLoader over PIL images with the usual three transforms, as in PyTorch's tutorial.

    There it loads in the main process or in two workers, and the network keeps the default memory
    format. The second pair of rows gives the peer our channels_last as well, so that what remains
    is the loading alone.
    """
    import_datasets()
    from PIL import Image
    from torchvision import transforms

    n, batch = 2000, 64
    task = images(n)
    net = _net(task, cnn)
    pixels = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8).numpy()
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )

    class LikeTorchvision(torch.utils.data.Dataset[tuple[Tensor, int]]):
        def __len__(self) -> int:
            return n

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            return transform(Image.fromarray(pixels[i])), i % 10

    def theirs(workers: int, memory_format: torch.memory_format) -> Callable[[], None]:
        loader: torch.utils.data.DataLoader[tuple[Tensor, int]] = torch.utils.data.DataLoader(
            LikeTorchvision(),
            batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        peer = cnn(task.input_shape, task.output_width).to(memory_format=memory_format)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(peer.parameters(), 0.01)

        def epoch() -> None:
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(peer(x.contiguous(memory_format=memory_format)), y).backward()
                optimizer.step()

        return epoch

    for memory_format, target in (
        (torch.contiguous_format, "≥ 1.5"),
        (torch.channels_last, "none"),
    ):
        for workers in (0, 2):
            ratios = paired(
                theirs(workers, memory_format), lambda: ours(task, net, batch, n // batch), 9
            )
            what = "" if memory_format == torch.contiguous_format else ", channels_last"
            report(f"DataLoader, {workers} workers{what} / our loop, CIFAR CNN", ratios, target)


def peak_memory(which: str) -> None:
    """Print this process's peak memory after training one way."""
    task = images(20_000)
    (ours if which == "ours" else bare)(task, _net(task, cnn), 64, 40)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def compare_memory() -> None:
    def peak(which: str) -> int:
        command = [sys.executable, "-m", "perf.loop", "peak", which]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    ratios = [(float(peak("ours")), float(peak("bare"))) for _ in range(3)]
    report("peak memory, our loop / shortest loop, CIFAR CNN", ratios, "≤ 1.05")


def time_start() -> None:
    """Time the default command to its first step, and the imports in it."""
    program = (
        "import time; start = time.perf_counter(); import optbench.cli.command_job as cli\n"
        "imported = time.perf_counter() - start\n"
        "from optbench.run.update import Update\n"
        "import os, sys\n"
        "def first(self, *_): print(imported, time.perf_counter() - start, flush=True); "
        "os._exit(0)\n"
        "Update.__call__ = first\n"
        "sys.argv = ['optbench', 'results_dir=' + sys.argv[1], 'wandb.mode=offline']; cli.main()"
    )
    rows = []
    for _ in range(5):
        # W&B may still be writing there when the command has ended
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            done = subprocess.run(
                [sys.executable, "-c", program, folder], capture_output=True, text=True, check=True
            )
            rows.append([float(x) for x in done.stdout.split()])
    imports, first_step = (statistics.median(column) for column in zip(*rows, strict=True))
    print(
        f"{'default command: imports, then first step':52} {imports:.1f} s, {first_step:.1f} s  "
        "target 3, 6"
    )


PARTS = {
    "cnn": compare_cnn,
    "mlp": compare_mlp,
    "loader": compare_loader,
    "memory": compare_memory,
    "start": time_start,
}


def main() -> None:
    """Run the parts named, all of them by default."""
    if sys.argv[1:2] == ["peak"]:
        peak_memory(sys.argv[2])
        return
    parser = argparse.ArgumentParser(prog="python -m perf.loop", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    keep_freed_memory()  # as the main job does; the peers in this process gain by it as well
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    parts = parser.parse_args().parts or list(PARTS)
    for number, part in enumerate(parts, 1):
        print(f"part {number} of {len(parts)}: {part}", file=sys.stderr)
        PARTS[part]()


if __name__ == "__main__":
    main()
