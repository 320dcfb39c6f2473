"""Power cuts: the same command on what the disk holds goes on from the newest checkpoint that had reached it."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.torture.power import lie_in_wait
from tests.torture.runs import Child, Outcome, fault


def trials(scratch: Path, truth: Outcome, every: int = 1) -> Iterator[tuple[str, str]]:
    """Yield name and fault (empty if there is none) of a power cut at every so many writes of a run."""
    root, images = scratch / "disk", scratch / "images"
    root.mkdir(parents=True)
    Child(root / "results", before=lambda: lie_in_wait(root, images, every)).wait()
    for image in sorted(images.iterdir(), key=lambda path: int(path.name)):
        yield f"power cut {image.name}", trial(image, truth)


def trial(image: Path, truth: Outcome) -> str:
    """Give the command again after a power cut, and say what is wrong with how that ended."""
    steps = [_step(file) for file in image.rglob("checkpoint*.pt")]
    finished = any('"status": "done"' in file.read_text() for file in image.rglob("summary.json"))
    ended = Child(image / "results").wait()
    went_on = re.findall(r"going on from step (\d+)", ended.said)
    if steps and not finished and went_on != [str(max(steps))]:
        return f"went on from {went_on or 'the start'}, and a checkpoint of step {max(steps)} was there"
    if "set aside" in ended.said:
        return "set something aside that a power cut alone has left"
    return fault(image / "results", ended, truth)


def _step(file: Path) -> int:
    return int(torch.load(file, weights_only=True)["step"])
