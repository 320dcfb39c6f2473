"""What is checked: a name or an import path → a factory, and small problems to try it on."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from optbench.configuration.compose import compose_config
from optbench.configuration.construct import optimizer_factory
from optbench.configuration.keys import check
from optbench.errors import UserError, nearest
from optbench.paths import conf_folder
from optbench.run.update import Update
from optbench.task import half_mse


@dataclass(frozen=True)
class Subject:
    """An optimizer under check.

    Attributes:
        name: As given.
        factory: Parameters or groups → the optimizer, with its settings.
        settings: Those settings.
        excluded: Reasons for known failures, by name of check.
        rates: The learning rates in the settings, by path below `optimizer`.
    """

    name: str
    factory: Callable[[Iterable[Any]], Optimizer]
    settings: Mapping[str, Any]
    excluded: Mapping[str, str] = field(default_factory=dict)


def entries(group: str, config_dir: Path | None = None) -> list[str]:
    """The names of a group's YAMLs."""
    folders = [conf_folder(), *([config_dir] if config_dir else [])]
    return sorted(
        {file.stem for folder in folders for file in (folder / group).glob("*.yaml")} - {"custom"}
    )


def optimizer(target: str, settings: Iterable[str] = (), config_dir: Path | None = None) -> Subject:
    """The optimizer of a name or an import path.

    Args:
        target: An entry of conf/optimizer, or `module.Class`.
        settings: `KEY=VALUE`, as after `optimizer.` on the command line.
        config_dir: A folder with YAMLs of your own.
    """
    choice = [f"optimizer={target}"]
    if "." in target:
        choice = ["optimizer=custom", f"optimizer._target_={target}"]
    elif target not in (known := entries("optimizer", config_dir)):
        raise UserError(
            f"there is no optimizer called {target}.{nearest(target, known)} Known: "
            f"{', '.join(known)}"
        )
    given = [f"++optimizer.{setting}" for setting in settings]
    config = compose_config([*choice, *given, "task=quadratic", "device=cpu"], config_dir)
    check(config)
    node = OmegaConf.to_container(config.optimizer, resolve=True)
    assert isinstance(node, dict)
    excluded = (node.get("about") or {}).get("excluded") or {}
    return Subject(
        target, optimizer_factory(config.optimizer), {str(k): v for k, v in node.items()}, excluded
    )


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A small network with matrices and vectors, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def batch(number: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Eleven examples for it, others for another number."""
    generator = torch.Generator().manual_seed(number)
    return (
        torch.randn(11, 5, generator=generator).to(dtype),
        torch.randn(11, 3, generator=generator).to(dtype),
    )


@dataclass
class Training:
    """A model, an optimizer over all of its parameters, and steps that are always the same.

    Every step draws from a seed of its own, so that two trainings may take turns.
    """

    subject: Subject
    model: nn.Module = field(default_factory=net)
    groups: Callable[[nn.Module], Iterable[Any]] = lambda model: list(model.parameters())
    schedule: Callable[[Optimizer], LRScheduler] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = half_mse
    dtype: torch.dtype = torch.float32
    done: int = 0

    def __post_init__(self) -> None:
        self.optimizer = self.subject.factory(self.groups(self.model))
        schedule = self.schedule(self.optimizer) if self.schedule else None
        self.update = Update(self.model, self.loss, self.optimizer, schedule)
        if callable(set_mode := getattr(self.optimizer, "train", None)):
            set_mode()

    def steps(self, count: int, batches: int = 4) -> Tensor:
        """Take steps, on batches in turn; return the loss of the last."""
        loss = torch.zeros(())
        for _ in range(count):
            with torch.random.fork_rng():
                torch.manual_seed(self.done)
                loss = self.update(*batch(self.done % batches, self.dtype))
            self.done += 1
        return loss

    def weights(self) -> list[Tensor]:
        """Copies of the parameters."""
        return [p.detach().clone() for p in self.model.parameters()]


def same(one: Iterable[Tensor], other: Iterable[Tensor]) -> bool:
    """Whether all tensors are equal bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def moved(before: Iterable[Tensor], after: Iterable[Tensor]) -> float:
    """‖after − before‖ over all tensors together."""
    return float(
        torch.stack([(b - a).double().norm() for a, b in zip(before, after, strict=True)]).norm()
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Small problems are faster on one thread, and sums have one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
