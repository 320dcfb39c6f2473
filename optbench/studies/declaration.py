"""What was declared, when it was first seen, and whether runs had been seen by then."""

import hashlib
import importlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from optbench.boundary import UnreadableError, read_yaml
from optbench.errors import UserError, nearest
from optbench.paths import conf_folder
from optbench.record.commits import committed
from optbench.record.durable import write_whole
from optbench.record.folder import PROVENANCE, read_json
from optbench.record.series import read_lines
from optbench.record.sources import source
from optbench.studies.frame import Declaration, Hypothesis, Study

HISTORY = "declarations.jsonl"
LARGEST = 2**20


@dataclass(frozen=True)
class Declared:
    """A study with the digest of its declaration.

    Attributes:
        name: Name of its YAML.
        study: The study.
        digest: SHA-256 of the YAML without its errata, and of the code of a study of the user's
            own. The code of optbench's own is held by tests: they judge the committed tables again.
        files: The YAMLs that declare it.
    """

    name: str
    study: Study
    digest: str
    files: Sequence[Path] = ()


def known_studies(config_dir: Path | None = None) -> list[str]:
    """Names of the studies that have a YAML with a `_target_`."""
    return sorted(
        path.stem
        for folder in _folders(config_dir)
        for path in folder.glob("*.yaml")
        if "_target_" in _read(path)
    )


def read_study(name: str, config_dir: Path | None = None) -> Declared:
    """Return a study by the name of its YAML.

    Raises:
        UserError: If there is none, or the YAML is not one of a study.
    """
    for folder in _folders(config_dir):
        path = folder / f"{name}.yaml"
        if path.is_file() and "_target_" in (content := _read(path)):
            files = [path]
            if shared := content.pop("shared", None):  # what several studies have in common
                files.append(folder / f"{shared}.yaml")
                common = {k: v for k, v in _read(files[1]).items() if k != "errata"}
                content = common | content
            return _declared(name, content, files)
    known = known_studies(config_dir)
    raise UserError(
        f"there is no study called {name}.{nearest(name, known)} Known: {', '.join(known)}"
    )


def _declared(name: str, content: dict[str, Any], files: Sequence[Path]) -> Declared:
    target = content.pop("_target_")
    settings = content.pop("settings", {})
    errata = content.pop("errata", ())  # said later, of a declaration that stays as it was
    try:
        hypotheses = [Hypothesis(**entry) for entry in content.pop("hypotheses")]
        declaration = Declaration(hypotheses=hypotheses, errata=errata, **content)
        study = _class(target)(declaration, **settings)
    except (TypeError, KeyError, ImportError, AttributeError) as why:
        raise UserError(f"conf/study/{name}.yaml does not declare a study: {why}") from why
    text = json.dumps([target, settings, content, source(target)], sort_keys=True, default=str)
    text += json.dumps([vars(h) for h in hypotheses], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Declared(name, cast(Study, study), digest, files)


def _class(target: str) -> Callable[..., Any]:
    """The class that a `_target_` names; a study's module is imported only when it is asked for."""
    module, _, name = str(target).rpartition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _folders(config_dir: Path | None) -> list[Path]:
    own = [] if config_dir is None else [config_dir / "study"]
    return [*own, conf_folder() / "study"]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path, LARGEST)
    except UnreadableError as why:
        raise UserError(f"{path} cannot be read: {why}") from why
    return content if isinstance(content, dict) else {}


def remember(folder: Path, declared: Declared, runs_seen: int) -> list[Mapping[str, Any]]:
    """Add the declaration to the folder's history if it is new there; return the history.

    Args:
        folder: Folder of the study's results.
        declared: The study as it is declared now.
        runs_seen: Number of its runs that have finished by now.
    """
    path = folder / HISTORY
    history: list[Mapping[str, Any]] = list(read_lines(path)) if path.is_file() else []
    if declared.digest not in [entry.get("digest") for entry in history]:
        entry = {
            "digest": declared.digest,
            "first_seen": datetime.now(UTC).isoformat(timespec="seconds"),
            "committed": committed(declared.files),
            "runs_seen": runs_seen,
        }
        history.append(entry)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(json.dumps(line) + "\n" for line in history))
    return history


def told(history: Sequence[Mapping[str, Any]], digest: str, first_run: str | None) -> str:
    """Say when this declaration was first seen, and what had been seen by then.

    Args:
        history: What `remember` returned.
        digest: Digest of the declaration.
        first_run: When the first of its runs began, in UTC; None if there is none.
    """
    entry = next(entry for entry in history if entry["digest"] == digest)
    words = f"Declaration {digest[:12]}, first seen {entry['first_seen']}"
    when = entry.get("committed")
    if not entry["runs_seen"]:
        words += ", before any of its runs"
    elif when and first_run and datetime.fromisoformat(when) < datetime.fromisoformat(first_run):
        words += (
            f", when {entry['runs_seen']} of its runs had been made, for another study; it was "
            f"committed {when}, before the first of them began ({first_run})"
        )
    else:
        words += f", after {entry['runs_seen']} of its runs were seen"
    if len(history) > 1:
        words += f"; it is declaration {len(history)} of this study, earlier ones are in {HISTORY}"
    return words + "."


def began(folders: Iterable[Path]) -> str | None:
    """When the first of these runs began, in UTC."""
    times = []
    for folder in folders:
        sessions = (read_json(folder / PROVENANCE) or {}).get("sessions")
        if isinstance(sessions, list) and sessions and isinstance(sessions[0], dict):
            times.append(str(sessions[0].get("began", "")))
    return min(filter(None, times), default=None)
