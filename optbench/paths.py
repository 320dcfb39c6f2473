"""Where the files that come with optbench are, and those that it keeps for a user."""

import os
from pathlib import Path


def conf_folder() -> Path:
    """Return the folder of YAMLs: beside this file when installed, one level up in a checkout."""
    here = Path(__file__).resolve().parent
    return next(folder for folder in (here / "conf", here.parent / "conf") if folder.is_dir())


def state_folder() -> Path | None:
    """Return the folder of what optbench keeps between runs; None where there is no home folder."""
    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        return (Path(state) if state else Path.home() / ".local" / "state") / "optbench"
    except RuntimeError:
        return None
