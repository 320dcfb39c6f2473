"""Where a run's numbers come from: versions, hardware, code, data, initial weights."""

import hashlib
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

import optbench
from optbench.boundary.overrides import as_given
from optbench.record.commits import git
from optbench.task import Task

PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "wandb", "scikit-learn")


def init_hash(model: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


T = TypeVar("T")
_looked: ContextVar[dict[str, Any] | None] = ContextVar("_looked", default=None)


@contextmanager
def looking_once() -> Iterator[None]:
    """Context in which versions and git are asked once: for runs that begin at one moment."""
    token = _looked.set({})
    try:
        yield
    finally:
        _looked.reset(token)


def _once(name: str, look: Callable[[], T]) -> T:
    looked = _looked.get()
    if looked is None:
        return look()
    if name not in looked:
        looked[name] = look()
    found: T = looked[name]
    return found


def versions() -> dict[str, str]:
    """Return the versions that a result can depend on."""
    return dict(_once("versions", _versions))


def _versions() -> dict[str, str]:
    known = {"optbench": optbench.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            known[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            known[package] = "absent"
    if torch.version.cuda:
        known["cuda"] = torch.version.cuda
    return known


def hardware(device: torch.device) -> dict[str, Any]:
    """Return what the run runs on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }


def git_commit() -> str | None:
    """Return the commit of the checkout that optbench runs from, with `+` if it was changed."""
    return _once("git_commit", _git_commit)


def _git_commit() -> str | None:
    checkout = Path(optbench.__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    try:
        commit = git(checkout, "rev-parse", "HEAD")
        changes = git(checkout, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changes else "")


def changed_versions(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words which versions and hardware differ between two provenances.

    Hardware is compared where it is told. Empty if nothing differs.
    """
    changes: list[str] = []
    for part in ("versions", "hardware"):
        before, after = then.get(part), now.get(part, {})
        if isinstance(before, dict):
            differ = [key for key, value in after.items() if before.get(key) != value]
            changes += [f"{key} {before.get(key)} then, {after[key]} now" for key in differ]
    return "; ".join(changes)


def provenance(
    task: Task, model: nn.Module, initial_loss: float, sources: Mapping[str, str]
) -> dict[str, Any]:
    """Gather everything.

    Data hash, hash of the initial weights and initial loss are the problem's fingerprint.
    """
    origin = {
        "data_hash": task.data_hash(),
        "init_hash": init_hash(model),
        "initial_loss": initial_loss,
        "parameters": sum(p.numel() for p in model.parameters()),
        "examples": {name: len(split) for name, split in task.splits.items()},
        "input_shape": task.input_shape,
        "task": task.facts,
        "sources": dict(sources),
        "versions": versions(),
        "hardware": hardware(next(model.parameters()).device),
        "git_commit": git_commit(),
    }
    began = datetime.now(UTC).isoformat(timespec="seconds")
    return origin | {
        "sessions": [
            {
                "began": began,
                "process": f"{socket.gethostname()}:{os.getpid()}",
                "command": [as_given(word) for word in sys.argv],
            }
        ]
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
