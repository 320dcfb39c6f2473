"""One grammar for all commands but the main job: `python -m optbench.NOUN [NAME …] [KEY=VALUE …]`.

A command declares a frozen dataclass: a field is a key, with its type, its default and a `Key` that
describes it. Help, validation and errors all come from that declaration:

    @dataclass(frozen=True)
    class Settings:
        '''Count something.'''

        jobs: Annotated[Count, Key("runs at a time")] = 1

    COMMAND = Command("optbench.mine", Settings)
    COMMAND.run(work)  # for the word jobs=2: sys.exit(work(Settings(jobs=2)))
"""

import json
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Generic, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import pydantic

from optbench import __version__
from optbench.boundary.kinds import expected
from optbench.boundary.signature import adapter, shown, unknown
from optbench.errors import Explain, UserError, exit_with, nearest, one_line, printable
from optbench.processes import place

VERSION = f"optbench {__version__}"
WIDTH = 80  # of the help
HELP = ("--help", "-h")

FilePath = Annotated[Path, pydantic.Field(description="a path")]
Names = Annotated[
    tuple[Annotated[str, pydantic.Field(min_length=1)], ...],
    pydantic.Field(min_length=1, description="names, separated by commas"),
]
Seconds = Annotated[float, pydantic.Field(gt=0, le=1e9)]

_KEY = re.compile(r"([A-Za-z_][\w.]*)=(.*)", re.DOTALL)
_INTEGER = re.compile(r"[+-]?[0-9]{1,40}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
_WORDS = {"true": True, "false": False}

S = TypeVar("S")


@dataclass(frozen=True)
class Key:
    """What the help says of a key, beside its type and its default.

    Attributes:
        about: What the key means.
        placeholder: Word for its value where it has no default, such as DIR.
        name: Its spelling, where no field can be called so, such as `wandb.mode`.
        positional: Whether its value is a word of its own, without `KEY=`.
        below: Whether it takes every key below it: `optimizer.lr=0.1` is the value `lr=0.1`.
        option: The option that it once was, where that is not `--NAME`.
        alone: What that option meant without a value.
        was_positional: Whether it once was a word of its own.
    """

    about: str
    placeholder: str = ""
    name: str = ""
    positional: bool = False
    below: bool = False
    option: str = ""
    alone: str = ""
    was_positional: bool = False


@dataclass(frozen=True)
class _Key:
    """A field of the settings, as the command line sees it."""

    field: "Field[Any]"
    kind: Any
    about: Key

    @property
    def name(self) -> str:
        return self.about.name or self.field.name

    @property
    def option(self) -> str:
        return self.about.option or "--" + self.name.replace("_", "-").replace(".", "-")

    @property
    def alone(self) -> str:
        """What its option meant without a value."""
        return self.about.alone or ("true" if self.kind is bool else "")

    @property
    def many(self) -> bool:
        """Whether it takes several words."""
        kind = get_args(self.kind)[0] if get_origin(self.kind) is Annotated else self.kind
        return get_origin(kind) is tuple

    @property
    def required(self) -> bool:
        return self.field.default is MISSING and self.field.default_factory is MISSING

    @property
    def default(self) -> str:
        """The default as it would be spelled; empty if there is none to show."""
        value = self.field.default
        if self.field.default_factory is not MISSING:
            value = self.field.default_factory()
        if value is MISSING or value is None or value == ():
            return ""
        if isinstance(value, tuple):
            return ",".join(map(str, value))
        return f"{value:g}" if isinstance(value, float) else shown(value)

    @property
    def word(self) -> str:
        """The key as the help lists it."""
        value = self.about.placeholder or self.field.name.upper()
        if self.about.positional:
            return value
        if self.about.below:
            return f"{self.name}.KEY=VALUE"
        return f"{self.name}={self.default or value}"

    @property
    def wanted(self) -> str:
        """What its value must be, in words."""
        return "KEY=VALUE" if self.about.below else expected(self.kind)

    def read(self, text: str) -> Any:
        """Return the value that a word stands for.

        Raises:
            UserError: If the text is no value of the declared type.
        """
        checker = adapter(self.kind)
        assert checker is not None, f"{self.name} has a type that no text can be"
        one_of_many = self.about.positional and self.many
        for candidate in [[text]] if one_of_many else _candidates(text):
            try:
                return checker.validate_json(json.dumps(candidate))
            except pydantic.ValidationError:
                continue
        raise UserError(f"{self.word_in_error} must be {self.wanted}, got {shown(text)}")

    @property
    def word_in_error(self) -> str:
        return self.word if self.about.positional else self.name


def _candidates(text: str) -> list[Any]:
    """The values that a word may stand for: text, a number, a truth value, a list of names."""
    values: list[Any] = [text] if text else []
    if text in _WORDS:
        values.append(_WORDS[text])
    elif _INTEGER.fullmatch(text):
        values.append(int(text))
    elif _NUMBER.fullmatch(text):
        values.append(float(text))
    names = [name.strip() for name in text.split(",") if name.strip()]
    return [*values, names] if names else values


@dataclass(frozen=True)
class Command(Generic[S]):
    """A command: its name, its keys, and how it ends.

    Attributes:
        program: Module that `python -m` runs, such as `optbench.tune`.
        settings: Frozen dataclass of its keys; its docstring is what the help says of the command.
        examples: Words of a few calls, for the help.
        elsewhere: Setting that puts its results into another place.
    """

    program: str
    settings: type[S]
    examples: tuple[str, ...] = ()
    elsewhere: str = "results_dir=DIR"

    def run(
        self, work: Callable[[S], int], explain: Explain = one_line, heed_signals: bool = True
    ) -> NoReturn:
        """Do what the command line says, and exit.

        Exit codes: what `work` returns (0 done, 1 something failed); 2 for what the user can mend;
        130 for Ctrl-C. `--help` and `--version` print and do nothing.

        Args:
            work: Takes the settings and returns the exit code.
            explain: See `optbench.errors.exit_with`, as for the next.
            heed_signals: Whether SIGTERM and SIGHUP end it as Ctrl-C does.
        """
        words = sys.argv[1:]
        if "--version" in words:
            print(VERSION)
            sys.exit(0)
        if set(HELP) & set(words):
            print(self.help())
            sys.exit(0)
        exit_with(lambda: work(self._alone().read(words)), self.elsewhere, explain, heed_signals)

    def _alone(self) -> "Command[S]":
        """This command, which begins its runs itself.

        Raises:
            UserError: If torchrun has started it in several processes.
        """
        if place().size > 1:
            raise UserError(
                f"{self.program} starts its runs itself: call it without torchrun, which is for "
                "one run, python -m optbench"
            )
        return self

    def read(self, words: Sequence[str]) -> S:
        """Return the settings that the words of a command line say; of one given twice, the last.

        Raises:
            UserError: With one line that names the word, what is expected, and the nearest key.
        """
        keys = self._keys()
        self._refuse_old_spelling(words, keys)
        given: dict[str, Any] = {}
        bare = [key for key in keys if key.about.positional]
        for word in words:
            if match := _KEY.fullmatch(word):
                name, text = match.groups()
                self._take(name, text, keys, given)
            elif bare:
                key = bare[0]
                if not key.many:
                    given[key.field.name] = bare.pop(0).read(word)
                else:
                    given[key.field.name] = (*given.get(key.field.name, ()), *key.read(word))
            else:
                raise UserError(
                    f"{self.program} takes {self._usage(keys)}, got {printable(word)}."
                    f"{nearest(word, [key.name for key in keys])}"
                )
        for key in keys:
            if key.required and key.field.name not in given:
                raise UserError(
                    f"{key.word_in_error} is missing: {self._usage(keys)}; {self._see_help()}"
                )
        return self.settings(**given)

    def _take(self, name: str, text: str, keys: Sequence[_Key], given: dict[str, Any]) -> None:
        for key in keys:
            if key.about.below and name.startswith(f"{key.name}."):
                rest = name.removeprefix(f"{key.name}.")
                given[key.field.name] = (*given.get(key.field.name, ()), f"{rest}={text}")
                return
            if key.name == name and not (key.about.positional or key.about.below):
                given[key.field.name] = key.read(text)
                return
        known = [key.name for key in keys if not key.about.positional]
        raise UserError(f"{unknown(name, known)} {self._see_help()}")

    def _see_help(self) -> str:
        return f"python -m {self.program} --help lists all keys"

    def _refuse_old_spelling(self, words: Sequence[str], keys: Sequence[_Key]) -> None:
        """Raise with the words of today, if any is spelled as before there was one grammar."""
        formerly_bare = next((key for key in keys if key.about.was_positional), None)
        new, old = list[str](), False
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word.startswith("-") and word != "-":
                new.append(self._modern(word, rest, keys))
                old = True
            elif formerly_bare and not _KEY.fullmatch(word):
                new.append(f"{formerly_bare.name}={word}")
                old = True
            else:
                new.append(word)
        if old:
            said = printable(shlex.join(["python", "-m", self.program, *new]))
            raise UserError(f"every setting is KEY=VALUE now: say {said}")

    def _modern(self, option: str, rest: list[str], keys: Sequence[_Key]) -> str:
        """Return the KEY=VALUE of an option, and take its value from the words after it."""
        name, equals, value = option.partition("=")
        key = next((key for key in keys if key.option == name and not key.about.positional), None)
        if key is None:
            raise self._no_option(name, keys)
        if not equals:
            takes_next = key.kind is not bool and rest and not rest[0].startswith("-")
            value = rest.pop(0) if takes_next else key.alone
        if key.about.below:
            return f"{key.name}.{value or 'KEY=VALUE'}"
        return f"{key.name}={value or key.about.placeholder or 'VALUE'}"

    def _no_option(self, name: str, keys: Sequence[_Key]) -> UserError:
        known = [key.name for key in keys if not key.about.positional]
        close = nearest(name.lstrip("-").replace("-", "_"), known)
        return UserError(
            f"there is no option {printable(name)}: every setting is KEY=VALUE.{close} "
            f"{self._see_help()}"
        )

    def help(self) -> str:
        """Return the page that `--help` prints."""
        keys = self._keys()
        width = min(30, max((len(key.word) for key in keys), default=0) + 2)
        usage = textwrap.wrap(f"usage: {self._usage(keys)}", WIDTH, subsequent_indent="  ")
        lines = [*usage, "", _rewrapped(textwrap.dedent(_doc(self.settings))), ""]
        bare = [key for key in keys if key.about.positional]
        named = [key for key in keys if not key.about.positional]
        for title, group in (("names:", bare), ("keys:", named)):
            lines += [title] * bool(group)
            for key in group:
                lines += _entry(key, width)
            lines += [""] * bool(group)
        if self.examples:
            lines += ["examples:"]
            lines += [f"  python -m {self.program} {words}".rstrip() for words in self.examples]
            lines += [""]
        lines += [
            "--help prints this page, --version the version.",
            "exit code: 0 done; 1 something failed; 2 the command must be mended; 130 Ctrl-C.",
        ]
        return "\n".join(lines)

    def key_lines(self, width: int) -> list[str]:
        """The lines of the help on its keys, for a page that has them among others."""
        return [line for key in self._keys() for line in _entry(key, width)]

    def _usage(self, keys: Sequence[_Key]) -> str:
        bare = [key.word + " ..." * key.many for key in keys if key.about.positional]
        named = ["[KEY=VALUE ...]"] * any(not key.about.positional for key in keys)
        return " ".join([f"python -m {self.program}", *bare, *named])

    def _keys(self) -> list[_Key]:
        hints = get_type_hints(self.settings, include_extras=True)
        return [_declared(field, hints[field.name]) for field in fields(self.settings)]  # type: ignore[arg-type]


def _declared(field: "Field[Any]", hint: Any) -> _Key:
    kind, *metadata = get_args(hint)
    about = next(part for part in metadata if isinstance(part, Key))
    others = tuple(part for part in metadata if part is not about)
    for part in get_args(kind):  # `FilePath | None`: None is what a key is that nobody gives
        if NoneType in get_args(kind) and part is not NoneType:
            kind = part
    for part in others:
        kind = Annotated[kind, part]
    return _Key(field, kind, about)


def _doc(settings: type) -> str:
    first, _, rest = (settings.__doc__ or "").strip().partition("\n")
    return f"{first}\n{textwrap.dedent(rest)}".rstrip()


def _rewrapped(text: str) -> str:
    """Prose in lines of the help's width; what is indented or a list stays as it is."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        paragraph
        if any(line.startswith((" ", "- ")) for line in paragraph.splitlines())
        else "\n".join(wrapped(" ".join(paragraph.split())))
        for paragraph in paragraphs
    )


def _entry(key: _Key, width: int) -> list[str]:
    """The lines of the help on one key: its word, what it means, what its value must be."""
    several = key.about.positional and key.many
    obvious = several or key.about.below or key.wanted in ("text", "a path")
    wanted = "" if obvious else f" ({key.wanted})"
    return described(key.word, sentence(key.about.about) + wanted, width)


def sentence(text: str) -> str:
    """A description as a help has it: a capital, and no full stop."""
    return text[:1].upper() + text[1:].removesuffix(".")


def wrapped(text: str, width: int = WIDTH, indent: str = "") -> list[str]:
    """Lines of at most this width; what has no space in it, such as an address, stays whole."""
    return textwrap.wrap(
        text, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


def described(word: str, text: str, width: int) -> list[str]:
    """The lines of a help on one word: the word, and what it means in a column of its own.

    Args:
        word: What is described.
        text: What it means.
        width: Width of the words' column; a longer word has a line of its own.
    """
    said = wrapped(text, WIDTH - width - 2) or [""]
    first = f"  {word:{width}}{said[0]}".rstrip()
    if len(word) > width - 2:
        first = f"  {word}" + f"\n{'':{width + 2}}{said[0]}" * bool(said[0])
    return [first, *(f"{'':{width + 2}}{line}" for line in said[1:])]
