"""The gallery: what the commands draw, and every committed picture of a study, with its command."""

import json
from pathlib import Path
from typing import Any

from docs.tool_pictures import DRAWINGS, Drawing

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ROOT / "results" / "studies"
HEAD = """# Gallery

Made by `python -m docs.build` from `docs/tool_pictures.py` and the verdict of each study; do not edit by hand. Below each
picture is the command that makes it again, from runs that it makes where they are missing.

## The edge of stability

![λ₁ and 2/η at three learning rates](images/edge.png)

    python -m docs.edge_picture renew=true

## What the commands draw

`python -m docs.tool_pictures renew=true` runs these commands, in this order in one folder. What each picture shows is
beside it as CSV in `docs/images/`, without the loss of every batch; [See what happened](pictures.md) says more of each.

"""


def render() -> str:
    """Return the page."""
    sections = [_drawing(drawing) for drawing in DRAWINGS]
    sections += [_section(path) for path in sorted(STUDIES.glob("*/verdict.json"))]
    return HEAD + "\n".join(sections)


def _drawing(drawing: Drawing) -> str:
    commands = "\n".join(f"    {command}" for command in drawing.commands)
    picture = f"![{drawing.title}](images/{drawing.name}.png)"
    return f"### {drawing.title}\n\n{drawing.about}\n\n{picture}\n\n{commands}\n"


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
