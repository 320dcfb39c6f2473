"""What the docstring of a callable says of it and of each of its arguments."""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_args, get_origin

_SECTION = re.compile(r"(?P<indent> *)(Args|Arguments|Parameters|Attributes):\s*")
_ENTRY = re.compile(r"(?P<indent> *)`?\*{0,2}(?P<name>\w+)`?(?: *\(.*?\))? ?:(?!:) *(?P<text>.*)")
_DEFAULT = re.compile(  # "(default: 1e-3)", "Default: 0."
    r",? *\([Dd]efaults?(?: value)?(?: to)?[:=]? [^()]*(?:\([^()]*\)[^()]*)*\)"
    r"| Defaults?: [\w.-]+\.?$"
)
_ROLE = re.compile(r":\w+:`([^`]*)`")
_SENTENCE = re.compile(r"(?<!e\.g\.)(?<!i\.e\.)(?<!et al\.)(?<=[.?!])\s+(?=[A-Z`:])")


def about(function: Callable[..., Any]) -> str:
    """The first paragraph of a docstring, on one line; empty if there is none."""
    paragraph = (inspect.getdoc(function) or "").strip().partition("\n\n")[0]
    return " ".join(paragraph.split())


def first_sentence(text: str) -> str:
    """The first sentence of a text."""
    return _SENTENCE.split(text, maxsplit=1)[0]


def arguments(function: Callable[..., Any]) -> dict[str, str]:
    """What the docstring says of each argument, on one line each, in its order.

    A class is described by its own docstring, by that of `__init__` and by those of its bases;
    `**options: Annotated[Any, Options]` by that of the class Options.
    """
    found: dict[str, str] = {}
    for described in _described(function):
        for name, text in _entries(inspect.cleandoc(described)):
            found.setdefault(name, text)
    return found


def _described(function: Callable[..., Any]) -> Iterator[str]:
    if inspect.isclass(function):
        for base in function.__mro__[:-1]:
            yield base.__dict__.get("__doc__") or ""
            yield getattr(base.__dict__.get("__init__"), "__doc__", "") or ""
    else:
        yield inspect.getdoc(function) or ""
    for options in _option_classes(function):
        yield options.__doc__ or ""


def _option_classes(function: Callable[..., Any]) -> Iterator[type]:
    try:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
    except (NameError, AttributeError, TypeError, SyntaxError, ValueError):
        return  # annotations that cannot be read declare no options
    for parameter in parameters:
        if (
            parameter.kind is parameter.VAR_KEYWORD
            and get_origin(parameter.annotation) is Annotated
        ):
            yield from (
                part for part in get_args(parameter.annotation)[1:] if inspect.isclass(part)
            )


def _entries(doc: str) -> Iterator[tuple[str, str]]:
    """(name, text) of the entries of a docstring's sections on arguments."""
    section: int | None = None
    column: int | None = None
    name, words = "", list[str]()
    for line in [*doc.splitlines(), "."]:  # the last line ends what is open
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            continue
        if section is not None and indent <= section:
            section = None
        if section is None or indent == column:
            if name:
                yield name, _plain(" ".join(words))
            name, words = "", []
        if section is None:
            if header := _SECTION.fullmatch(line):
                section, column = len(header["indent"]), None
            continue
        column = indent if column is None else column
        if indent == column and (entry := _ENTRY.fullmatch(line)):
            name, words = entry["name"], [entry["text"]]
        else:
            words.append(line.strip())


def _plain(text: str) -> str:
    """Text without reStructuredText's marks, and without the default, which stands beside."""
    text = _ROLE.sub(r"`\1`", _DEFAULT.sub("", text)).replace("``", "`").replace("`_", "`")
    return " ".join(text.split())
