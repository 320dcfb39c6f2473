"""Entries of the edge atlas: an optimizer, its settings, and the threshold it is compared with.

They stand in conf/study/edge_atlas.yaml. The learning rates are those that the rule of `lr_choice`
takes of the ones listed, on seed 0 (`choose=true`). It takes none for the control and for SGD in
small batches, which come to no edge, and for Shampoo, which starts at its own: these were chosen by
hand.

The tolerances are those of small oscillations about a valley. Where runs are known not to keep to
theirs, the entry says so in `expected`, and why, as far as that is known; the `-m slow` test fails
when one changes sides.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar, Literal

from pydantic import ConfigDict

from optbench.boundary import STRICT, ShapeError, Text, read_yaml, shaped
from optbench.boundary.kinds import Count, Positive, Whole
from optbench.paths import conf_folder

Verdict = Literal["within", "outside", "edge not reached", "open"]
WITHIN: Verdict = "within"
OUTSIDE: Verdict = "outside"
NOT_REACHED: Verdict = "edge not reached"
OPEN: Verdict = "open"


@dataclass(frozen=True)
class Entry:
    """One row of the atlas.

    Attributes:
        name: Name for a reader.
        overrides: Overrides of the main job, beside the atlas's common ones.
        lrs: Learning rates that `choose=true` tries on `CHOICE_SEED`, ascending.
        lr: Learning rate that is reported, one of `lrs`.
        tolerance: Largest |measured/threshold − 1| of an established edge; None where none is
            established.
        expected: Verdict that is known.
        reason: Name of why that is not "within", or why the tolerance is not 5 %; one of the
            atlas's reasons.
        key: Override that the learning rate goes to.
        mean: Whether the threshold holds on time average only: compare means, not the median of
            ratios.
        metric: Metric that is compared with `factor`/lr in place of what the edge probe compares.
        factor: Threshold · lr of `metric`.
        needs: Package that the optimizer is from, if not a dependency.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Text
    overrides: tuple[Text, ...]
    lrs: tuple[Positive, ...]
    lr: Positive
    tolerance: Positive | None = 0.05
    expected: Verdict = WITHIN
    reason: str = ""
    key: str = "optimizer.lr"
    mean: bool = False
    metric: str | None = None
    factor: Positive = 2.0
    needs: str | None = None

    @property
    def why(self) -> str:
        """Why the verdict is not "within", or why the tolerance is not 5 %."""
        return REASONS[self.reason] if self.reason else ""

    def command(self, lr: float, seed: int, short: bool = False) -> list[str]:
        """Overrides of one run."""
        steps = SHORT_STEPS if short else STEPS
        own = {o.split("=")[0] for o in self.overrides}
        given = [o for o in COMMON if o.split("=")[0] not in own]
        return [
            *self.overrides[:1],
            *given,
            f"{self.key}={lr:g}",
            f"steps={steps}",
            *self.overrides[1:],
            f"seed={seed}",
        ]

    @property
    def available(self) -> bool:
        """Whether the package that it needs is installed."""
        return self.needs is None or find_spec(self.needs) is not None


@dataclass(frozen=True)
class Atlas:
    """The whole file.

    Attributes:
        steps: Updates of a run.
        short_steps: Updates of a run in the short form.
        choice_seed: Seed on which learning rates are chosen.
        seeds: Seeds that are reported.
        common: Overrides of every run.
        reasons: Texts by the names that entries give.
        entries: Rows, in the order of the table.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    steps: Count
    short_steps: Count
    choice_seed: Whole
    seeds: tuple[Whole, ...]
    common: tuple[Text, ...]
    reasons: dict[str, str]
    entries: tuple[Entry, ...]


def read_atlas() -> Atlas:
    """Read the file.

    Raises:
        ShapeError: If it is not of this shape, or an entry gives a reason that is not there, or a
            learning rate that is not among those tried.
    """
    path = conf_folder() / "study" / "edge_atlas.yaml"
    atlas = shaped(Atlas, read_yaml(path), path.name)
    for entry in atlas.entries:
        if entry.reason and entry.reason not in atlas.reasons:
            raise ShapeError(f"{path.name}: {entry.name} has no known reason, got {entry.reason}")
        if entry.lr not in entry.lrs:
            raise ShapeError(f"{path.name}: {entry.name} has lr {entry.lr:g}, not one of its lrs")
    return atlas


_ATLAS = read_atlas()
STEPS, SHORT_STEPS = _ATLAS.steps, _ATLAS.short_steps
CHOICE_SEED, SEEDS = _ATLAS.choice_seed, _ATLAS.seeds
COMMON, REASONS, ATLAS = _ATLAS.common, _ATLAS.reasons, _ATLAS.entries
