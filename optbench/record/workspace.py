"""A saved W&B workspace of what optbench measures: `python -m optbench.record.workspace entity=ME`.

W&B draws each metric by itself; this puts those that are read together into one panel, and the
distance to the edge on a logarithmic axis, for every run of a project. It needs
optbench[workspace], W&B's own library for its pages, and a login.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any

import wandb

from optbench import metrics
from optbench.boundary.command_line import Command, Key
from optbench.errors import UserError, one_line


@dataclass(frozen=True)
class Panel:
    """Lines that are read together, over the step.

    Attributes:
        title: What they are.
        lines: Names of the metrics.
        log: Whether the vertical axis is logarithmic.
    """

    title: str
    lines: Sequence[str]
    log: bool = False


SECTIONS: Mapping[str, Sequence[Panel]] = {
    "Training and generalization": (
        Panel("loss", (metrics.TRAIN_LOSS, metrics.VAL_LOSS, metrics.TEST_LOSS), log=True),
        Panel("error", (metrics.TRAIN_ERROR, metrics.VAL_ERROR, metrics.TEST_ERROR)),
        Panel("generalization gap, loss", (metrics.GAP_LOSS,)),
        Panel("generalization gap, error", (metrics.GAP_ERROR,)),
    ),
    "Edge of stability": (
        Panel("distance to the edge (1 is at it)", (metrics.EDGE_DISTANCE,), log=True),
        Panel("sharpness λ₁", (metrics.SHARPNESS,), log=True),
        Panel(
            "measured, and its threshold",
            (
                metrics.EDGE_THRESHOLD,
                metrics.SHARPNESS,
                metrics.PRECONDITIONED_SHARPNESS,
                metrics.NORM_SHARPNESS,
            ),
            log=True,
        ),
        Panel("learning rate", (metrics.EDGE_LR,), log=True),
    ),
    "Cost": (
        Panel(
            "seconds of training and of measuring", (metrics.TRAIN_SECONDS, metrics.PROBE_SECONDS)
        ),
        Panel("gradients", (metrics.GRADIENTS,)),
    ),
}
"""Sections of the workspace; a panel whose metrics a project lacks stays empty."""


@dataclass(frozen=True)
class Settings:
    """Save a workspace in W&B that shows what optbench measures. Needs optbench[workspace]."""

    entity: Annotated[str, Key("W&B user or team that it is for", placeholder="NAME")]
    project: Annotated[str, Key("W&B project of the runs")] = "optbench"
    name: Annotated[str, Key("what it is called in W&B")] = "optbench"


def workspace(settings: Settings) -> Any:
    """The workspace, made but not saved.

    Raises:
        UserError: If W&B's library for it is not installed.
    """
    if find_spec("wandb_workspaces") is None:
        raise UserError("wandb-workspaces is not installed: pip install 'optbench[workspace]'")
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    sections = [
        workspaces.Section(
            name=title,
            panels=[
                reports.LinePlot(x="Step", y=list(p.lines), log_y=p.log, title=p.title)
                for p in panels
            ],
            is_open=True,
        )
        for title, panels in SECTIONS.items()
    ]
    return workspaces.Workspace(
        entity=settings.entity, project=settings.project, name=settings.name, sections=sections
    )


def save(settings: Settings) -> int:
    """Save it, and print its address.

    Raises:
        UserError: If W&B refuses, as it does without a login.
    """
    made = workspace(settings)
    try:
        made.save()
    except (wandb.Error, ValueError) as why:
        raise UserError(f"W&B did not save it: {' '.join(str(why).split())}") from why
    print(made.url)
    return 0


COMMAND = Command(
    "optbench.record.workspace", Settings, examples=("entity=ME", "entity=ME project=mine")
)


if __name__ == "__main__":
    COMMAND.run(save, one_line)
