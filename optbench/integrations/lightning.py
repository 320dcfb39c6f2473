"""`WatchCallback` for Lightning: `Trainer(callbacks=[WatchCallback(loss)])`."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from optbench.errors import UserError
from optbench.task import Loss
from optbench.watching import Data, Watch, watch


class WatchCallback(Callback):
    """Send sharpness, distance to the edge and generalization gap to the trainer's own loggers.

    Args:
        loss: (outputs of the module's forward, targets) → the mean over the batch's examples.
        batches: What to measure on; None for the trainer's training data.
        every: Optimizer updates between measurements.
        options: The rest of `optbench.watch`, such as `test` and `examples`.
    """

    def __init__(self, loss: Loss, batches: Data | None = None, every: int = 100, **options: Any) -> None:
        self.loss, self.batches, self.every, self.options = loss, batches, every, options
        self._watch: Watch | None = None
        self._updates = 0
        self._restored: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the data to measure on."""
        if not trainer.is_global_zero:
            return
        if len(trainer.optimizers) != 1:
            raise UserError(f"WatchCallback needs one optimizer, and this module has {len(trainer.optimizers)}")
        batches = trainer.train_dataloader if self.batches is None else self.batches
        self._watch = watch(pl_module, trainer.optimizers[0], self.loss, batches, self.every, **self.options)
        self._updates = trainer.global_step
        if self._restored is not None:
            self._watch.load_state_dict(self._restored)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Measure where it is due, after an update."""
        if self._watch is None or trainer.global_step == self._updates:
            return
        self._updates = trainer.global_step
        found = {key: value for key, value in self._watch().items() if not isinstance(value, list)}
        for logger in trainer.loggers if found else []:
            logger.log_metrics(found, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Go into the trainer's checkpoints."""
        return {} if self._watch is None else self._watch.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Come back from them."""
        self._restored = state_dict or None
