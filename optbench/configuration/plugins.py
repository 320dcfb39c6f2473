"""Packages that bring optimizers, tasks, probes and engines along: their folders of YAMLs.

A package declares an entry point, for example in its pyproject.toml

    [project.entry-points."optbench.optimizers"]
    mine = "my_package"

and holds `my_package/conf/optimizer/mine.yaml`. `optbench.tasks`, `optbench.probes` and
`optbench.launchers` go with `conf/task/`, `conf/probes/` and `conf/launcher/`.
Nothing of it is imported until it is chosen.
"""

from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

GROUPS = {
    "optbench.optimizers": "optimizer",
    "optbench.tasks": "task",
    "optbench.probes": "probes",
    "optbench.launchers": "launcher",
}


def conf_folders(ours: Path) -> tuple[list[Path], list[str]]:
    """Return the folders of YAMLs of installed packages, and a line for each that is wrong.

    Args:
        ours: optbench's own folder, whose entries no package may replace.
    """
    folders: dict[Path, None] = {}
    problems = []
    found = entry_points()  # asked once: it reads what every installed package declares
    for group, kind in GROUPS.items():
        for entry in found.select(group=group):
            folder = _folder(entry)
            wanted = f"conf/{kind}/{entry.name}.yaml"
            if folder is None or not (folder.parent / wanted).is_file():
                problems.append(
                    f"{_who(entry)} says it brings {kind}={entry.name}, but {entry.module} has no "
                    f"{wanted}"
                )
            elif (ours / kind / f"{entry.name}.yaml").is_file():
                problems.append(
                    f"{_who(entry)} brings {kind}={entry.name}, a name that optbench has: its own "
                    "is used"
                )
            else:
                folders[folder] = None
    return list(folders), problems


def _folder(entry: EntryPoint) -> Path | None:
    try:
        spec = find_spec(entry.module)
    except ImportError:
        return None
    places = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(places))) / "conf" if places else None


def _who(entry: EntryPoint) -> str:
    return f"plug-in {entry.dist.name if entry.dist is not None else entry.module}"
