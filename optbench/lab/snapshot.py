"""A run at one of the steps that it kept: everything built and loaded, to look at and to fork."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer

from optbench.configuration.construct import construct
from optbench.configuration.keys import check
from optbench.lab.point import Point
from optbench.run.batches import Batches
from optbench.run.fork import saved_state
from optbench.run.loop import Parts
from optbench.run.optimizer_state import load_optimizer
from optbench.seeds import global_state, set_global_state
from optbench.task import Task

if TYPE_CHECKING:
    from optbench.lab.experiment import Run


class Snapshot:
    """A run at a step: task, model with its weights, optimizer with its state, batches.

    They are built when one of them is first asked for, and are this snapshot's own.

    Attributes:
        folder: Folder of the run.
        step: Number of updates.
        config: Configuration of the run.
        choices: The entry chosen of each group.
    """

    def __init__(
        self, folder: Path, step: int | None, config: DictConfig, choices: dict[str, str]
    ) -> None:
        self.folder, self.config, self.choices = folder, config, choices
        self._state = saved_state(folder, step)
        self.step = int(self._state["step"])

    def __repr__(self) -> str:
        return f"<Snapshot of {self.folder.name} at step {self.step}>"

    @cached_property
    def parts(self) -> Parts:
        """All of them, as the training loop has them."""
        before = global_state()
        try:
            config = self.config.copy()
            check(config)
            parts = construct(config)
        finally:
            set_global_state(before)
        parts.update.model.load_state_dict(self._state["model"])
        load_optimizer(parts.update.optimizer, self._state["optimizer"])
        if parts.update.schedule:
            parts.update.schedule.load_state_dict(self._state["schedule"])
        parts.batches.load_state_dict(self._state["batches"])
        return parts

    @property
    def task(self) -> Task:
        """Task, on the device of the run."""
        return self.parts.task

    @property
    def model(self) -> nn.Module:
        """Model with the weights of this step, in train mode."""
        return self.parts.update.model

    @property
    def optimizer(self) -> Optimizer:
        """Optimizer with its state and the settings of the coming update."""
        return self.parts.update.optimizer

    @property
    def batches(self) -> Batches:
        """Mini-batches, the next one being that of the coming update."""
        return self.parts.batches

    def point(self) -> Point:
        """The model at these weights with the task, for `lab.measure`."""
        return Point(self.model, self.task, self.optimizer, seed=int(self.config.seed))

    def fork(self, *overrides: str, **settings: Any) -> "Run":
        """Return a new run that begins here: the state is taken, the settings are as they are said.

        What is not said is as in this run, but for `stop`, `keep` and `keep_steps`, which begin
        empty. `run.summary["start_from"]` says what was taken and what was left.

        Args:
            overrides: Words of the command line, such as `"optimizer=sgd"`.
            settings: More of them, for keys without a dot; `lr` is `optimizer.lr`.

        Raises:
            UserError: If the command line would not take them.
        """
        from optbench.lab.experiment import fork

        return fork(self, *overrides, **settings)
