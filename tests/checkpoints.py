"""Checkpoints as tests look at them."""

from pathlib import Path
from typing import Any

from optbench.run import checkpoint


def newest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest checkpoint that is whole, or None, and a line for each damaged one passed over."""
    passed_over: list[str] = []
    for name, found in checkpoint.candidates(folder):
        if not isinstance(found, str):
            return found, passed_over
        passed_over.append(f"{name} {found}")
    return None, passed_over
