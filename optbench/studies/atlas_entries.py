"""Entries of the edge atlas: an optimizer, its settings, and the threshold it is compared with.

They stand in conf/study/edge_atlas_entries.yaml and are part of the study's declaration. The
learning rates are those that the rule of `lr_choice` takes of the ones listed, on seed 0
(`choose=true`). It takes none for the control and for SGD in small batches, which come to no edge,
and for Shampoo, which starts at its own: these were chosen by hand.

The tolerances are those of small oscillations about a valley. An entry that is known not to keep
to its own has no claim on its formula, and says why, as far as that is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from optbench.boundary import STRICT, ShapeError, Text, read_yaml, shaped
from optbench.boundary.kinds import Count, Positive, Whole
from optbench.paths import conf_folder

Claim = Literal["formula", "multiplier", "obeyed", "flow", "flow_control", "amplitude", "balance"]
FILE = "edge_atlas_entries.yaml"


@dataclass(frozen=True)
class Entry:
    """One row of the atlas.

    Attributes:
        name: Name for a reader.
        overrides: Overrides of the main job, beside the atlas's common ones.
        lrs: Learning rates that `choose=true` tries, ascending.
        lr: Learning rate that is reported, one of `lrs`.
        tolerance: Largest |measured/threshold − 1| of an established edge; None where none is
            established.
        reason: Name of why there is no claim on the formula, or why the tolerance is not 5 %; one
            of the atlas's reasons.
        claims: Hypotheses of the study that it is one of the entries of.
        key: Override that the learning rate goes to.
        metric: Metric that is compared with `factor`/lr in place of what the edge probe compares.
        factor: Threshold · lr of `metric`.
        needs: Package that the optimizer is from, if not a dependency.
        full_batch: Whether every step takes all data, so that there is a training map.
        fixed_size: Whether its steps have a fixed size: their edge is an amplitude.
        flow: Whether it also goes on from half of its steps at a quarter of the learning rate.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Text
    overrides: tuple[Text, ...]
    lrs: tuple[Positive, ...]
    lr: Positive
    tolerance: Positive | None = 0.05
    reason: str = ""
    claims: tuple[Claim, ...] = ()
    key: str = "optimizer.lr"
    metric: str | None = None
    factor: Positive = 2.0
    needs: str | None = None
    full_batch: bool = True
    fixed_size: bool = False
    flow: bool = False

    @property
    def available(self) -> bool:
        """Whether the package that it needs is installed."""
        return self.needs is None or find_spec(self.needs) is not None


@dataclass(frozen=True)
class Atlas:
    """All entries, and what their runs have in common.

    Attributes:
        choice_seed: Seed on which learning rates are chosen.
        choice_steps: Updates of a run on which one is.
        common: Overrides of every run.
        multiplier: Overrides of every full-batch run that is measured, besides.
        reasons: Texts by the names that entries give.
        entries: Rows, in the order of the table.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    choice_seed: Whole
    choice_steps: Count
    common: tuple[Text, ...]
    multiplier: tuple[Text, ...]
    reasons: Mapping[str, str]
    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Atlas":
        """Return the atlas of the settings in the file.

        Raises:
            ShapeError: If they are not of this shape, or an entry gives a reason that is not
                there, or a learning rate that is not among those tried.
        """
        atlas = shaped(cls, settings, FILE)
        for entry in atlas.entries:
            if entry.reason and entry.reason not in atlas.reasons:
                raise ShapeError(f"{FILE}: {entry.name} has no known reason, got {entry.reason}")
            if entry.lr not in entry.lrs:
                raise ShapeError(f"{FILE}: {entry.name} has lr {entry.lr:g}, not one of its lrs")
        return atlas

    def named(self, name: str) -> Entry:
        """The entry of a name."""
        return next(entry for entry in self.entries if entry.name == name)

    def why(self, entry: Entry) -> str:
        """Why an entry has no claim on its formula, or a tolerance other than 5 %."""
        return self.reasons[entry.reason] if entry.reason else ""

    def command(
        self, entry: Entry, lr: float, seed: int, steps: int, more: Sequence[str] = ()
    ) -> list[str]:
        """Overrides of one run; `more` come after the common ones and before the entry's own."""
        own = {o.split("=")[0] for o in entry.overrides}
        given = [o for o in (*self.common, *more) if o.split("=")[0] not in own]
        return [
            *entry.overrides[:1],
            *given,
            f"{entry.key}={lr:g}",
            f"steps={steps}",
            *entry.overrides[1:],
            f"seed={seed}",
        ]


def read_atlas() -> Atlas:
    """Read conf/study/edge_atlas_entries.yaml; see `Atlas.of`."""
    return Atlas.of(read_yaml(conf_folder() / "study" / FILE)["settings"])
