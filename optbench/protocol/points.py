"""The points at which an optimizer is tried: spread evenly over its search space."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import qmc

from optbench import search
from optbench.boundary import UnreadableError, read_yaml
from optbench.errors import UserError, nearest
from optbench.paths import conf_folder


def sobol_points(space: Mapping[str, search.Dimension], count: int, seed: int) -> list[list[str]]:
    """Return overrides for the first `count` points of a scrambled Sobol sequence.

    Owen-scrambled: each point is uniform on the space, and together they fill it evenly.

    References:
        Owen (1998), doi:10.1006/jcom.1998.0487; scipy.stats.qmc.Sobol.
    """
    # its balance is that of powers of 2: draw so many, take the first
    whole = 1 << max(0, count - 1).bit_length()
    shares = qmc.Sobol(len(space), scramble=True, seed=seed).random(whole)[:count]
    return [
        [
            f"optimizer.{key}={_spelled(axis.at(float(u)))}"
            for (key, axis), u in zip(space.items(), row, strict=True)
        ]
        for row in shares
    ]


def _spelled(value: Any) -> str:
    """Spell a value for Hydra; six digits say all that a random point has to say."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def search_spaces(
    names: Sequence[str], config_dir: Path | None = None
) -> dict[str, dict[str, search.Dimension]]:
    """Return the search space of each optimizer named (`all`: of all that have one), from its YAML.

    Raises:
        UserError: If there is no such optimizer, or it declares no search space.
    """
    folders = [folder / "optimizer" for folder in (config_dir, conf_folder()) if folder is not None]
    files = {
        file.stem: file for folder in reversed(folders) for file in sorted(folder.glob("*.yaml"))
    }
    everyone = tuple(names) == ("all",)
    wanted = sorted(files) if everyone else names
    spaces = {}
    for name in wanted:
        if name not in files:
            raise UserError(
                f"there is no optimizer called {name}.{nearest(name, files)} Known: "
                f"{', '.join(files)}"
            )
        space = search.read(_node(files[name]).get("search"))
        if space:
            spaces[name] = space
        elif not everyone:
            raise UserError(
                f"optimizer {name} declares no search space: add `search:` to {files[name].name}"
            )
    return spaces


def _node(file: Path) -> Mapping[str, Any]:
    try:
        content = read_yaml(file, aliases=True)
    except UnreadableError as why:
        raise UserError(f"cannot read {file}: {why}") from why
    if not isinstance(content, dict):
        raise UserError(f"{file} must be a mapping, with _target_ and the optimizer's settings")
    return content
