"""What the docs site shows of `results/`: added to its pages by mkdocs, nothing is copied."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("results/studies/README.md", "results/studies/*/*.png", "results/studies/*/verdict.md")
OUTSIDE = re.compile(r"\]\((?:\.\./)+(results/[^)#\s]+)")


def on_files(files: Any, config: Any) -> Any:
    """Add verdicts and figures of the studies under their own paths."""
    from mkdocs.structure.files import File

    for pattern in SHOWN:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links out of `docs/` to where the site has them."""
    depth = page.file.src_uri.count("/")
    return OUTSIDE.sub(lambda m: "](" + "../" * depth + m.group(1), markdown)
