"""Time of an update beside plain SGD's: `python -m perf.optimizers [NAME ...]`.

An update is forward, backward and step of an MLP with two hidden layers of 256 on 128 examples,
through `optbench.run.update`. Every optimizer takes turns with SGD, A B A B …; the ratio is of the
shortest times, since whatever else a machine does only adds time. Where an optimizer has `foreach`
or `fused`, each is timed on its own. The result is written to perf/optimizers.json, from which
`python -m docs.build` takes its column.
"""

import argparse
import inspect
import json
import time
from pathlib import Path

import torch
from torch import nn

from optbench.check.subject import Subject, entries, optimizer
from optbench.errors import UserError
from optbench.run.update import Update
from optbench.task import half_mse

RESULT = Path(__file__).with_suffix(".json")
VARIANTS: tuple[tuple[str, ...], ...] = ((), ("foreach=true",), ("fused=true",))
STEPS, ROUNDS = 10, 8


def update(subject: Subject) -> Update:
    """An update of the MLP, warmed up."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10)
    )
    made = Update(net, half_mse, subject.factory(list(net.parameters())))
    seconds(made)
    return made


def seconds(made: Update) -> float:
    """Time of some updates."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(128, 64, generator=generator), torch.randn(128, 10, generator=generator)
    start = time.perf_counter()
    for _ in range(STEPS):
        made(x, y)
    return time.perf_counter() - start


def ratio(subject: Subject) -> float:
    """Shortest time of the subject over the shortest of SGD."""
    own, sgd = update(subject), update(optimizer("sgd"))
    pairs = [(seconds(own), seconds(sgd)) for _ in range(ROUNDS)]
    return min(a for a, _ in pairs) / min(b for _, b in pairs)


def accepts(name: str, variant: tuple[str, ...]) -> bool:
    """Whether the class itself has the setting; keyword arguments that are swallowed do not count."""
    key = variant[0].partition("=")[0]
    made = optimizer(name).factory([nn.Parameter(torch.ones(2, 2))])
    return key in inspect.signature(type(made)).parameters


def main() -> None:
    """Time the optimizers named, all by default."""
    parser = argparse.ArgumentParser(prog="python -m perf.optimizers", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    names = parser.parse_args().names or entries("optimizer")
    found: dict[str, dict[str, float]] = (
        json.loads(RESULT.read_text())["ratios"] if RESULT.exists() else {}
    )
    for name in names:
        found[name] = {}
        for variant in VARIANTS:
            if variant and not accepts(name, variant):
                continue
            try:
                found[name]["".join(variant) or "default"] = round(
                    ratio(optimizer(name, variant)), 2
                )
            except (UserError, RuntimeError) as why:
                print(f"{name} {''.join(variant)}: {why}")
        print(f"{name:28}", "  ".join(f"{k} {v:.2f}" for k, v in found[name].items()), flush=True)
    machine = f"torch {torch.__version__}, CPU, {torch.get_num_threads()} threads"
    content = {"machine": machine, "ratios": {k: found[k] for k in sorted(found)}}
    RESULT.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
