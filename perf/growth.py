"""How the cost of curvature grows with the number of parameters and of eigenpairs."""

from __future__ import annotations

import argparse
import time

import torch

from optbench.curvature import Eigenpairs, Hessian, top_eigenpairs
from perf.cases import descend, digits, digits_run, half_mse, mlp
from perf.timing import gradient, seconds


def growth(options: argparse.Namespace) -> None:
    """Time of a product and of a solve against P, and products of a solve against k."""
    rows = []
    print(
        f"{'P':>10}{'gradient ms':>13}{'product ms':>12}{'cold HVPs':>11}{'cold s':>8}{'warm HVPs':>11}{'warm ms':>9}"
    )
    for width in (70, 280, 960, 3120):
        rows.append(row := _growth_in_p(width))
        print(
            f"{row[0]:10}{row[1]:13.1f}{row[2]:12.1f}{row[3]:11}{row[4]:8.1f}{row[5]:11}{row[6]:9.0f}",
            flush=True,
        )
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
    path: str,
    rows: list[tuple[int, float, float, int, float, int, float]],
    ks: list[int],
    *costs: list[int],
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
