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
from collections.abc import Callable
from statistics import median

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from optbench.config import build
from optbench.curvature import Eigenpairs, Hessian, top_eigenpairs
from optbench.curvature.chunks import Pair
from optbench.curvature.objective import Loss
from optbench.location import conf_folder
from optbench.memory import keep_freed_memory
from optbench.models.vit import vit
from optbench.probes import State, due
from optbench.probes.shared import Shared
from perf.cases import CIFAR, CNN, ViT, cifar, cifar_run, descend, digits, digits_run, half_mse, mlp
from perf.peers import Engine, cold_lanczos, ours, pyhessian, scipy_in_double, scipy_on_curvlinops


def seconds(action: Callable[[], object], repeats: int = 7, warm: bool = True) -> float:
    """Median seconds of an action, after one to warm up."""
    if warm:
        action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return median(times)


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
    print(f"{options.case}, seed {options.seed}: {options.checkpoints} checkpoints, 10 steps apart, from step {first}")
    print(f"{'engine':32}{'HVPs':>6}{'max':>6}{'ms':>9}{'median error':>14}{'worst':>10}{'>1% off':>9}")
    for name, measured in rows.items():
        warm = measured[1:]  # the first of ours is cold
        counts, times, errors = ([row[0] for row in warm], [row[1] for row in warm], [row[2] for row in warm])
        off = sum(abs(e) > 0.01 for e in errors) / len(errors)
        worst, middle = max(map(abs, errors)), median(map(abs, errors))
        print(
            f"{name:32}{median(counts):6.0f}{max(counts):6.0f}{1e3 * median(times):9.1f}"
            f"{middle:14.1e}{worst:10.1e}{off:9.0%}"
        )


def models() -> list[tuple[str, nn.Module, Loss, Pair]]:
    """The three kinds of network, with a batch each; of transformers ours, and one of torch's layers."""
    torch.manual_seed(0)
    images, labels = torch.randn(128, 3, 32, 32), torch.arange(128) % 10
    flat = torch.randn(1000, 3072)
    return [
        ("MLP 3072-200-200-10, 1000", mlp(3072, 200, 200, 10), cross_entropy, (flat, torch.arange(1000) % 10)),
        ("CNN, 128", CNN(), cross_entropy, (images, labels)),
        ("ViT (optbench's), 128", vit((3, 32, 32), 10), cross_entropy, (images, labels)),
        ("ViT (torch's layers), 128", ViT(), cross_entropy, (images, labels)),
    ]


def gradient(model: nn.Module, loss: Loss, data: Pair) -> object:
    """One gradient, as in a training step."""
    return torch.autograd.grad(loss(model(data[0]), data[1]), list(model.parameters()))


def ratio(_: argparse.Namespace) -> None:
    """Time of one product over that of one gradient, each pair one after the other: the clock of a machine drifts."""
    print(f"{'model, batch':28}{'P':>9}{'gradient ms':>13}{'cached':>8}{'set-up':>8}{'recomputed':>12}", end="")
    print(f"{'linearized':>12}{'set-up':>8}")
    for name, model, loss, data in models():

        def base(m: nn.Module = model, f: Loss = loss, d: Pair = data) -> object:
            return gradient(m, f, d)

        H = Hessian(model, loss, data, strategy="cached")
        R = Hessian(model, loss, data, strategy="recomputed")
        v = torch.randn(H.size)
        step = seconds(base)
        cached, recomputed = over(lambda H=H, v=v: H @ v, base), over(lambda R=R, v=v: R @ v, base)  # type: ignore[misc]
        whole = over(lambda H=H, v=v: (H.refresh(), H @ v), base)  # type: ignore[misc]
        print(f"{name:28}{H.size:9}{1e3 * step:13.1f}{cached:8.2f}{whole - cached:8.2f}{recomputed:12.2f}", end="")
        try:
            L = Hessian(model, loss, data, strategy="linearized")
            traced = over(lambda L=L, v=v: L @ v, base)  # type: ignore[misc]
            whole = over(lambda L=L, v=v: (L.refresh(), L @ v), base, 2)  # type: ignore[misc]
            print(f"{traced:12.2f}{whole - traced:8.2f}")
        except (RuntimeError, ValueError) as error:
            print(f"   {type(error).__name__}: {str(error)[:60]}")


def over(action: Callable[[], object], base: Callable[[], object], pairs: int = 15) -> float:
    """Median over pairs of the time of an action over that of a base."""
    action()
    return median(seconds(action, 1, warm=False) / seconds(base, 1, warm=False) for _ in range(pairs))


def peak_bytes(action: Callable[[], object]) -> int:
    """Largest sum of live CPU allocations made by an action."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = action()
    del kept
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


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


def growth(options: argparse.Namespace) -> None:
    """Time of a product and of a solve against P, and products of a solve against k."""
    rows = []
    print(
        f"{'P':>10}{'gradient ms':>13}{'product ms':>12}{'cold HVPs':>11}{'cold s':>8}{'warm HVPs':>11}{'warm ms':>9}"
    )
    for width in (70, 280, 960, 3120):
        rows.append(row := _growth_in_p(width))
        print(f"{row[0]:10}{row[1]:13.1f}{row[2]:12.1f}{row[3]:11}{row[4]:8.1f}{row[5]:11}{row[6]:9.0f}", flush=True)
    ks, cold, warm = _growth_in_k()
    if options.plot:
        _plot(options.plot, rows, ks, cold, warm)


def _growth_in_p(width: int) -> tuple[int, float, float, int, float, int, float]:
    """P, ms of a gradient, ms of a product, products and s of a cold solve, products and ms of a warm one."""
    torch.manual_seed(0)
    model, data = mlp(64, width, width, 10), digits(300)
    with Hessian(model, half_mse, data) as H:
        v = torch.randn(H.size)
        base = seconds(lambda: gradient(model, half_mse, data), 3)
        product = seconds(lambda: H @ v, 3)
        start = time.perf_counter()
        cold = top_eigenpairs(H)
        middle = time.perf_counter()
    for _ in descend(model, data, 0.5 / float(cold.values[0]), 10):
        pass
    with H:
        again = time.perf_counter()
        warm = top_eigenpairs(H, start=cold)
        spent = time.perf_counter() - again
    return H.size, 1e3 * base, 1e3 * product, cold.hvps, middle - start, warm.hvps, 1e3 * spent


def _growth_in_k() -> tuple[list[int], list[int], list[int]]:
    model, data, steps = digits_run(0, steps=411)
    H = Hessian(model, half_mse, data)
    ks = [1, 2, 4, 8, 16, 32]
    print(f"{'k (digits, at the edge)':28}{'cold HVPs':>10}{'warm HVPs':>10}{'warm ms':>10}")
    starts: dict[int, Eigenpairs] = {}
    cold, warm = [], []
    for step in steps:
        if step not in (390, 400, 410):
            continue
        for k in ks:
            with H:
                start = time.perf_counter()
                starts[k] = top_eigenpairs(H, k, start=starts.get(k))
                spent = 1e3 * (time.perf_counter() - start)
            if step == 390:
                cold.append(starts[k].hvps)
            elif step == 410:
                warm.append(starts[k].hvps)
                print(f"{k:<28}{cold[len(warm) - 1]:10}{warm[-1]:10}{spent:10.1f}", flush=True)
    return ks, cold, warm


def _plot(
    path: str, rows: list[tuple[int, float, float, int, float, int, float]], ks: list[int], *costs: list[int]
) -> None:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    sizes, base, product, _, _, _, warm = zip(*rows, strict=True)
    for label, times in (("gradient", base), ("product", product), ("λ₁, ten steps on", warm)):
        left.loglog(sizes, times, "o-", label=label)
    left.set(xlabel="parameters P", ylabel="ms, one thread")
    for label, found in zip(("cold", "warm, ten steps on"), costs, strict=True):
        right.plot(ks, found, "o-", label=label)
    right.set_xscale("log", base=2)
    right.set_yscale("log", base=2)
    right.set(xlabel="eigenpairs k (digits, at the edge)", ylabel="products", xticks=ks)
    right.xaxis.set_major_formatter("{x:g}")
    right.yaxis.set_major_formatter("{x:g}")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


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
    print(f"{step} updates: {training:.2f} s; {len(hvps)} measurements: {measuring:.2f} s", end=", ")
    print(
        f"{sum(map(float, hvps)):.0f} products, median {median(map(float, hvps)):.0f}; adds {measuring / training:.0%}"
    )


def main() -> None:
    """Run the section named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = {f.__name__: f for f in (accuracy, ratio, memory, growth, tracking)}
    parser.add_argument("section", choices=sections)
    parser.add_argument("overrides", nargs="*", help="of the main job's configuration, for `tracking`")
    parser.add_argument("--until", type=int, help="updates after which `tracking` stops; all by default")
    parser.add_argument("--case", choices=["digits", "cifar"], default="digits")
    parser.add_argument("--checkpoints", type=int, default=30)
    parser.add_argument("--examples", type=int, default=1000, help="of CIFAR-10, for `accuracy`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="torch's threads; more is unfair on a shared machine")
    parser.add_argument("--plot", help="file for the plot of `growth`")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the main job does; the peers in this process gain by it as well
    sections[options.section](options)


if __name__ == "__main__":
    main()
