"""Where the files that come with optbench are."""

from pathlib import Path


def conf_folder() -> Path:
    """Return the folder of YAMLs: beside this file when installed, one level up in a checkout."""
    here = Path(__file__).resolve().parent
    return next(folder for folder in (here / "conf", here.parent / "conf") if folder.is_dir())
