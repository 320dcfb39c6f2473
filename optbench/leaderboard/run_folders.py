"""Run folders, read as lines of a committed file are: the parts that the board needs."""

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

from pydantic import ConfigDict, Field

from optbench import metrics
from optbench.boundary import (
    LAX,
    Name,
    Text,
    UnreadableError,
    read_json,
    read_text,
    read_yaml,
    shaped,
    shaped_text,
)
from optbench.leaderboard.run_line import (
    CURVE_POINTS,
    DIGITS,
    Count,
    NotNegative,
    Number,
    Run,
    Word,
)
from optbench.protocol.suite import FINAL
from optbench.record import folder as record
from optbench.record.problem import chosen_of, digest_of, optimizer_of, problem_of
from optbench.record.sources import MISSING, is_hash, targets

T = TypeVar("T")
Line = dict[str, bool | Number | list[bool | Number]]  # of a series: a metric is a number, or a few
LARGEST_SERIES_BYTES = 2**26
# Packages whose version makes no other code of the user's.
BROUGHT_ALONG = {"optbench", "torch", "torchvision", *sys.stdlib_module_names}
CODE_DIGITS = 8  # of a hash of the user's code
NOT_THE_COMMAND = ("results_dir=", "device=", "wandb.", "picture=", "--config-dir")
CURVES = (
    *(
        metrics.TRAIN_LOSS,
        metrics.VAL_LOSS,
        metrics.TEST_LOSS,
        metrics.TRAIN_ERROR,
        metrics.VAL_ERROR,
        metrics.TEST_ERROR,
        metrics.GAP_LOSS,
        metrics.GAP_ERROR,
    ),
    *(
        metrics.SHARPNESS,
        metrics.EDGE_THRESHOLD,
        metrics.EDGE_DISTANCE,
        metrics.GRADIENTS,
        metrics.TRAIN_SECONDS,
    ),
)


@dataclass(frozen=True)
class Place:
    """Which place of a suite's protocol a run fills: `board` in its configuration."""

    __pydantic_config__: ClassVar[ConfigDict] = LAX

    suite: Name
    version: Count
    digest: Text
    task: Name
    phase: Literal["tune", "final"]
    point: Count


@dataclass(frozen=True)
class Config:
    """The parts of a run's configuration that the board reads."""

    __pydantic_config__: ClassVar[ConfigDict] = LAX

    optimizer: dict[str, Any]
    task: dict[str, Any]
    board: Place | None = None


@dataclass(frozen=True)
class Summary:
    """The parts of a run's summary that the board reads."""

    __pydantic_config__: ClassVar[ConfigDict] = LAX

    schema: Count
    status: Text
    task: Text
    optimizer: Text
    seed: Count
    step: Count
    steps: Count
    name: Text = ""
    last: Mapping[Text, Number] = Field(default_factory=dict)
    gradients: Count = 0
    train_seconds: NotNegative = 0.0
    peak_gib: NotNegative = 0.0
    optimizer_gib: NotNegative = 0.0
    start_from: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _Facts:
    __pydantic_config__: ClassVar[ConfigDict] = LAX
    checksum_verified: bool | None = None


@dataclass(frozen=True)
class _Session:
    __pydantic_config__: ClassVar[ConfigDict] = LAX
    command: Annotated[tuple[Word, ...], Field(min_length=1)]


@dataclass(frozen=True)
class _Hardware:
    __pydantic_config__: ClassVar[ConfigDict] = LAX
    device: Text


@dataclass(frozen=True)
class _Versions:
    __pydantic_config__: ClassVar[ConfigDict] = LAX
    torch: Text


@dataclass(frozen=True)
class Origin:
    """The parts of a run's provenance that the board reads."""

    __pydantic_config__: ClassVar[ConfigDict] = LAX

    data_hash: Text
    init_hash: Text
    initial_loss: Number
    task: _Facts
    sessions: Annotated[tuple[_Session, ...], Field(min_length=1)]
    hardware: _Hardware
    versions: _Versions
    sources: Mapping[Text, Text] = Field(default_factory=dict)
    git_commit: Text | None = None


def read_run(folder: Path, any_run: bool = False) -> Run | None:
    """Return the run in a folder; None if it belongs to no suite, unless `any_run`.

    Raises:
        UnreadableError: If there is no run in it.
        ShapeError: If something in its files is not as a run writes it.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise UnreadableError("a link, not a folder" if folder.is_symlink() else "not a folder")
    if not any_run and _of_no_suite(folder / record.CONFIG):
        return None
    whole = _mapping(read_yaml, folder / record.CONFIG)
    config = shaped(Config, whole, record.CONFIG)
    if config.board is None and not any_run:
        return None
    summary = shaped(Summary, _mapping(read_json, folder / record.SUMMARY), record.SUMMARY)
    if summary.schema != record.SCHEMA:
        raise UnreadableError(
            f"schema {summary.schema} of {record.SUMMARY}, and this reads {record.SCHEMA}"
        )
    origin = shaped(Origin, _mapping(read_json, folder / record.PROVENANCE), record.PROVENANCE)
    place = config.board or Place("", 0, "", _as_name(summary.task), "final", 0)
    series = _series(folder) if place.phase == FINAL else []
    curve = _curve(series) if place.phase == FINAL else {}
    problem = problem_of(whole, summary.start_from)
    content = _content(folder.name, place, whole, summary, origin)
    content |= {"curve": curve, "local": True, "problem": digest_of(problem)}
    if any_run:
        content |= _compared(whole, problem, summary, origin)
        content["copied"] = summary.name not in ("", folder.name)
        content["last"] = _of_the_last_step(content["last"], series, summary)
    run = shaped(Run, content)
    if summary.status in record.FINISHED and (
        changed := record.check_digests(folder, weights=False)
    ):
        raise UnreadableError(changed)
    return run


_NO_BOARD = re.compile(r"^board: null$", re.MULTILINE)
_BOARD = re.compile(r"^[\"']?board[\"']?\s*:", re.MULTILINE)


def _of_no_suite(config: Path) -> bool:
    """Whether a configuration says so in the one line that a run writes: no YAML to be parsed."""
    try:
        text = read_text(config)
    except UnreadableError:
        return False
    return len(_BOARD.findall(text)) == 1 and _NO_BOARD.search(text) is not None


def _mapping(read: Callable[[Path], Any], path: Path) -> dict[str, Any]:
    content = _named(read, path)
    if not isinstance(content, dict):
        raise UnreadableError(f"{path.name} is no mapping")
    return content


def _named(read: Callable[[Path], T], path: Path) -> T:
    """Read a file, with its name in the reason where it cannot be read."""
    try:
        return read(path)
    except UnreadableError as why:
        raise UnreadableError(
            f"no {path.name}" if str(why) == "missing" else f"{path.name}: {why}"
        ) from why


def _as_name(text: str) -> str:
    """A name for a run that is not ranked; it may be that of a folder's optimizer, `mine/adam`."""
    return re.sub(r"[^\w-]", "_", text).lstrip("-") or "_"


def _content(
    name: str, place: Place, config: Mapping[str, Any], summary: Summary, origin: Origin
) -> dict[str, Any]:
    given = origin.sessions[0].command[1:]
    return {
        "suite": place.suite or "none",
        **{key: getattr(place, key) for key in ("version", "digest", "task", "phase", "point")},
        "optimizer": summary.optimizer if place.suite else _as_name(summary.optimizer),
        **{key: getattr(summary, key) for key in ("seed", "status", "step", "steps", "gradients")},
        "name": name,
        "data_hash": origin.data_hash[:16],
        "init_hash": origin.init_hash[:16],
        "initial_loss": origin.initial_loss,
        "checked": origin.task.checksum_verified,
        "settings": _finite(optimizer_of(config)),
        "command": [word for word in given if not word.startswith(NOT_THE_COMMAND)],
        "last": {key: rounded(value) for key, value in summary.last.items()},
        **{
            key: rounded(getattr(summary, key))
            for key in ("train_seconds", "peak_gib", "optimizer_gib")
        },
        "device": origin.hardware.device,
        "torch": origin.versions.torch,
        "git_commit": origin.git_commit,
    }


def _compared(
    config: Mapping[str, Any], problem: Mapping[str, Any], summary: Summary, origin: Origin
) -> dict[str, Any]:
    """What only a comparison without a suite asks of a run; its problem is of its code, too."""
    code = _users_code(problem, origin.sources)
    named = {f"code of {target}": digest for target, digest in code.items()}
    return {
        "problem": digest_of({**problem, "code": code} if code else problem),
        "conditions": _conditions(config, problem) | named,
        "given_name": summary.optimizer,
        "code": _users_code(config["optimizer"], origin.sources),
    }


def _users_code(part: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, str]:
    """The code that a part of a configuration names and optbench does not bring along.

    By target, its version or the first digits of its hash.
    """
    code = {target: sources.get(target, MISSING) for target in sorted(targets(part))}
    return {
        target: source[:CODE_DIGITS] if is_hash(source) else source
        for target, source in code.items()
        if target.partition(".")[0] not in BROUGHT_ALONG
    }


def _conditions(config: Mapping[str, Any], problem: Mapping[str, Any]) -> dict[str, Any]:
    """The problem, each setting by its path, after the names that were chosen for its parts."""
    chosen = chosen_of(config, "task", "schedule", "model")
    return {key: _finite(value) for key, value in (chosen | flat(problem)).items()}


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return settings by their paths: {a: {b: 1}} as {a.b: 1}."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return found


def _finite(node: Any) -> Any:
    """Settings with infinity and NaN, which YAML has and JSON has not, as the words for them."""
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_finite(value) for value in node]
    return str(node) if isinstance(node, float) and not math.isfinite(node) else node


def read_series(path: Path) -> list[Line]:
    """Return the whole lines of a series; a last line without its end is still being written.

    Raises:
        UnreadableError: If there is none, or a line has no step.
        ShapeError: If a value is not a number, or a few.
    """
    text = _named(lambda path: read_text(path, LARGEST_SERIES_BYTES), path)
    lines = text.split("\n")[:-1]
    records: list[Line] = shaped_text(cast(Any, list[Line]), f"[{','.join(lines)}]", path.name)
    if not all(isinstance(line.get("step"), int) for line in records):
        raise UnreadableError(f"{path.name} has a line without its step")
    return records


def _series(folder: Path) -> list[Line]:
    return [
        line for name in (record.METRICS, record.TIMINGS) for line in read_series(folder / name)
    ]


def _of_the_last_step(
    last: Mapping[str, Any], series: Iterable[Line], summary: Summary
) -> dict[str, Any]:
    """Last values, but for those that a finished run measured before its last update only.

    What is of an update, such as the loss of its batch, has the step that the update starts from.
    """
    steps = {key: line["step"] for line in series for key in line}
    return {
        key: value
        for key, value in last.items()
        if summary.status != "done" or cast(int, steps.get(key, summary.step)) >= summary.step - 1
    }


def _curve(series: Iterable[Line]) -> dict[str, list[Any]]:
    """Merge both series by step, and keep as many steps as a page can draw.

    The first and the last are among them.
    """
    steps: dict[Any, Line] = {}
    for line in series:
        steps.setdefault(line["step"], {}).update(line)
    measured = [values for _, values in sorted(steps.items()) if values.keys() & set(CURVES)]
    kept = [measured[i] for i in _spread_evenly(len(measured))]
    present = ["step", *[key for key in CURVES if any(key in values for values in kept)]]
    return {key: [rounded(values.get(key)) for values in kept] for key in present}


def _spread_evenly(count: int) -> list[int]:
    """Return at most CURVE_POINTS of so many places, the first and the last among them."""
    if not count:
        return []
    shares = (i / (CURVE_POINTS - 1) for i in range(CURVE_POINTS))
    return sorted({round(share * (count - 1)) for share in shares})


def rounded(value: Any) -> Any:
    """Keep the significant digits of a float."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
