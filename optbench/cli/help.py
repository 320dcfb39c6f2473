"""`--help` of the main job: every key, its default and what it does, and the entries of a group.

Nothing is written twice: the keys of the core are described by the comments of conf/config.yaml,
those of a group by the docstring of the `_target_` that they are given to.
"""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from optbench.boundary.command_line import described, sentence, wrapped
from optbench.boundary.docstring import about, arguments, first_sentence
from optbench.boundary.files import read_text, read_yaml
from optbench.boundary.shape import ShapeError
from optbench.boundary.signature import shown, unknown
from optbench.configuration.compose import compose_with_choices, config_folders
from optbench.configuration.keys import ABOUT_IT, HYDRAS, imported
from optbench.errors import UserError
from optbench.paths import conf_folder

GROUPS = ("task", "model", "optimizer", "schedule", "probes")
LAUNCHER = "launcher"
COLUMN = 28
_LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*?)\s*(?:#\s*(?P<about>.*))?$")

INTRODUCTION = """\
usage: python -m optbench [GROUP=ENTRY ...] [KEY=VALUE ...]

optbench trains a network with an optimizer and measures, while it trains,
sharpness, distance to the edge of stability and the generalization gap. Each
run leaves a folder under results/runs and a W&B run.
"""
EXAMPLES = """\
examples:
  python -m optbench
      full-batch gradient descent on digits, up to the edge of stability;
      about half a minute
  python -m optbench optimizer=adam task=cifar
      Adam on CIFAR-10 (170 MB, downloaded at first use; task.root=DIR if you
      have it)
  python -m optbench optimizer.lr=0.05 steps=6000 probes.sharpness.every=5
      half the learning rate, twice the threshold, measured more often
  python -m optbench --multirun optimizer=sgd,momentum,adam seed=0,1,2
      nine runs and their report; issued again, only what is missing
  python -m optbench --multirun seed=0,1,2,3 jobs=4
      four at a time; launcher=ray or launcher=slurm makes them on a cluster
      (docs/scale.md)
  python -m optbench optimizer=custom optimizer._target_=my_file.MyOptimizer
      your own torch.optim.Optimizer, from my_file.py in this folder
"""
FLAGS = """\
flags:
  --help               this page, for the entries that are chosen beside it
  --help NAME ...      only that group or key, with all that is known of it:
                       --help optimizer, --help probes.sharpness, --help seed
  --multirun           all combinations of values that commas separate
  --config-dir DIR     your own YAMLs
  --cfg job            the configuration alone
  --hydra-help         everything that Hydra can do
  --version            the version
What is recorded: python -m optbench.metrics
exit code: 0 done; 1 something failed; 2 the command must be mended; 130 Ctrl-C.
"""


@dataclass(frozen=True)
class Described:
    """A key, its value as the command line has it, and what it does; empty where nobody says."""

    key: str
    value: str
    about: str

    @property
    def word(self) -> str:
        """The key as it is given."""
        return f"{self.key}={self.value}" if self.value else self.key


def help_page(words: Sequence[str], folders: Sequence[Path], sweep_keys: Sequence[str]) -> str:
    """The page of `--help`.

    Args:
        words: Overrides, whose choices are described, and names of groups or keys, if only those
            are asked for.
        folders: What `--config-dir` names.
        sweep_keys: Lines on the keys of `--multirun`.

    Raises:
        UserError: If there is no group or key of such a name.
    """
    names = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    own = folders[-1] if folders else None
    config, choices = compose_with_choices(overrides, own)
    container = OmegaConf.to_container(config, resolve=False)
    assert isinstance(container, dict)
    content = {str(key): value for key, value in container.items()}
    places = config_folders(own)
    groups = {group: group_keys(group, content[group], places, choices[group]) for group in GROUPS}
    if names:
        core = core_keys(content)
        return "\n\n".join(_of_name(name, core, groups, choices, places) for name in names)
    lines = [INTRODUCTION, "groups and their entries (--help GROUP describes them):"]
    for group in (*GROUPS, LAUNCHER):
        lines += described(group, ", ".join(_entries(group, places)), 12)
    lines += ["", EXAMPLES, "keys (KEY=VALUE; +KEY=VALUE for one that is not listed):"]
    lines += _lines(core_keys(content))
    for group, keys in groups.items():
        title = f"keys of {group}={choices[group]}: {_about_entry(group, choices[group], places)}"
        lines += ["", *wrapped(title)]
        lines += _lines(Described(k.key, k.value, first_sentence(k.about)) for k in keys)
    lines += ["", "keys of --multirun:", *sweep_keys, "", FLAGS]
    return "\n".join(lines).rstrip()


def core_keys(content: Mapping[str, Any]) -> list[Described]:
    """Every key that stands in conf/config.yaml, in its order, with a configuration's values."""
    text = (conf_folder() / "config.yaml").read_text(encoding="utf-8")
    found = []
    for line in _commented(text[text.index("\nsteps:") : text.index("\nhydra:")]):
        group, _, name = line.key.partition(".")
        value = content[group][name] if name else content[group]
        word = "" if isinstance(value, dict) else _as_word(value)
        found.append(Described(line.key, word, line.about))
    return found


def _commented(text: str) -> Iterator[Described]:
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
        yield Described(key, value, found["about"] or "")


def group_keys(
    group: str, content: Any, places: Sequence[Path], entry: str = ""
) -> list[Described]:
    """The keys of a group's content, those of nodes within included.

    Args:
        group: Name of the group.
        content: What its entry came to: a node, or for `probes` nodes by name.
        places: Folders of YAMLs.
        entry: Name of the entry, whose comments say what no docstring does.
    """
    comments: dict[str, str] = {}
    if (file := _file(group, entry, places)) is not None:
        comments = {line.key: line.about for line in _commented(_own_text(file, group))}
    if group != "probes":
        return list(_node_keys(content or {}, f"{group}.", comments))
    found = []
    for name, node in (content or {}).items():
        if isinstance(node, dict) and "_target_" in node:
            found.append(Described(f"probes.{name}", "", about(_target(node) or dict)))
            found += _node_keys(node, f"probes.{name}.", comments)
    return found


def _own_text(file: Path, group: str) -> str:
    """The text on the group itself: a task's YAML has it below `task:`, others' keys beside."""
    text = read_text(file, 2**20)
    if f"\n{group}:\n" not in text:
        return text
    return textwrap.dedent(re.split(r"\n(?=\S)", text.partition(f"\n{group}:\n")[2])[0])


def _node_keys(
    node: Mapping[str, Any], prefix: str, comments: Mapping[str, str]
) -> Iterator[Described]:
    target = _target(node)
    texts = arguments(target) if target is not None else {}
    for name, value in node.items():
        if name in HYDRAS or (name in ABOUT_IT and prefix == "optimizer."):
            continue
        text = _in_yaml(texts.get(name) or comments.get(name, ""))
        if isinstance(value, dict) and "_target_" in value:
            yield Described(f"{prefix}{name}", "", f"{text.rstrip('.')}: {value['_target_']}")
            yield from _node_keys(value, f"{prefix}{name}.", comments)
        else:
            yield Described(f"{prefix}{name}", _as_word(value), text)


def _target(node: Mapping[str, Any]) -> Any:
    """What a node is given to; None where it names nothing that can be imported here."""
    path = node.get("_target_")
    if not isinstance(path, str) or path == "???":
        return None
    try:
        return imported(path)
    except ShapeError:  # an extra that is not installed: the help is of use all the same
        return None


def _as_word(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_as_word, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{k}:{_as_word(v)}' for k, v in value.items())}}}"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else shown(value)


_YAML_WORDS = {"None": "null", "True": "true", "False": "false"}


def _in_yaml(text: str) -> str:
    """A docstring's text, with the words that a configuration has in place of Python's."""
    return re.sub(r"\b(None|True|False)\b", lambda word: _YAML_WORDS[word[0]], text)


def _entries(group: str, places: Sequence[Path]) -> list[str]:
    return sorted({file.stem for place in places for file in (place / group).glob("*.yaml")})


def _file(group: str, entry: str, places: Sequence[Path]) -> Path | None:
    files = [place / group / f"{entry}.yaml" for place in places]
    return next((file for file in files if file.is_file()), None)


def _about_entry(group: str, entry: str, places: Sequence[Path]) -> str:
    """What an entry's YAML says of it: `about.does`, or its first comment."""
    file = _file(group, entry, places)
    if file is None:
        return ""
    said = dict(read_yaml(file) or {}).get("about")
    if isinstance(said, dict):
        return " ".join(str(said[key]) for key in ("does", "paper") if key in said)
    comments = (line.removeprefix("#").strip() for line in read_text(file, 2**20).splitlines())
    first = next(comments, "")
    return next(comments, "") if first.startswith("@package") else first


def _lines(keys: Iterator[Described] | Sequence[Described]) -> list[str]:
    return [line for key in keys for line in described(key.word, sentence(key.about), COLUMN)]


def _of_name(
    name: str,
    core: Sequence[Described],
    groups: Mapping[str, Sequence[Described]],
    choices: Mapping[str, str],
    places: Sequence[Path],
) -> str:
    if name == LAUNCHER:
        return "\n".join(_launchers(places))
    if name in groups:
        lines = [f"entries of {name}:"]
        for entry in _entries(name, places):
            lines += described(
                f"{name}={entry}", sentence(_about_entry(name, entry, places)), COLUMN
            )
        chosen = f"{name}={choices[name]}"
        lines += ["", f"keys of {chosen} (another: {name}=ENTRY --help {name}):"]
        return "\n".join([*lines, *_lines(groups[name])])
    every = [*core, *(key for keys in groups.values() for key in keys)]
    found = [key for key in every if key.key == name or key.key.startswith(f"{name}.")]
    if not found:
        known = [*groups, LAUNCHER, *(key.key for key in every)]
        raise UserError(f"{unknown(name, known)} python -m optbench --help lists all keys")
    return "\n".join(_lines(found))


def _launchers(places: Sequence[Path]) -> Iterator[str]:
    for entry in _entries(LAUNCHER, places):
        file = _file(LAUNCHER, entry, places)
        assert file is not None
        yield from wrapped(f"{LAUNCHER}={entry}: {_about_entry(LAUNCHER, entry, places)}")
        yield from _lines(group_keys(LAUNCHER, read_yaml(file), places, entry))
        yield ""
