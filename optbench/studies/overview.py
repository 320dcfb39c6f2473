"""All verdicts on one page, from question to picture to number, as Markdown and as HTML.

Nothing on it is written by hand after a run: it is made from each study's `verdict.json`, and from
`conf/study/overview.yaml`, which declares a sentence for each verdict that a rule can give.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from optbench.boundary import STRICT, read_yaml, shaped
from optbench.boundary.counting import counted
from optbench.paths import conf_folder
from optbench.record.durable import write_whole
from optbench.record.folder import read_json
from optbench.studies.conduct import VERDICT, take_errata
from optbench.studies.declaration import known_studies, read_study
from optbench.studies.frame import REFUTED, SUPPORTED, UNDECIDED
from optbench.studies.verdict_page import number

README, HTML = "README.md", "index.html"
SIGNS = {SUPPORTED: "●", REFUTED: "✕", UNDECIDED: "○"}
"""A sign beside the word of each verdict: colour is not needed to tell them apart."""


@dataclass(frozen=True)
class Answer:
    """What a hypothesis adds to the first paragraph, a sentence for each verdict."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    study: str
    hypothesis: str
    supported: str
    refuted: str
    undecided: str


@dataclass(frozen=True)
class Outline:
    """What is declared of the page; see `conf/study/overview.yaml`."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    title: str
    opening: str
    scope: str
    questions: Mapping[str, str]
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Claim:
    """A hypothesis with its verdict, as the page shows it.

    Attributes:
        facts: Its entry in `verdict.json`.
        right: Planted draws in which the rule gave the right verdict.
        wrong: Planted draws in which it gave the opposite one.
        draws: Planted draws whose right verdict is declared.
    """

    facts: Mapping[str, Any]
    right: int
    wrong: int
    draws: int

    @property
    def sign(self) -> str:
        """Sign of the verdict."""
        return SIGNS[self.facts["verdict"]]

    @property
    def seen(self) -> str:
        """Estimate with its interval."""
        value, low, high = (number(self.facts[key]) for key in ("value", "low", "high"))
        return f"{value} [{low}, {high}]"

    @property
    def sure(self) -> str:
        """How often the rule is right where the truth is known."""
        if not self.draws:
            return "no planted world has a right verdict for it"
        undecided = self.draws - self.right - self.wrong
        counts = f"right {self.right}, wrong {self.wrong}, undecided {undecided}"
        return f"{counts} of {counted(self.draws, 'planted draw')}"

    @property
    def bar(self) -> "Bar | None":
        """Its interval as a drawing; None where it has no finite one."""
        known = [self.facts[key] for key in ("value", "low", "high")]
        if any(x is None for x in known):
            return None
        value, low, high = map(float, known)
        return Bar.of(value, low, high, float(self.facts["sesoi"]))


@dataclass(frozen=True)
class Bar:
    """An interval beside ±sesoi, in hundredths of the drawing's width."""

    value: float
    low: float
    high: float
    zero: float
    inner: tuple[float, float]

    @classmethod
    def of(cls, value: float, low: float, high: float, sesoi: float) -> "Bar":
        """Scale the interval so that it, 0 and ±sesoi fit."""
        first, last = min(low, -sesoi), max(high, sesoi)
        width = (last - first) or 1.0

        def place(x: float) -> float:
            return round(3 + 94 * (x - first) / width, 2)

        inner = (place(-sesoi), place(sesoi))
        return cls(place(value), place(low), place(high), place(0.0), inner)


@dataclass(frozen=True)
class Chapter:
    """A study on the page.

    Attributes:
        sizes: Width and height of each figure in pixels, by which a browser leaves room for it
            before it has come, so that a link to what is below leads there.
    """

    name: str
    verdict: Mapping[str, Any]
    claims: Sequence[Claim]
    sizes: Mapping[str, tuple[int, int]]

    @property
    def directions(self) -> list[str]:
        """Sub-questions that it is about."""
        return [part.strip() for part in str(self.verdict["direction"]).split(",")]


@dataclass(frozen=True)
class Overview:
    """The page's content.

    Attributes:
        outline: What is declared.
        sections: Studies by sub-question; one of several stands at its first.
        elsewhere: Names of the studies that are about a sub-question and stand at another.
        answers: Sentences of the first paragraph, of the studies that were run here.
        missing: Studies that are declared and have no verdict here.
        counts: Number of claims by verdict.
    """

    outline: Outline
    sections: Mapping[str, Sequence[Chapter]]
    elsewhere: Mapping[str, Sequence[str]]
    answers: Sequence[str]
    missing: Sequence[str]
    counts: Mapping[str, int]

    @property
    def chapters(self) -> list[Chapter]:
        """All studies, in the order of the page."""
        return [chapter for section in self.sections.values() for chapter in section]


@cache
def read_outline() -> Outline:
    """Read `conf/study/overview.yaml`."""
    path = conf_folder() / "study" / "overview.yaml"
    return shaped(Outline, read_yaml(path), path.name)


def collect(folder: Path, config_dir: Path | None = None) -> Overview:
    """Collect every verdict of the size small under a folder of studies.

    Args:
        folder: Folder with a folder for each study.
        config_dir: The user's YAMLs.
    """
    outline, names = read_outline(), known_studies(config_dir)
    chapters = {
        name: _chapter(folder / name, verdict, config_dir)
        for name in names
        if (verdict := read_json(folder / name / VERDICT)) is not None
    }
    keys = list(outline.questions)
    keys += [d for c in chapters.values() for d in c.directions if d not in keys]
    sections = {k: [c for c in chapters.values() if c.directions[0] == k] for k in keys}
    elsewhere = {k: [c.name for c in chapters.values() if k in c.directions[1:]] for k in keys}
    claims = [claim for chapter in chapters.values() for claim in chapter.claims]
    said = [claim.facts["verdict"] for claim in claims]
    return Overview(
        outline,
        sections,
        elsewhere,
        [_answer(a, chapters[a.study]) for a in outline.answers if a.study in chapters],
        [name for name in names if name not in chapters],
        {verdict: said.count(verdict) for verdict in SIGNS},
    )


def _chapter(folder: Path, verdict: Mapping[str, Any], config_dir: Path | None) -> Chapter:
    worlds = read_study(folder.name, config_dir).study.worlds
    figures = {name: folder / f"{name}.png" for name in verdict["figures"]}
    return Chapter(
        folder.name,
        verdict,
        [_claim(facts, worlds) for facts in verdict["hypotheses"]],
        {name: _size(file) for name, file in figures.items() if file.is_file()},
    )


def _size(picture: Path) -> tuple[int, int]:
    """Width and height of a PNG, which it begins with: https://www.w3.org/TR/png-3/#11IHDR."""
    with picture.open("rb") as stream:
        head = stream.read(24)
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def _claim(facts: Mapping[str, Any], worlds: Mapping[str, Mapping[str, str]]) -> Claim:
    right = wrong = draws = 0
    opposite = {SUPPORTED: REFUTED, REFUTED: SUPPORTED}
    for world, counts in facts["planted"].items():
        truth = worlds.get(world, {}).get(facts["name"])
        if truth is not None:
            draws += sum(counts.values())
            right += counts.get(truth, 0)
            wrong += counts.get(opposite.get(truth, ""), 0)
    return Claim(facts, right, wrong, draws)


def _answer(answer: Answer, chapter: Chapter) -> str:
    found = [c.facts["verdict"] for c in chapter.claims if c.facts["name"] == answer.hypothesis]
    if not found:
        return f"{answer.study} has judged nothing called {answer.hypothesis}."
    return str(getattr(answer, found[0]))


def write(folder: Path, config_dir: Path | None = None) -> list[Path]:
    """Write the page as Markdown and as HTML into a folder of studies; return both paths.

    The errata of each declaration are said on its verdict first.
    """
    judged = [name for name in known_studies(config_dir) if (folder / name / VERDICT).is_file()]
    for name in judged:
        take_errata(folder / name, read_study(name, config_dir))
    overview = collect(folder, config_dir)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in (README, HTML):
        write_whole(folder / name, render(overview, name))
        written.append(folder / name)
    return written


def render(overview: Overview, name: str) -> str:
    """Return the page, `README.md` or `index.html`; all text is escaped in HTML."""
    import jinja2

    template = files("optbench.studies").joinpath("templates", name).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.from_string(template).render(page=overview, signs=SIGNS)
