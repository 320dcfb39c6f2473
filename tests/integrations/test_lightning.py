from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from optbench.errors import UserError

pl = pytest.importorskip("lightning.pytorch", reason="needs optbench[lightning]")


class _Module(pl.LightningModule):  # type: ignore[name-defined]
    def __init__(self, optimizers: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3)
        )
        self.optimizers_ = optimizers

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        made = [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(self.optimizers_)]
        return made[0] if self.optimizers_ == 1 else made


def _data(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(40, 6, generator=generator), torch.randint(0, 3, (40,), generator=generator)


def _fit(folder: Path, callbacks: list[Any], module: _Module | None = None) -> tuple[_Module, Path]:
    module = module or _Module()
    logger = pl.loggers.CSVLogger(folder)
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        devices=1,
        logger=logger,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        accumulate_grad_batches=2,
    )
    trainer.fit(module, DataLoader(TensorDataset(*_data(0)), batch_size=10, shuffle=True))
    return module, Path(logger.log_dir) / "metrics.csv"


@pytest.mark.filterwarnings("ignore")
def test_the_loggers_get_sharpness_and_training_does_not_notice(tmp_path: Path) -> None:
    from optbench.integrations.lightning import WatchCallback

    plain, _ = _fit(tmp_path / "plain", [])
    watched, csv = _fit(
        tmp_path / "watched", [WatchCallback(F.cross_entropy, every=2, test=_data(1))]
    )
    for one, other in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    header, *rows = [line.split(",") for line in csv.read_text().splitlines()]
    assert {"sharpness/lambda_max", "edge/distance", "gap/error"} <= set(header)
    # of six updates, twelve batches
    assert [int(row[header.index("step")]) for row in rows] == [1, 3, 5]


class _Reads(pl.Callback):  # type: ignore[name-defined]
    """What the trainer's metrics hold at the end of each epoch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        self.seen.append({name: float(v) for name, v in trainer.callback_metrics.items()})


@pytest.mark.filterwarnings("ignore")
def test_other_callbacks_can_watch_what_is_measured(tmp_path: Path) -> None:
    from optbench.integrations.lightning import WatchCallback

    reads = _Reads()
    name = "sharpness/lambda_max"
    stop = pl.callbacks.EarlyStopping(name, check_on_train_epoch_end=True, patience=100)
    _, csv = _fit(tmp_path, [WatchCallback(F.cross_entropy, every=2), reads, stop])
    header, *rows = [line.split(",") for line in csv.read_text().splitlines()]
    logged = [float(row[header.index(name)]) for row in rows]
    # an epoch has two updates, so each ends with a measurement
    assert [seen[name] for seen in reads.seen] == pytest.approx(logged, rel=1e-6)
    assert float(stop.best_score) == pytest.approx(min(logged), rel=1e-6)
    best = pl.callbacks.ModelCheckpoint(
        tmp_path / "kept", monitor=name, mode="max", every_n_train_steps=1, save_top_k=1
    )  # reads them within an epoch, too
    _fit(tmp_path / "again", [WatchCallback(F.cross_entropy, every=2), best])
    assert float(best.best_model_score) == pytest.approx(max(logged), rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_several_optimizers_are_refused(tmp_path: Path) -> None:
    from optbench.integrations.lightning import WatchCallback

    module = _Module(2)
    module.automatic_optimization = False
    trainer = pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[WatchCallback(F.cross_entropy)],
    )
    with pytest.raises(UserError, match="needs one optimizer, and this module has 2"):
        trainer.fit(module, DataLoader(TensorDataset(*_data(0)), batch_size=10))
