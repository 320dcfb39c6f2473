"""What went wrong, in one line that names the value and the way out."""

import contextlib
import re
import sys
import sysconfig
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from optbench.boundary import printable
from optbench.boundary.shape import LONGEST_VALUE
from optbench.boundary.signature import unknown
from optbench.configuration.keys import known_keys
from optbench.errors import UserError, file_trouble, nearest, origin
from optbench.paths import conf_folder

OURS = Path(__file__).resolve().parents[1]
LIBRARIES = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}


def explain(error: BaseException) -> tuple[str | None, int]:
    """Return (line, exit code); the line is None for what only a traceback explains."""
    line, code = _explain(error)
    return None if line is None else printable(line), code


def _explain(error: BaseException) -> tuple[str | None, int]:
    if isinstance(error, UserError):
        return str(error), error.exit_code
    if isinstance(error, MissingConfigException):  # also an OSError
        return _unknown_entry(error), 2
    if isinstance(error, OSError):
        return file_trouble(
            error
        ) or f"{error.strerror or error}: {str(error.filename)[:LONGEST_VALUE]}", 1
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _wrong_setting(error), 2
    return _elsewhere(error)


def _elsewhere(error: BaseException) -> tuple[str | None, int]:
    """Explain an error of Hydra's, or of a user's code; a bug of optbench keeps its traceback."""
    said = f"{type(error).__name__}: {error}"
    who, frames = origin(error)
    for name, number in reversed(frames):
        path = Path(name)
        if path.is_relative_to(OURS) or path.is_relative_to(OURS.parent / "tasks"):
            break
        if {"hydra", "omegaconf"} & set(path.parts):
            return f"this cannot be read as a configuration ({said})", 2
        if path.is_file() and not any(path.is_relative_to(folder) for folder in LIBRARIES):
            return (
                f"{who}{path.name}, line {number}, raised {said}; "
                "HYDRA_FULL_ERROR=1 shows the whole traceback",
                1,
            )
    return None, 1


def _unknown_entry(error: MissingConfigException) -> str:
    missing = error.missing_cfg_file or ""
    group, _, entry = missing.rpartition("/")
    if not group or not error.options:
        return " ".join(str(error).split())
    known = sorted(error.options)
    return f"there is no {group} called {entry}.{nearest(entry, known)} Known: {', '.join(known)}"


def _wrong_setting(error: BaseException) -> str:
    line = " ".join(str(error).split())
    if not line and error.__cause__ is not None:
        return _wrong_setting(error.__cause__)
    if found := re.search(r"Could not override '([^']+)'", line):
        key, known = found.group(1), _known_settings()
        if key == "config_dir":  # as the other commands are told
            return "there is no key config_dir: say --config-dir DIR"
        return f"say +{key}=VALUE: no YAML gives it" if key in known else unknown(key, known)
    if found := re.search(r"Missing mandatory value: (\S+)", line):
        return f"{found.group(1)} has no default: say {found.group(1)}=VALUE"
    if found := re.search(
        r"access probes\.(\w+)\.\w+: node `probes\.\w+` is not a container", line
    ):
        name = found.group(1)
        return (
            f"other probes take settings from probes.{name}: to switch it off, "
            f"say probes.{name}.every=never"
        )
    return line


def _known_settings() -> list[str]:
    """Return the known keys for the entries chosen on the command line, if possible."""
    chosen = [
        word
        for word in sys.argv[1:]
        if re.fullmatch(r"(task|model|optimizer|schedule|probes)=[\w/]+", word)
    ]
    for choices in (chosen, []):
        with (
            contextlib.suppress(Exception),
            initialize_config_dir(str(conf_folder()), version_base="1.3"),
        ):
            content = OmegaConf.to_container(compose("config", choices), resolve=False)
            assert isinstance(content, dict)
            return known_keys({str(key): value for key, value in content.items()})
    return []
