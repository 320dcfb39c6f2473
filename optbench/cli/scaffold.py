"""`python -m optbench.new optimizer|task|probe NAME`: a small working start, with its YAML and its test."""

import keyword
from importlib.util import find_spec
from pathlib import Path
from string import Template

from optbench.boundary.command_line import Parser
from optbench.errors import UserError, exit_with
from optbench.paths import conf_folder

KINDS = {"optimizer": "optimizer", "task": "task", "probe": "probes"}  # kind: group of YAMLs
RUN = {
    "optimizer": "optimizer={name} task=digits_small",
    "task": "task={name}",
    "probe": "probes={name} task=digits_small",
}
LONGEST = 64


def main() -> None:
    """Write the files into the current folder; exit code 2 where that cannot be."""
    exit_with(_main)


def _main() -> int:
    parser = Parser(prog="python -m optbench.new", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("name", help="of the module and of the YAML: small letters, digits and _")
    arguments = parser.parse_args()
    written = write(arguments.kind, arguments.name, Path.cwd())
    for file in written:
        print(f"wrote {file.relative_to(Path.cwd())}")
    print(f"test it:  python -m pytest test_{arguments.name}.py")
    if arguments.kind == "optimizer":
        print(f"check it: python -m optbench.check {arguments.name}.{_class_name(arguments.name)}")
    print(
        "run it:   python -m optbench --config-dir conf "
        f"{RUN[arguments.kind].format(name=arguments.name)}"
    )
    return 0


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
            f"a name must be no word of Python's own, and at most {LONGEST} letters, got "
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
