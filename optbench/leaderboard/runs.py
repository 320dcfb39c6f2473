"""Run folders, and the lines of committed files, as one kind of object; whatever they hold harms nothing."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import yaml

from optbench.record import folder as record
from optbench.suite import FINAL, TUNE

LINE_SCHEMA = 1
ENTRIES = "entries"  # RESULTS/entries/SUITE/OPTIMIZER.jsonl, a line a run
LARGEST_BYTES = {record.METRICS: 2**26, record.TIMINGS: 2**26}
LARGEST_OTHER_BYTES, LARGEST_ENTRY_BYTES, LONGEST_NAME = 2**20, 2**26, 200
CURVE_POINTS = 60
DIGITS = 6  # significant ones: what a committed line keeps of a measured number
# What cannot move a result, or is what is compared: all else must be the same for runs that are ranked together.
NOT_THE_PROBLEM = {
    *("optimizer", "seed", "board", "probes", "choices", "curvature", "log_every", "device", "results_dir"),
    *("overwrite", "checkpoint_seconds", "picture", "wandb"),
}
NOT_THE_COMMAND = ("results_dir=", "device=", "wandb.", "picture=", "--config-dir")
CURVES = (
    *("train/loss", "val/loss", "test/loss", "train/error", "val/error", "test/error", "gap/loss", "gap/error"),
    *("sharpness/lambda_max", "edge/threshold", "edge/distance", "cost/gradients", "time/train_seconds"),
)


class UnreadableError(Exception):
    """A folder or a line is no run; says why."""


@dataclass(frozen=True)
class Run:
    """One run of a suite's protocol, with all that the board and its page need.

    Attributes:
        name: Of the run folder. For showing, never a path.
        problem: SHA-256 of the configuration less what is compared and what moves no result, 16 digits.
        checked: Whether the data had their published checksums, None where there are none to have.
        settings: Of the optimizer.
        command: Overrides of the main job that make it again.
        last: Every metric's last value.
        curve: Series by metric, each as long as `curve["step"]`, None where not measured then; finals only.
        local: Whether its folder is here, so that it was run here.
    """

    suite: str
    version: int
    digest: str
    task: str
    phase: str
    point: int
    optimizer: str
    seed: int
    name: str
    status: str
    step: int
    steps: int
    problem: str
    data_hash: str
    init_hash: str
    initial_loss: float
    checked: bool | None
    settings: Mapping[str, Any]
    command: Sequence[str]
    last: Mapping[str, float]
    curve: Mapping[str, Sequence[float | None]]
    gradients: int = 0
    train_seconds: float = 0.0
    peak_gib: float = 0.0
    optimizer_gib: float = 0.0
    device: str = ""
    torch: str = ""
    git_commit: str | None = None
    local: bool = field(default=False, compare=False)

    @property
    def place(self) -> tuple[str, str, str, int, int]:
        """What it fills in the protocol."""
        return self.optimizer, self.task, self.phase, self.point, self.seed

    def line(self) -> str:
        """Return it as a line of a committed file."""
        content = {key: value for key, value in asdict(self).items() if key != "local"}
        return json.dumps({"schema": LINE_SCHEMA} | content, sort_keys=True, allow_nan=False)


def read_results(results: Path) -> tuple[list[Run], list[tuple[str, str]]]:
    """Return every run of a suite under a results folder, and (name, why) of all that is unreadable.

    A run that is in a committed file and has its folder here too is read from its folder.
    """
    runs: dict[str, Run] = {}
    unreadable = []
    for file in sorted((results / ENTRIES).glob("*/*.jsonl")):
        for found in entries(file):
            if isinstance(found, Run):
                runs[found.name] = found
            else:
                unreadable.append((f"{file.parent.name}/{file.name}", found))
    for folder in sorted(path for path in (results / "runs").glob("*") if path.is_dir()):
        try:
            run = read_run(folder)
        except UnreadableError as why:
            unreadable.append((folder.name, str(why)))
        else:
            if run is not None:
                runs[run.name] = run
    return list(runs.values()), unreadable


def read_run(folder: Path, any_run: bool = False) -> Run | None:
    """Return the run in a folder; None if it belongs to no suite, unless `any_run`.

    Raises:
        UnreadableError: If there is no run in it.
    """
    if folder.is_symlink():
        raise UnreadableError("a link, not a folder")
    config = _yaml(folder / record.CONFIG)
    place = config.get("board")
    if place is None and not any_run:
        return None
    summary, origin = _json(folder / record.SUMMARY), _json(folder / record.PROVENANCE)
    if summary.get("schema") != record.SCHEMA:
        raise UnreadableError(f"schema {summary.get('schema')!r} of {record.SUMMARY}, and this reads {record.SCHEMA}")
    try:
        content = _content(folder.name, place or {}, config, summary, origin)
        if content["phase"] == FINAL:
            content["curve"] = _curve(folder)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError, OSError) as why:
        raise UnreadableError(f"not as a run writes it: {type(why).__name__}: {why}") from why
    return checked(content, local=True)


def _content(
    name: str, place: Mapping[str, Any], config: dict[str, Any], summary: dict[str, Any], origin: dict[str, Any]
) -> dict[str, Any]:
    settings = {key: value for key, value in config["optimizer"].items() if key not in ("about", "search")}
    task = dict(config["task"])
    task.pop("root", None)
    # What is null is off: a setting that optbench gains later leaves the problems as they were.
    problem = {k: v for k, v in config.items() if k not in NOT_THE_PROBLEM and v is not None} | {"task": task}
    given = [str(word) for word in origin["sessions"][0]["command"][1:]]
    return {
        **{key: place.get(key, "") for key in ("suite", "digest", "task")},
        **{key: place.get(key, 0) for key in ("version", "point")},
        "phase": place.get("phase", FINAL),
        "task": place.get("task", summary["task"]),
        "optimizer": summary["optimizer"],
        "seed": summary["seed"],
        "name": name,
        "status": summary["status"],
        "step": summary["step"],
        "steps": summary["steps"],
        "problem": hashlib.sha256(json.dumps(problem, sort_keys=True).encode()).hexdigest()[:16],
        "data_hash": origin["data_hash"][:16],
        "init_hash": origin["init_hash"][:16],
        "initial_loss": origin["initial_loss"],
        "checked": origin["task"].get("checksum_verified"),
        "settings": settings,
        "command": [word for word in given if not word.startswith(NOT_THE_COMMAND)],
        "last": {key: rounded(value) for key, value in summary.get("last", {}).items()},
        "curve": {},
        "gradients": summary.get("gradients", 0),
        **{key: rounded(summary.get(key, 0.0)) for key in ("train_seconds", "peak_gib", "optimizer_gib")},
        "device": origin["hardware"]["device"],
        "torch": origin["versions"]["torch"],
        "git_commit": origin.get("git_commit"),
    }


def _curve(folder: Path) -> dict[str, list[float | None]]:
    """Merge both series by step, and keep a number of steps that a page can draw, first and last among them."""
    steps: dict[int, dict[str, Any]] = {}
    for name in (record.METRICS, record.TIMINGS):
        _limit(folder / name)
        for line in record.read_lines(folder / name):
            steps.setdefault(line["step"], {}).update(line)
    measured = [values for _, values in sorted(steps.items()) if any(key in values for key in CURVES)]
    keep = (
        sorted({round(i * (len(measured) - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)}) if measured else []
    )
    kept = [measured[i] for i in keep]
    present = ["step", *[key for key in CURVES if any(key in values for values in kept)]]
    return {key: [rounded(values[key]) if key in values else None for values in kept] for key in present}


def rounded(value: Any) -> Any:
    """Keep the significant digits of a float."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def checked(content: Mapping[str, Any], local: bool = False) -> Run:
    """Return the run that plain data describe.

    Raises:
        UnreadableError: If something is missing, of another kind than it should be, or not finite.
    """
    known = {f.name for f in fields(Run)} - {"local"}
    if absent := {f.name for f in fields(Run)} - content.keys() - {"local"}:
        raise UnreadableError(f"lacks {', '.join(sorted(absent))}")
    content = {key: content[key] for key in known}
    for key, kind in _KINDS.items():
        if not isinstance(content[key], kind) or (isinstance(content[key], bool) and kind is not bool):
            raise UnreadableError(f"{key} is {type(content[key]).__name__}")
        if isinstance(content[key], str) and len(content[key]) > LONGEST_NAME:
            raise UnreadableError(f"{key} has {len(content[key])} letters")
        if isinstance(content[key], float) and not math.isfinite(content[key]):
            raise UnreadableError(f"{key} is {content[key]}")
    numbers = [*content["last"].values(), *(x for s in content["curve"].values() for x in _series(s) if x is not None)]
    if not all(isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) for x in numbers):
        raise UnreadableError("a metric is not a finite number")
    lengths = {len(series) for series in content["curve"].values()}
    if len(lengths) > 1 or (lengths and "step" not in content["curve"]):
        raise UnreadableError("its curves are not of one length")
    if content["phase"] not in (TUNE, FINAL) or not all(isinstance(word, str) for word in content["command"]):
        raise UnreadableError(f"phase is {content['phase']}")
    return Run(**content, local=local)


_NUMBER = (int, float)
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("suite", "digest", "task", "phase", "optimizer", "name", "status", "problem"), str),
    **dict.fromkeys(("data_hash", "init_hash", "device", "torch"), str),
    **dict.fromkeys(("version", "point", "seed", "step", "steps", "gradients"), int),
    **dict.fromkeys(("initial_loss", "train_seconds", "peak_gib", "optimizer_gib"), _NUMBER),
    **dict.fromkeys(("settings", "last", "curve"), dict),
    "command": list,
    "checked": (bool, type(None)),
    "git_commit": (str, type(None)),
}


def _series(series: Any) -> list[Any]:
    if not isinstance(series, list) or len(series) > CURVE_POINTS:
        raise UnreadableError("a curve is no list, or too long a one")
    return series


def entries(file: Path) -> Iterator[Run | str]:
    """Yield each line's run, or why it is none."""
    if file.is_symlink() or file.stat().st_size > LARGEST_ENTRY_BYTES:
        yield f"a link, or more than {LARGEST_ENTRY_BYTES // 2**20} MiB"
        return
    with file.open(errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                if len(line) > LARGEST_OTHER_BYTES:
                    raise UnreadableError(f"more than {LARGEST_OTHER_BYTES // 2**20} MiB")
                content = _parse(line)
                if content.get("schema") != LINE_SCHEMA:
                    raise UnreadableError(f"schema {content.get('schema')!r}, and this reads {LINE_SCHEMA}")
                yield checked(content)
            except UnreadableError as why:
                yield f"line {number}: {why}"


def _json(path: Path) -> dict[str, Any]:
    _limit(path)
    try:
        return _parse(path.read_text())
    except (OSError, UnicodeDecodeError) as why:
        raise UnreadableError(f"{path.name} cannot be read: {type(why).__name__}") from why


def _parse(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as why:
        raise UnreadableError(f"damaged JSON: {str(why)[:80]}") from why
    if not isinstance(content, dict):
        raise UnreadableError("no JSON object")
    return content


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file without aliases: they make a small file a huge object."""
    _limit(path)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = path.read_text()
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=loader)):
            raise UnreadableError(f"{path.name} has aliases, which no run writes")
        content = yaml.load(text, Loader=loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as why:
        raise UnreadableError(f"{path.name} is missing or damaged ({type(why).__name__})") from why
    if not isinstance(content, dict):
        raise UnreadableError(f"{path.name} is no mapping")
    return cast(dict[str, Any], content)


def _limit(path: Path) -> None:
    largest = LARGEST_BYTES.get(path.name, LARGEST_OTHER_BYTES)
    try:
        size = path.stat().st_size
    except OSError as why:
        raise UnreadableError(f"no {path.name}") from why
    if path.is_symlink() or size > largest:
        raise UnreadableError(f"{path.name} is a link, or larger than {largest / 2**20:g} MiB")
