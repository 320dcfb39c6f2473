"""Checkpoints that survive a kill and a power cut: written whole or not at all, two kept."""

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from optbench.boundary import printable
from optbench.errors import UserError
from optbench.record.durable import sync_folder, write_part
from optbench.record.folder import CHECKPOINT, CHECKPOINT_BEFORE, KEPT
from optbench.record.series import is_file
from optbench.run.portable_state import NotPortableError, digest, from_portable, to_portable

NAME, PREVIOUS = CHECKPOINT, CHECKPOINT_BEFORE
DIGEST = "digest"
# keys whose values differ between a run and the same run killed
CLOCKS = ("train_seconds", "probe_seconds")
LONGEST_REASON = 120  # characters


def save(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the state beside the last checkpoint, bring it to the disk, then put it in its place.

    At every moment one of the two names holds a whole checkpoint.

    Raises:
        UserError: If there is something in the state that could not be read back.
    """
    part = write_part(folder / NAME, content(state))
    if (folder / NAME).exists():
        (folder / NAME).replace(folder / PREVIOUS)
    part.replace(folder / NAME)
    sync_folder(folder)


def keep(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Keep the state of a step for good, beside the checkpoints that come and go."""
    place = folder / KEPT
    place.mkdir(exist_ok=True)
    write_part(place / kept_name(step), content(state)).replace(place / kept_name(step))
    sync_folder(place)


def content(state: Mapping[str, Any]) -> memoryview:
    """Return the state as the bytes of a file."""
    # torch.save to a disk that is full raises something that no longer says so
    file = io.BytesIO()
    torch.save(_portable(state), file)
    return file.getbuffer()


def from_content(received: bytes) -> dict[str, Any]:
    """Return the state that `content` made bytes of."""
    state: dict[str, Any] = from_portable(_read(io.BytesIO(received)))
    return state


def kept_name(step: int) -> str:
    """Name of the file of a kept checkpoint."""
    return f"step-{step}.pt"


def kept_steps(folder: Path) -> list[int]:
    """Steps of which a run folder keeps a checkpoint, in order."""
    names = (path.name for path in (folder / KEPT).glob("step-*.pt"))
    return sorted(
        int(number) for name in names if (number := name[len("step-") : -len(".pt")]).isdecimal()
    )


def forget_kept(folder: Path, after: int) -> None:
    """Remove what was kept of later steps than the one that the run goes on from.

    It comes again, and on another machine perhaps at another step.
    """
    for step in kept_steps(folder):
        if step > after:
            (folder / KEPT / kept_name(step)).unlink()


def read_kept(folder: Path, step: int) -> dict[str, Any]:
    """Return the state that a run kept of a step.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    path = folder / KEPT / kept_name(step)
    try:
        return _whole(path)
    except Exception as why:  # a damaged file can raise nearly anything
        raise UserError(f"{path} cannot be used: it is damaged ({_reason(why)})") from why


def sealed(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state with a digest of all that no clock moves: the same after any kills."""
    return {**state, DIGEST: digest(_portable(_without_clocks(state)))}


def check_readable(folder: Path, state: Mapping[str, Any]) -> None:
    """Read the newest checkpoint back and compare it with the state that was saved.

    Raises:
        UserError: If it is another, or cannot be read: found now, and not when the run is to go on.
    """
    try:
        same = digest(_read(folder / NAME)) == digest(_portable(state))
    except Exception as why:  # torch names what it may not read in errors of several kinds
        raise UserError(f"{_TROUBLE}: {_reason(why)}") from why
    if not same:
        raise UserError(f"{_TROUBLE}: what is read back is not what was written")


def candidates(folder: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Yield (name, state) of each checkpoint, newest first; for a damaged one (name, reason).

    A checkpoint is whole if every part of it has its stored CRC-32, and the whole the digest that
    it was sealed with. Only tensors and plain containers are read (`weights_only=True`): a
    checkpoint from elsewhere cannot execute code.
    """
    for name in (NAME, PREVIOUS):
        if not (folder / name).exists():
            continue
        try:
            yield name, _whole(folder / name)
        except Exception as why:  # a damaged file can raise nearly anything
            yield name, f"is damaged ({_reason(why)})"


_TROUBLE = "the run could not go on from a checkpoint of its state"


def _portable(state: Mapping[str, Any]) -> dict[str, Any]:
    try:
        portable: dict[str, Any] = to_portable(dict(state))
    except NotPortableError as why:
        raise UserError(
            f"{_TROUBLE}: {why}; keep tensors, numbers, text, NumPy arrays, or lists, sets and "
            "mappings of these"
        ) from why
    return portable


def _without_clocks(state: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in state.items() if key not in (*CLOCKS, DIGEST)}
    offsets = kept.get("offsets", {})
    return kept | {
        "offsets": {
            name: offset for name, offset in offsets.items() if not name.startswith("timings")
        }
    }


def _whole(path: Path) -> dict[str, Any]:
    if not is_file(path):
        raise ValueError("it is no file")
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise ValueError(f"{bad} does not have its checksum")
    state = _read(path)
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}")
    if DIGEST in state and state[DIGEST] != digest(_without_clocks(state)):
        raise ValueError("it was changed after it was written")
    unmarked: dict[str, Any] = from_portable(state)
    return unmarked


def _read(file: Path | io.BytesIO) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True)


def _reason(why: Exception) -> str:
    lines = str(why).splitlines() or [type(why).__name__]
    named = [line for line in lines if "GLOBAL" in line]  # torch's first line says nothing
    return printable((named or lines)[0])[:LONGEST_REASON]
