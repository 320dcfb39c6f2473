"""The gallery: every committed picture of a study, with the command that makes it."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ROOT / "results" / "studies"
HEAD = """# Gallery

Made by `python -m docs.build` from the verdict of each study; do not edit by hand. Below each picture is the command that
makes it again, from runs that it makes where they are missing.

## The edge of stability

![λ₁ and 2/η at three learning rates](images/edge.png)

    python -m docs.edge_picture renew=true

"""


def render() -> str:
    """Return the page."""
    return HEAD + "\n".join(_section(path) for path in sorted(STUDIES.glob("*/verdict.json")))


def _section(path: Path) -> str:
    verdict: dict[str, Any] = json.loads(path.read_text())
    name = verdict["study"]
    figures = sorted(file.name for file in path.parent.glob("*.png"))
    pictures = "\n\n".join(
        f"![{name}: {Path(figure).stem.replace('_', ' ')}](../results/studies/{name}/{figure})"
        for figure in figures
    )
    counts = ", ".join(
        f"{count} {word}"
        for word in ("supported", "refuted", "undecided")
        if (count := sum(h.get("verdict") == word for h in verdict["hypotheses"]))
    )
    return (
        f"## {verdict['title']}\n\n[`{name}`](../results/studies/{name}/verdict.md): {counts}.\n\n"
        f"{pictures}\n\n    {verdict['command']}\n"
    )
