"""`WatchCallback` for Lightning: `Trainer(callbacks=[WatchCallback(loss)])`."""

from collections.abc import Iterable, Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from optbench.curvature.chunks import with_own_workers
from optbench.curvature.isolation import in_mode, untouched
from optbench.errors import UserError
from optbench.task import Loss
from optbench.watching import Data, Watch, watch


class WatchCallback(Callback):
    """Send sharpness, distance to the edge and generalization gap to the trainer's own loggers.

    The last values are in `trainer.callback_metrics` too, for callbacks that watch a metric, such
    as `EarlyStopping("sharpness/lambda_max")`; with several processes, in the first one's alone.

    All data go through the transfer hooks of the module or data module, such as
    `on_after_batch_transfer`: `test` as in validation, the rest as in training. What the hooks draw
    at random is drawn once.

    Args:
        loss: (outputs of the module's forward, targets) → the mean over the batch's examples.
        batches: What to measure on; None for the trainer's training data.
        every: Optimizer updates between measurements.
        options: The rest of `optbench.watch`, such as `test` and `examples`.
    """

    def __init__(
        self, loss: Loss, batches: Data | None = None, every: int = 100, **options: Any
    ) -> None:
        self.loss, self.batches, self.every, self.options = loss, batches, every, options
        self._watch: Watch | None = None
        self._updates = 0
        self._restored: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the data to measure on."""
        if not trainer.is_global_zero:
            return
        if len(trainer.optimizers) != 1:
            raise UserError(
                f"WatchCallback needs one optimizer, and this module has {len(trainer.optimizers)}"
            )
        batches = trainer.train_dataloader if self.batches is None else self.batches
        if self.batches is None and isinstance(batches, (list, tuple, dict)):
            raise UserError(
                "WatchCallback needs one training loader, and this trainer has several: pass "
                "batches="
            )
        options = self.options | {
            "test": _transferred(self.options.get("test"), trainer, held_out=True)
        }
        batches = _transferred(batches, trainer)
        data_module = [] if trainer.datamodule is None else [trainer.datamodule]
        with untouched(pl_module, *data_module):  # whatever the hooks write
            self._watch = watch(
                pl_module, trainer.optimizers[0], self.loss, batches, self.every, **options
            )
        self._updates = trainer.global_step
        if self._restored is not None:
            self._watch.load_state_dict(self._restored)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Measure where it is due, after an update."""
        if self._watch is None or trainer.global_step == self._updates:
            return
        self._updates = trainer.global_step
        found = {key: value for key, value in self._watch().items() if not isinstance(value, list)}
        if not found:
            return
        for logger in trainer.loggers:
            logger.log_metrics(found, step=trainer.global_step)
        pl_module.log_dict(found, on_step=True, logger=False, rank_zero_only=True)

    def state_dict(self) -> dict[str, Any]:
        """Go into the trainer's checkpoints."""
        return {} if self._watch is None else self._watch.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Come back from them."""
        self._restored = state_dict or None


def _transferred(data: Any, trainer: Trainer, held_out: bool = False) -> Any:
    """Data as the trainer hands them to the model; `watch` refuses what can be read only once."""
    if isinstance(data, Iterator) or not isinstance(data, Iterable):
        return data
    pair = isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[0], Tensor)
    # a list, as a DataLoader makes
    return _Transferred([list(data)] if pair else data, trainer, held_out)


class _Transferred:
    """Batches through the transfer hooks, in the stage of training or of validation."""

    def __init__(self, batches: Iterable[Any], trainer: Trainer, held_out: bool) -> None:
        self._batches, self._trainer, self._held_out = batches, trainer, held_out
        # Where `watch` looks for generators, to put them back once it has read.
        self.generator = getattr(batches, "generator", None)
        self.sampler = getattr(batches, "sampler", None)
        self.batch_sampler = getattr(batches, "batch_sampler", None)

    def __iter__(self) -> Iterator[Any]:
        for batch in with_own_workers(self._batches):
            yield self._transfer(batch)

    def _transfer(self, batch: Any) -> Any:
        trainer, module = self._trainer, self._trainer.lightning_module
        stage = trainer.state.stage
        trainer.state.stage = RunningStage.VALIDATING if self._held_out else stage
        try:
            with in_mode(module, "eval" if self._held_out else None):
                # As the training loop does, on a copy: a hook may write to the batch, which may be
                # the data set itself.
                batch = apply_to_collection(batch, Tensor, Tensor.clone)
                batch = trainer.precision_plugin.convert_input(batch)
                batch = module._on_before_batch_transfer(batch)
                return trainer.strategy.batch_to_device(batch)
        finally:
            trainer.state.stage = stage
