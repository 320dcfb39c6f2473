"""One run of a suite's protocol, as a line of a committed file holds it: its declared shape."""

import gc
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, cast

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter
from pydantic_core import from_json

from optbench import metrics
from optbench.boundary import LAX, Name, Plain, Text, UnreadableError, shaped_text

LINE_SCHEMA = 1
OF_A_FOLDER = {"local": False, "conditions": {}, "given_name": "", "code": {}, "copied": False}
"""What no committed line holds, as it is there."""
CURVE_POINTS = 60
DIGITS = 6  # significant ones: what a committed line keeps of a measured number

Count = Annotated[int, Field(ge=0, lt=2**63)]
# as it is, so that its line is written again alike
Number = Annotated[int, Field(ge=-(2**63), lt=2**63)] | float
NotNegative = Annotated[int, Field(ge=0, lt=2**63)] | Annotated[float, Field(ge=0)]
Word = Annotated[str, Field(max_length=4096)]
Series = Annotated[Sequence[Number | None], Field(max_length=CURVE_POINTS)]


def _drawable(curve: Mapping[str, Sequence[float | None]]) -> Mapping[str, Sequence[float | None]]:
    steps = curve.get("step", [])
    if any(step is None for step in steps) or any(
        len(series) != len(steps) for series in curve.values()
    ):
        raise ValueError("series as long as that of the steps, which has no gaps")
    if any(
        cost is not None and cost < 0
        for key in (metrics.GRADIENTS, metrics.TRAIN_SECONDS)
        for cost in curve.get(key, [])
    ):
        raise ValueError("series whose costs are not negative")
    return curve


Curve = Annotated[Mapping[Text, Series], Field(max_length=100), AfterValidator(_drawable)]


@dataclass(frozen=True)
class Run:
    """One run of a suite's protocol, with all that the board and its page need.

    Attributes:
        name: Name of the run folder. For showing, never a path.
        problem: SHA-256 of the configuration less what is compared and what moves no result, 16
            digits.
        checked: Whether the data had their published checksums, None where there are none to have.
        settings: Settings of the optimizer.
        command: Overrides of the main job that make it again.
        last: Every metric's last value; where conditions are read, of the last step only.
        curve: Series by metric, each as long as `curve["step"]`, None where not measured then;
            finals only.
        local: Whether its folder is here, so that it was run here.
        conditions: What it is compared under (task, model, steps, …), by key; only of runs that are
            read for a comparison without a suite, and in no committed line.
        given_name: Name of the optimizer as it was given, such as `mine/adam`; else as conditions.
        code: The user's code that the optimizer's settings name: digest or version by target; else
            as conditions.
        copied: Whether its folder has another name than the run had; else as conditions.
    """

    __pydantic_config__: ClassVar[ConfigDict] = LAX

    suite: Name
    version: Count
    digest: Text
    task: Name
    phase: Literal["tune", "final"]
    point: Count
    optimizer: Name
    seed: Count
    name: Text
    status: Text
    step: Count
    steps: Count
    problem: Text
    data_hash: Text
    init_hash: Text
    initial_loss: Number
    checked: bool | None
    settings: Mapping[str, Plain]
    command: Annotated[Sequence[Word], Field(max_length=1000)]
    last: Mapping[Text, Number]
    curve: Curve
    gradients: Count = 0
    train_seconds: NotNegative = 0.0
    peak_gib: NotNegative = 0.0
    optimizer_gib: NotNegative = 0.0
    device: Text = ""
    torch: Text = ""
    git_commit: Text | None = None
    local: bool = field(default=False, compare=False)
    conditions: Mapping[Text, Plain] = field(default_factory=dict, compare=False)
    given_name: Text = field(default="", compare=False)
    code: Mapping[Text, Text] = field(default_factory=dict, compare=False)
    copied: bool = field(default=False, compare=False)

    @property
    def label(self) -> str:
        """Suite and version: the folder that its entry lies in."""
        return f"{self.suite}-v{self.version}"

    @property
    def place(self) -> "Slot":
        """Place of the protocol that the run fills."""
        return Slot(self.optimizer, self.task, self.phase, self.point, self.seed)

    def line(self) -> str:
        """Return it as a line of a committed file."""
        content = {key: value for key, value in asdict(self).items() if key not in OF_A_FOLDER}
        return json.dumps({"schema": LINE_SCHEMA} | content, sort_keys=True, allow_nan=False)


class Slot(NamedTuple):
    """One run that a protocol asks for."""

    optimizer: str
    task: str
    phase: str
    point: int
    seed: int


@dataclass(frozen=True)
class _Head:
    __pydantic_config__: ClassVar[ConfigDict] = LAX
    schema: Count


def read_line(line: str) -> Run:
    """Return the run that a line of a committed file holds; it is never a local one.

    Raises:
        UnreadableError: If it is of another version.
        ShapeError: If it is no such line, or something in it is missing, or not what it must be.
    """
    if (schema := shaped_text(_Head, line).schema) != LINE_SCHEMA:
        raise UnreadableError(f"schema {schema}, and this reads {LINE_SCHEMA}")
    run = shaped_text(Run, line)
    claimed = any(getattr(run, key) for key in OF_A_FOLDER)
    return replace(run, **cast(Any, OF_A_FOLDER)) if claimed else run


def write_local(run: Run | None) -> str:
    """Return a run of this machine, or the absence of one, as a line for `read_local`."""
    return _runs().dump_json([run]).decode()[1:-1]


def read_local(lines: Iterable[str]) -> list[Run]:
    """Return the runs that `write_local` wrote, without holding them against their shape again.

    So it is only for what this code has written itself, and nobody has changed since.
    """
    collecting = gc.isenabled()
    gc.disable()  # it would walk all that has been read, again and again, and find nothing
    try:
        contents = from_json(f"[{','.join(lines)}]")
        return [_run(content) for content in contents if content is not None]
    finally:
        if collecting:
            gc.enable()


def _run(content: dict[str, Any]) -> Run:
    """A run of all its fields, at once: a frozen dataclass sets each by a call of its own."""
    run: Run = object.__new__(Run)
    run.__dict__.update(content)
    return run


@cache
def _runs() -> TypeAdapter[list[Run | None]]:
    return TypeAdapter(list[Run | None])
