"""What `--help` says of every key of the main job: the comments of conf/config.yaml."""

import re
import textwrap
from collections.abc import Iterator

from optbench.paths import conf_folder

WIDTH, COLUMN = 100, 30
_LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*?)\s*(?:#\s*(?P<about>.*))?$")


def described_keys() -> dict[str, tuple[str, str]]:
    """Default and meaning of every key that stands in conf/config.yaml, in its order."""
    text = (conf_folder() / "config.yaml").read_text(encoding="utf-8")
    return dict(_described(text[text.index("\nsteps:") : text.index("\nhydra:")]))


def _described(text: str) -> Iterator[tuple[str, tuple[str, str]]]:
    within = ""
    for line in text.splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        key, value = found["key"], found["value"].strip()
        if not found["indent"]:
            within = key
        elif within:
            key = f"{within}.{key}"
        yield key, (value, found["about"] or "")


def key_page() -> str:
    """The lines of `--help` on the keys, of the groups with where theirs are described."""
    lines = ["What the keys mean:", ""]
    for key, (value, about) in described_keys().items():
        word = f"{key}={value}" if value else key
        said = textwrap.wrap(about, WIDTH - COLUMN)
        if len(word) > COLUMN - 4:
            lines.append(f"  {word}")
            word = ""
        lines.append(f"  {word:{COLUMN - 2}}{said[0] if said else ''}".rstrip())
        lines += [f"{'':{COLUMN}}{more}" for more in said[1:]]
    return "\n".join(lines)
