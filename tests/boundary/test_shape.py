"""Plain data against a declared shape: right values stay, others are refused in one line."""

from typing import Annotated, Any

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from optbench.boundary import STRICT, ShapeError, shaped


@dataclass(frozen=True, config=STRICT)
class _Inner:
    low: float
    names: tuple[str, ...] = ()


@dataclass(frozen=True, config=STRICT)
class _Outer:
    count: Annotated[int, Field(ge=1)]
    on: bool = False
    inner: _Inner | None = None


def test_what_fits_comes_through() -> None:
    assert shaped(_Outer, {"count": 2, "inner": {"low": 1, "names": ["a"]}}) == _Outer(
        2, False, _Inner(1.0, ("a",))
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"count": 0}, "count must be greater than or equal to 1, got 0, in here"),
        ({"count": True}, "count must be a valid integer, got True, in here"),
        ({"count": 1.0}, "count must be a valid integer, got 1.0, in here"),
        ({"count": 1, "on": "no"}, "on must be a valid boolean, got 'no', in here"),
        ({"count": 1, "on": 1}, "on must be a valid boolean, got 1, in here"),
        (
            {"count": 1, "inner": {"low": float("nan")}},
            "inner.low must be a finite number, got nan, in here",
        ),
        (
            {"count": 1, "inner": {"low": 1, "names": "a"}},
            "inner.names must be a valid array, got 'a', in here",
        ),
        ({"count": 1, "cuont": 2}, "there is no key cuont, in here. Did you mean count, on?"),
        ({}, "count is missing, in here"),
        ([1], "it must be "),
        ({"count": "\x1b[31m" * 100}, "count must be a valid integer, got '"),
    ],
)
def test_what_does_not_fit_is_said(content: Any, said: str) -> None:
    with pytest.raises(ShapeError) as why:
        shaped(_Outer, content, "here")
    line = str(why.value)
    assert line.startswith(said) and line.isprintable() and len(line) < 200
