"""`python -m optbench.new KIND NAME`: a small working start, with its YAML and its test."""

import keyword
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Annotated, Literal

from optbench.boundary.command_line import Command, Key
from optbench.errors import UserError
from optbench.paths import conf_folder

KINDS = {"optimizer": "optimizer", "task": "task", "probe": "probes"}  # kind: group of YAMLs
RUN = {
    "optimizer": "optimizer={name} task=digits_small",
    "task": "task={name}",
    "probe": "probes={name} task=digits_small",
}
LONGEST = 64


@dataclass(frozen=True)
class Settings:
    """Write a small working start of an optimizer, a task or a probe, with its YAML and its test.

    The files go into the current folder; nothing is overwritten.
    """

    kind: Annotated[
        Literal["optimizer", "task", "probe"],
        Key("what to write", placeholder="KIND", positional=True),
    ]
    name: Annotated[
        str,
        Key(
            "name of the module and of the YAML: small letters, digits and _",
            placeholder="NAME",
            positional=True,
        ),
    ]


COMMAND = Command("optbench.new", Settings, examples=("optimizer mine", "task mine", "probe mine"))


def main() -> None:
    """Write the files that the command line asks for."""
    COMMAND.run(new)


def new(settings: Settings) -> int:
    """Write the files, say how to try them, and return the exit code."""
    kind, name = settings.kind, settings.name
    for file in write(kind, name, Path.cwd()):
        print(f"wrote {file.relative_to(Path.cwd())}")
    print(f"test it:  {_test_first()}python -m pytest test_{name}.py")
    if kind == "optimizer":
        print(f"check it: python -m optbench.check {name}.{_class_name(name)}")
    print(f"run it:   python -m optbench --config-dir conf {RUN[kind].format(name=name)}")
    return 0


def _test_first() -> str:
    """What has to be installed before the test can run, where it is not yet."""
    return "" if find_spec("pytest") else "python -m pip install pytest && "


def write(kind: str, name: str, folder: Path) -> list[Path]:
    """Write NAME.py, its YAML under conf/ and test_NAME.py, and return their paths.

    Raises:
        UserError: If the name cannot be a module's, is taken, or a file is there already; then
            nothing is written.
    """
    if not (
        name.isidentifier() and name.isascii() and name == name.lower() and not name.startswith("_")
    ):
        raise UserError(
            "a name must be small letters, digits and _, beginning with a letter, got "
            f"{name[:LONGEST]}"
        )
    if keyword.iskeyword(name) or len(name) > LONGEST:
        raise UserError(
            f"a name must not be a keyword of Python, and have at most {LONGEST} letters, got "
            f"{name[:LONGEST]}"
        )
    group = KINDS[kind]
    if (conf_folder() / group / f"{name}.yaml").exists():
        raise UserError(f"optbench has {group}={name} already: choose another name")
    files = {
        folder / f"{name}.py": "module",
        folder / "conf" / group / f"{name}.yaml": "yaml",
        folder / f"test_{name}.py": "test",
    }
    for file in files:
        if file.exists():
            raise UserError(f"{file} is there already: choose another name, or remove it")
    if find_spec(name) is not None:
        raise UserError(f"there is a Python module called {name} already: choose another name")
    words = {"name": name, "Name": _class_name(name)}
    for file, part in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        template = Path(__file__).parent / "templates" / f"{kind}_{part}.txt"
        file.write_text(Template(template.read_text()).substitute(words))
    return list(files)


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
