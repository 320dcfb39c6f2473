"""Keys of the configuration that earlier versions did not have, with what they mean there.

A run whose later keys are as here is called, compared and opened as it was before there were any.
"""

from collections.abc import Mapping
from typing import Any

LATER: Mapping[str, Any] = {
    "stop": {"metric": None, "below": None},
    "keep": [],
    "keep_steps": [],
    "start_from": {"run": None, "step": None},
    "batched": False,
    "mirrors": [],
}


def without_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without the later keys that are as if they were not there."""
    return {k: v for k, v in config.items() if k not in LATER or v != LATER[k]}
