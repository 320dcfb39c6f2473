"""Ways to damage a run folder: each file missing, emptied, halved, flipped, replaced by what is none of it."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from optbench.record.folder import (
    CHECKPOINT,
    CHECKPOINT_BEFORE,
    CONFIG,
    METRICS,
    PROVENANCE,
    RUN_FILES,
    SUMMARY,
)
from optbench.record.picture import PICTURES

FILES = tuple(name for name in RUN_FILES if name not in PICTURES)
Damage = Callable[[Path], object]  # of a run folder


def to_every_file() -> dict[str, Damage]:
    """The same to each file of a run."""
    kinds: dict[str, Damage] = {
        "missing": lambda file: file.unlink(),
        "empty": lambda file: file.write_bytes(b""),
        "halved": lambda file: os.truncate(file, file.stat().st_size // 2),
        "a byte flipped": lambda file: _flip(file, 0.5),
        "an early byte flipped": lambda file: _flip(file, 0.02),
        "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
        "noise": lambda file: file.write_bytes(os.urandom(2000)),
        "a JSON list": lambda file: file.write_text("[1]\n"),
        "an empty object": lambda file: file.write_text("{}\n"),
        "a folder": _folder_instead,
        "a link": _link_instead,
        "a pipe": _pipe_instead,
    }

    def to(name: str, kind: Damage) -> Damage:
        return lambda folder: kind(folder / name) if (folder / name).exists() else None

    return {f"{name} {how}": to(name, kind) for name in FILES for how, kind in kinds.items()}


def to_checkpoints(executed: Path) -> dict[str, Damage]:
    """Whole files that are no checkpoint of the run; `executed` is touched if one is run as code."""
    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "without random": lambda s: s.pop("random"),
        "without digest and random": lambda s: [s.pop(key) for key in ("digest", "random")],
        "with NaN weights": lambda s: [v.fill_(float("nan")) for v in s["model"].values()],
        "with other shapes": lambda s: s["model"].update(
            {key: torch.ones(2) for key in s["model"]}
        ),
        "with other shapes, no digest": lambda s: (
            s.pop("digest"),
            s["model"].update(dict.fromkeys(s["model"], 1)),
        ),
        "with a negative offset": lambda s: s["offsets"].update({METRICS: -5}),
        "with an offset that is text": lambda s: (
            s.pop("digest"),
            s["offsets"].update({METRICS: "x"}),
        ),
        "with offsets that are a list": lambda s: (s.pop("digest"), s.update(offsets=[1])),
        "at step 10^9": lambda s: (s.pop("digest"), s.update(step=10**9)),
        "at step -5": lambda s: (s.pop("digest"), s.update(step=-5)),
        "of another run": lambda s: (
            s.pop("digest"),
            s.update(name="digits-mlp-sgd-seed0-00000000"),
        ),
        "with no state of Adam": lambda s: s["optimizer"].update(state={}),
        "with another rate": lambda s: s["optimizer"]["param_groups"][0].update(lr=0.5),
    }

    def changed(change: Callable[[dict[str, Any]], Any]) -> Damage:
        def act(folder: Path) -> None:
            state = torch.load(folder / CHECKPOINT, weights_only=True)
            change(state)
            torch.save(state, folder / CHECKPOINT)

        return act

    def saved(content: Any, *names: str) -> Damage:
        def act(folder: Path) -> None:
            for name in names:
                torch.save(content, folder / name)

        return act

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {executed}",)

    return {f"checkpoint {how}": changed(change) for how, change in changes.items()} | {
        "checkpoint a list": saved([1], CHECKPOINT),
        "checkpoint a tensor": saved(torch.ones(3), CHECKPOINT),
        "checkpoint empty mapping": saved({}, CHECKPOINT),
        "checkpoint that runs code": saved({"model": Hostile()}, CHECKPOINT),
        "both checkpoints that run code": saved(Hostile(), CHECKPOINT, CHECKPOINT_BEFORE),
        "checkpoint a raw pickle": lambda folder: (folder / CHECKPOINT).write_bytes(
            pickle.dumps(Hostile())
        ),
        "both checkpoints a list": saved([1], CHECKPOINT, CHECKPOINT_BEFORE),
        "both checkpoints missing": lambda folder: (
            [(folder / name).unlink(missing_ok=True) for name in (CHECKPOINT, CHECKPOINT_BEFORE)]
        ),
    }


def to_contents() -> dict[str, Damage]:
    """Files that read well and say something else."""

    def edited(name: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
        def act(folder: Path) -> None:
            content = json.loads((folder / name).read_text())
            change(content)
            (folder / name).write_text(json.dumps(content))

        return act

    def digit(folder: Path) -> None:
        content = (folder / METRICS).read_text()
        at = content.index('"train/loss": 0.') + 16
        (folder / METRICS).write_text(
            content[:at] + ("8" if content[at] == "9" else "9") + content[at + 1 :]
        )

    def more(folder: Path) -> None:
        with (folder / METRICS).open("ab") as stream:
            stream.write(b'{"step": 1, "x": 5}\n{"st')

    return {
        "metrics a digit changed": digit,
        "metrics longer": more,
        "provenance without sessions": edited(PROVENANCE, lambda c: c.pop("sessions")),
        "provenance sessions a text": edited(PROVENANCE, lambda c: c.update(sessions="x")),
        "summary says done": lambda folder: (folder / SUMMARY).write_text('{"status": "done"}'),
        "summary status a list": lambda folder: (folder / SUMMARY).write_text(
            '{"status": ["done"]}'
        ),
        "config says something else": lambda folder: (folder / CONFIG).write_text("steps: 3\n"),
        "everything missing": lambda folder: [file.unlink() for file in folder.iterdir()],
        "stale parts": lambda folder: [
            (folder / f"{name}.part").write_bytes(b"x") for name in RUN_FILES
        ],
    }


def _flip(file: Path, where: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * where)] ^= 0x55
    file.write_bytes(bytes(content))


def _folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _link_instead(file: Path) -> None:
    real = file.with_name(file.name + ".real")
    file.rename(real)
    file.symlink_to(real)


def _pipe_instead(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)
