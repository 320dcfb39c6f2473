"""What git knows of files: of the checkout that runs, and of declarations."""

import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path


def git(folder: Path, *words: str) -> str:
    """Return what a git command says in a folder.

    Raises:
        OSError: If there is no git.
        subprocess.SubprocessError: If it fails, or takes more than five seconds.
    """
    command = ["git", "-C", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()


def committed(files: Sequence[Path]) -> str | None:
    """Return when the last change of these files was committed, in UTC; None if one is not so."""
    try:
        dates = [
            git(file.parent, "log", "-1", "--format=%cI", "--", file.name)
            for file in files
            if not git(file.parent, "status", "--porcelain", "--", file.name)
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    if len(dates) < len(files) or not all(dates):
        return None
    last = max(datetime.fromisoformat(date) for date in dates)
    return last.astimezone(UTC).isoformat(timespec="seconds")
