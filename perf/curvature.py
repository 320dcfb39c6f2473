"""Cost and accuracy of the curvature engine beside its peers, in one run.

python -m perf.curvature accuracy --case digits     the table of engines at the edge of stability
python -m perf.curvature ratio                      time of a product over that of a gradient
python -m perf.curvature memory                     peak memory over a training step's, and in N
python -m perf.curvature growth --plot growth.png   cost against P and k
python -m perf.curvature tracking [KEY=VALUE ...]   what the sharpness probe adds to a main job
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from optbench.configuration.build import build
from optbench.curvature import Hessian
from optbench.curvature.chunk_loss import Criterion
from optbench.curvature.chunks import Pair
from optbench.models.vit import vit
from optbench.paths import conf_folder
from optbench.probes import State, due
from optbench.probes.shared import Shared
from optbench.run.memory import keep_freed_memory
from perf.cases import CIFAR, CNN, ViT, cifar, cifar_run, digits_run, mlp
from perf.growth import growth
from perf.peers import Engine, cold_lanczos, ours, pyhessian, scipy_in_double, scipy_on_curvlinops
from perf.timing import gradient, over, peak_bytes, seconds


def accuracy(options: argparse.Namespace) -> None:
    """HVPs, time and error per measurement, every engine at the same checkpoints."""
    engines: dict[str, Engine] = {
        "ours, default": ours(5e-3),
        "ours, accuracy 1e-4": ours(1e-4),
        "ours, accuracy 1e-5": ours(1e-5),
        "PyHessian, default": pyhessian(1e-3, 100),
        "PyHessian, tol 1e-6": pyhessian(1e-6, 1000),
        "eigsh on curvlinops, tol 1e-3": scipy_on_curvlinops(1e-3),
        "eigsh on curvlinops, tol 0": scipy_on_curvlinops(0),
        "cold Lanczos, residual 1e-2": cold_lanczos(1e-2),
        "cold Lanczos, residual 3e-3": cold_lanczos(3e-3),
    }
    first = 300 if options.case == "digits" else 400
    until = first + 10 * options.checkpoints + 1
    model, data, steps = (
        digits_run(options.seed, steps=until)
        if options.case == "digits"
        else cifar_run(options.seed, steps=until, count=options.examples)
    )
    rows: dict[str, list[tuple[int, float, float]]] = {name: [] for name in engines}
    for step in steps:
        if step < first or step % 10:
            continue
        truth = scipy_in_double(model, data)[0]
        for name, engine in engines.items():
            start = time.perf_counter()
            value, hvps = engine(model, data)
            rows[name].append((hvps, time.perf_counter() - start, (truth - value) / truth))
    print(
        f"{options.case}, seed {options.seed}: {options.checkpoints} checkpoints, 10 steps apart, "
        f"from step {first}"
    )
    print(
        f"{'engine':32}{'HVPs':>6}{'max':>6}{'ms':>9}{'median error':>14}{'worst':>10}{'>1% off':>9}"
    )
    for name, measured in rows.items():
        warm = measured[1:]  # the first of ours is cold
        counts, times, errors = (
            [row[0] for row in warm],
            [row[1] for row in warm],
            [row[2] for row in warm],
        )
        off = sum(abs(e) > 0.01 for e in errors) / len(errors)
        worst, middle = max(map(abs, errors)), median(map(abs, errors))
        print(
            f"{name:32}{median(counts):6.0f}{max(counts):6.0f}{1e3 * median(times):9.1f}"
            f"{middle:14.1e}{worst:10.1e}{off:9.0%}"
        )


def models() -> list[tuple[str, nn.Module, Criterion, Pair]]:
    """The three kinds of network, with a batch each; of transformers ours, and one of torch's layers."""
    torch.manual_seed(0)
    images, labels = torch.randn(128, 3, 32, 32), torch.arange(128) % 10
    flat = torch.randn(1000, 3072)
    return [
        (
            "MLP 3072-200-200-10, 1000",
            mlp(3072, 200, 200, 10),
            cross_entropy,
            (flat, torch.arange(1000) % 10),
        ),
        ("CNN, 128", CNN(), cross_entropy, (images, labels)),
        ("ViT (optbench's), 128", vit((3, 32, 32), 10), cross_entropy, (images, labels)),
        ("ViT (torch's layers), 128", ViT(), cross_entropy, (images, labels)),
    ]


def ratio(_: argparse.Namespace) -> None:
    """Time of one product over that of one gradient, each pair one after the other: the clock of a machine drifts."""
    print(
        f"{'model, batch':28}{'P':>9}{'gradient ms':>13}{'cached':>8}{'set-up':>8}{'recomputed':>12}"
        f"{'torch layers':>14}"
    )
    for name, model, loss, data in models():

        def base(m: nn.Module = model, f: Criterion = loss, d: Pair = data) -> object:
            return gradient(m, f, d)

        H = Hessian(model, loss, data, strategy="cached")
        R = Hessian(model, loss, data, strategy="recomputed")
        v = torch.randn(H.size)
        step = seconds(base)
        cached, recomputed = over(lambda H=H, v=v: H @ v, base), over(lambda R=R, v=v: R @ v, base)  # type: ignore[misc]
        whole = over(lambda H=H, v=v: (H.refresh(), H @ v), base)  # type: ignore[misc]
        T = Hessian(model, loss, data, strategy="cached", layers="torch")
        plain = over(lambda T=T, v=v: T @ v, base)  # type: ignore[misc]
        print(
            f"{name:28}{H.size:9}{1e3 * step:13.1f}{cached:8.2f}{whole - cached:8.2f}"
            f"{recomputed:12.2f}{plain:14.2f}"
        )


def memory(_: argparse.Namespace) -> None:
    """Peak over a training step's on the same chunk, and against the number of examples."""
    print(f"{'model, chunk':28}{'step MiB':>10}{'cached':>8}{'recomputed':>12}")
    for name, model, loss, data in models():
        step = peak_bytes(lambda m=model, f=loss, d=data: gradient(m, f, d))  # type: ignore[misc]
        peaks = []
        for strategy in ("cached", "recomputed"):
            H = Hessian(model, loss, data, strategy=strategy, chunk=len(data[0]))
            H.prepare()
            v = torch.randn(H.size)
            peaks.append(peak_bytes(lambda H=H, v=v: H @ v))  # type: ignore[misc]
        print(f"{name:28}{step / 2**20:10.1f}{peaks[0] / step:8.2f}{peaks[1] / step:12.2f}")
    if not CIFAR.exists():
        print(f"no CIFAR-10 in {CIFAR}, so memory against N is left out: set OPTBENCH_DATA")
        return
    print(f"{'N (CIFAR-10, MLP 3072-200-200-10, 500)':40}{'peak MiB':>10}{'s':>8}")
    model = nn.Sequential(nn.Flatten(), mlp(3072, 200, 200, 10))
    everything = cifar(50_000, one=False)
    for count in (1_000, 10_000, 50_000):
        data = everything[0][:count], everything[1][:count]
        H = Hessian(model, cross_entropy, data, chunk=500, strategy="recomputed")
        H.prepare()
        start = time.perf_counter()
        peak = peak_bytes(lambda H=H: H @ torch.randn(H.size))  # type: ignore[misc]
        print(f"{count:<40}{peak / 2**20:10.1f}{time.perf_counter() - start:8.1f}")


def tracking(options: argparse.Namespace) -> None:
    """Processor time that the sharpness probe of a main job adds to its updates, at its own cadence."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        experiment = build(compose("config", options.overrides))
    update, batches, steps = experiment.update, experiment.batches, experiment.settings.steps
    shared, probe = Shared(), experiment.probes["sharpness"]
    hvps: list[int] = []
    training = measuring = 0.0
    for step in range(min(steps, options.until or steps) + 1):
        start = time.process_time()
        if due({"sharpness": probe}, step, steps, batches.per_epoch):
            state = State(
                step, steps, experiment.task, update.model, update.optimizer, batches.full, batches.per_epoch, 0,
                shared=shared,
            )  # fmt: skip
            found = probe(state)["sharpness/hvps"]
            assert isinstance(found, int)
            hvps.append(found)
            shared.release()
        middle = time.process_time()
        measuring += middle - start
        update(*batches.next())
        training += time.process_time() - middle
    print(
        f"{step} updates: {training:.2f} s; {len(hvps)} measurements: {measuring:.2f} s", end=", "
    )
    print(
        f"{sum(map(float, hvps)):.0f} products, median {median(map(float, hvps)):.0f}; adds "
        f"{measuring / training:.0%}"
    )


def main() -> None:
    """Run the section named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sections = {f.__name__: f for f in (accuracy, ratio, memory, growth, tracking)}
    parser.add_argument("section", choices=sections)
    parser.add_argument(
        "overrides", nargs="*", help="of the main job's configuration, for `tracking`"
    )
    parser.add_argument(
        "--until", type=int, help="updates after which `tracking` stops; all by default"
    )
    parser.add_argument("--case", choices=["digits", "cifar"], default="digits")
    parser.add_argument("--checkpoints", type=int, default=30)
    parser.add_argument("--examples", type=int, default=1000, help="of CIFAR-10, for `accuracy`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads", type=int, default=1, help="torch's threads; more is unfair on a shared machine"
    )
    parser.add_argument("--plot", help="file for the plot of `growth`")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the main job does; the peers in this process gain by it as well
    sections[options.section](options)


if __name__ == "__main__":
    main()
