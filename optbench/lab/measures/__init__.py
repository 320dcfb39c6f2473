"""Measures of a model at its weights, one file each; a new one is one small file.

A file registers functions of a `Point` by `@measure`, and is found by itself.
"""

import hashlib
import importlib
import math
import pkgutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from optbench.curvature.errors import MeasurementError
from optbench.errors import UserError, nearest
from optbench.lab.point import Point

Invariance = Literal["yes", "no", "global scale only"]


@dataclass(frozen=True)
class Noted:
    """A value with what a reader of it should know, such as its standard error."""

    value: float
    note: str | None


Function = Callable[[Point], "float | Noted"]


@dataclass(frozen=True)
class Measure:
    """A quantity of a point.

    Attributes:
        name: Name.
        meaning: What it is, in one line.
        equation: Its definition.
        unit: Unit.
        invariant: Whether rescaling two adjacent ReLU layers, which leaves the function, leaves it.
        source: Where it is from.
        cost: What it takes, in passes over the training examples or products with the Hessian.
        dear: Whether it is left out of `all`, since it costs seconds to minutes.
        function: The function.
    """

    name: str
    meaning: str
    equation: str
    unit: str
    invariant: Invariance
    source: str
    cost: str
    dear: bool
    function: Function


@dataclass(frozen=True)
class Reading:
    """A measure's value at a point.

    Attributes:
        measure: What was measured.
        value: Value; NaN where it is absent.
        seconds: Time that it took, beyond what an earlier measure of the point had computed.
        reason: Why it is absent, None where it is not.
        note: What a reader of the value should know; None for nothing.
    """

    measure: Measure
    value: float
    seconds: float
    reason: str | None = None
    note: str | None = None


_KNOWN: dict[str, Measure] = {}


def measure(
    *,
    meaning: str,
    equation: str,
    invariant: Invariance,
    source: str,
    cost: str,
    unit: str = "1",
    dear: bool = False,
) -> Callable[[Function], Function]:
    """Register a function of a point as a measure, under the function's name."""

    def register(function: Function) -> Function:
        name = function.__name__
        _KNOWN[name] = Measure(
            name=name,
            meaning=meaning,
            equation=equation,
            unit=unit,
            invariant=invariant,
            source=source,
            cost=cost,
            dear=dear,
            function=function,
        )
        return function

    return register


def known() -> dict[str, Measure]:
    """Every measure by its name, in alphabetical order."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(_KNOWN.items()))


def definitions() -> str:
    """SHA-256 of the code of all measures: whoever keeps readings can tell when one has changed."""
    here = Path(__file__).parent
    files = [*here.glob("*.py"), here.parent / "point.py", here.parent / "per_example.py"]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def chosen(names: str | Sequence[str] = "all") -> list[Measure]:
    """The measures of these names; `all` are those that are cheap, `everything` is the rest too.

    Raises:
        UserError: If there is no measure of a name.
    """
    there = known()
    if names == "everything":
        return list(there.values())
    if names == "all":
        return [m for m in there.values() if not m.dear]
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in there:
            raise UserError(
                f"there is no measure called {name}.{nearest(name, there)} Known: "
                f"{', '.join(there)}"
            )
    return [there[name] for name in wanted]


def measure_point(point: Point, names: str | Iterable[str] = "all") -> dict[str, Reading]:
    """Measure a point. What a model does not have is absent, with the reason.

    Args:
        point: The point; it is read, never changed.
        names: Names of measures, `all` for those that take a second together, or `everything`.

    Raises:
        UserError: If there is no measure of a name.
    """
    wanted = chosen(names if isinstance(names, str) else list(names))
    with point.fitting_threads():
        return {m.name: _read(m, point) for m in wanted}


def _read(of: Measure, point: Point) -> Reading:
    start = time.perf_counter()
    reason = note = None
    try:
        found = of.function(point)
        value, note = (found.value, found.note) if isinstance(found, Noted) else (found, None)
        if not math.isfinite(value):
            value, reason = math.nan, f"it is {value}"
    except (MeasurementError, FloatingPointError) as why:
        value, reason = math.nan, str(why)
    return Reading(of, float(value), time.perf_counter() - start, reason, note)
