"""What a study has measured of a run is kept in the run's folder, and not measured again."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optbench.record.durable import write_whole
from optbench.record.folder import read_json


def measured_once(
    folder: Path, name: str, settings: Any, make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return what `make` returned for these settings before, or call it and keep the result.

    Args:
        folder: Folder of the run.
        name: What it is, the first part of the file's name.
        settings: Everything that the result depends on beside the run; plain data. What has no
            JSON is taken by its text.
        make: Measures; its result is a JSON object.
    """
    digest = hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()[:8]
    place = folder / f"{name}-{digest}.json"
    found = read_json(place)
    if found is None:
        found = make()
        write_whole(place, json.dumps(found) + "\n")
    return found
