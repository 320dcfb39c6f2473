"""Keys that somebody wrote, held against the signature of what will be called with them.

The annotations of a function or class are its declared shape: a plug-in that annotates is checked
like those of optbench.
"""

import inspect
import json
import math
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from optbench.boundary.files import printable
from optbench.boundary.kinds import expected
from optbench.boundary.shape import STRICT, ShapeError, shortened
from optbench.errors import nearest

# what YAML 1.1 calls booleans, and we read as text
NOT_BOOLEANS = ("yes", "no", "on", "off", "y", "n")
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Keys:
    """What can be given by name.

    Attributes:
        named: The parameters, by name.
        takes_others: Whether any other name is taken too (`**kwargs` of which nothing is known).
    """

    named: dict[str, inspect.Parameter]
    takes_others: bool = False


def keys_of(function: Callable[..., Any], positional: int = 0) -> Keys:
    """Return what a callable takes by name, beyond `positional` arguments given by position.

    `**options: Annotated[Any, Options]` takes the keys of the class Options.
    """
    parameters = _parameters(function)
    if parameters is None:
        return Keys({}, takes_others=True)
    named = {p.name: p for p in parameters if p.kind not in _VARIADIC}
    takes_others = False
    for p in parameters:
        if p.kind is p.VAR_KEYWORD:
            rest = _options(p.annotation)
            takes_others |= rest is None
            named |= {
                name: other
                for name, other in (rest.named if rest else {}).items()
                if name not in named
            }
    by_position = list(named)[:positional]
    return Keys({name: p for name, p in named.items() if name not in by_position}, takes_others)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    for evaluated in (True, False):  # annotations that are strings may name what cannot be imported
        try:
            return list(inspect.signature(function, eval_str=evaluated).parameters.values())
        except (NameError, AttributeError, TypeError, SyntaxError):
            continue
        except ValueError:  # built in, without a signature
            return None
    return None


def _options(annotation: Any) -> Keys | None:
    if get_origin(annotation) is Annotated:
        for part in get_args(annotation)[1:]:
            if inspect.isclass(part):
                return keys_of(part)
    return None


def _kind(parameter: inspect.Parameter | None) -> Any:
    """The type that a parameter says it has, else that of its default; None if neither tells."""
    if parameter is None:
        return None
    if parameter.annotation is not parameter.empty and not isinstance(parameter.annotation, str):
        said = _plain_part(parameter.annotation)
        if said is not None:
            return said
    match parameter.default:
        case bool() | str():
            return type(parameter.default)
        case int() | float():
            return float
        case tuple() | list():
            return list[Any]
        case _:
            return None


def _plain_part(annotation: Any) -> Any:
    """The type without what no YAML can hold: `list[float]` of `list[float | Tensor]`."""
    if annotation is ... or adapter(annotation) is not None:
        return annotation
    origin, parts = get_origin(annotation), [_plain_part(part) for part in get_args(annotation)]
    if origin in (Union, types.UnionType):
        known = tuple(part for part in parts if part is not None)
        return Union[known] if known else None  # noqa: UP007  # made at run time
    return origin[tuple(parts)] if origin in (tuple, list) and parts and None not in parts else None


def adapter(kind: Any) -> TypeAdapter[Any] | None:
    """Return what checks a value of this type, None if plain data cannot be one."""
    try:
        return _known_adapter(kind)
    except TypeError:  # a type that cannot be hashed, as `Annotated` with a list is
        return _new_adapter(kind)


def _new_adapter(kind: Any) -> TypeAdapter[Any] | None:
    for config in (STRICT, None):  # a class of fields has a configuration of its own
        try:
            return TypeAdapter(kind, config=config)
        except Exception:  # pydantic's word for "no such type" differs from type to type
            continue
    return None


# A run checks some hundred values of the same few types, and pydantic compiles each in 0.3 ms.
_known_adapter = lru_cache(maxsize=1024)(_new_adapter)


def check_arguments(
    function: Callable[..., Any],
    given: Mapping[str, Any],
    prefix: str,
    positional: int = 0,
    elsewhere: Callable[[], Collection[str]] = tuple,
    kinds: Mapping[str, Any] | None = None,
    built: Collection[str] = (),
) -> None:
    """Raise unless a callable takes these keys, with values such as these.

    Args:
        function: What will be called.
        given: The keys and values.
        prefix: Prefix of every key in the message, such as `optimizer.`.
        positional: How many arguments are given by position.
        elsewhere: Returns the keys that there are in other places, to advise.
        kinds: Types of some keys, which go before what the signature says.
        built: Keys whose values are to be built first, which nothing can be said of.

    Raises:
        ShapeError: With key, value, and what is expected.
    """
    keys = keys_of(function, positional)
    for name in (*given, *built):
        if name not in keys.named and not keys.takes_others:
            raise ShapeError(
                unknown(
                    f"{prefix}{name}", [*(prefix + other for other in keys.named), *elsewhere()]
                )
            )
    for name, value in given.items():
        parameter = keys.named.get(name)
        if parameter is None or not _is_default(value, parameter):
            check_value(f"{prefix}{name}", value, (kinds or {}).get(name) or _kind(parameter))


def _is_default(value: Any, parameter: inspect.Parameter) -> bool:
    return type(value) is type(parameter.default) and bool(value == parameter.default)


def check_value(key: str, value: Any, kind: Any) -> None:
    """Raise a ShapeError unless a plain value is of this type; of None, unless it can be meant."""
    if kind in (None, Any, list[Any]):
        _check_unsaid(key, value)
    if kind in (None, Any):
        return
    checker = adapter(kind)
    if checker is None:
        return
    try:
        checker.validate_json(json.dumps(value))
    except ValidationError as why:
        wanted = expected(kind) or why.errors(include_url=False)[0]["msg"].removeprefix(
            "Input should be "
        )
        wanted = "a node with _target_" if wanted == "callable" else wanted
        raise ShapeError(f"{printable(key)} must be {wanted}, got {shown(value)}") from None
    except TypeError:
        raise ShapeError(f"{printable(key)} must be plain data, got {shown(value)}") from None


def _check_unsaid(key: str, value: Any) -> None:
    for part in _leaves(value):
        if isinstance(part, str) and part.lower() in NOT_BOOLEANS:
            raise ShapeError(
                f"{printable(key)} must be true or false where it is a yes or no, got "
                f"{shown(value)}"
            )
        if isinstance(part, float) and not math.isfinite(part):
            raise ShapeError(f"{printable(key)} must be finite, got {shown(value)}")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def unknown(key: str, known: Collection[str]) -> str:
    """Return the line for a key that there is none of, with the nearest that there are."""
    others = list(dict.fromkeys(other for other in known if other != key))
    last = key.rpartition(".")[2]
    same_end = [other for other in others if other.rpartition(".")[2] == last][:3]
    advice = f" Did you mean {', '.join(same_end)}?" if same_end else nearest(key, others)
    if not advice:
        ends = {other.rpartition(".")[2]: other for other in others}
        close = nearest(last, ends)
        advice = f" Did you mean {ends[close.split()[3].rstrip('?,')]}?" if close else ""
    return f"there is no key {printable(key)}.{advice}"


def shown(value: Any) -> str:
    """A value as the command line has it, on one line and not too long."""
    words = {None: "null", True: "true", False: "false"}
    plain = isinstance(value, bool | None)
    text = words[value] if plain else printable(value if isinstance(value, str) else str(value))
    return shortened(text or "''")


def check_fields(instance: Any, prefix: str) -> None:
    """Raise a ShapeError unless a dataclass has values of the types that its fields declare."""
    given = {field.name: getattr(instance, field.name) for field in fields(instance) if field.init}
    check_arguments(type(instance), given, prefix)
