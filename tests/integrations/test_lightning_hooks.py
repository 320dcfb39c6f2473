"""The Lightning callback measures on what the model gets: batches through transfer hooks, training left as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from optbench.errors import UserError
from tests.references import lambda_by_double_backward

lightning = pytest.importorskip("lightning.pytorch", reason="needs optbench[lightning]")

CLOSE = 5e-3  # relative error of λ₁: the bound that the probe asks for
SUMS = 1e-6  # of a mean of 40 losses in single precision


def _data(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(40, 6, generator=generator), torch.arange(40) % 3


def _loader(seed: int, shuffled: bool) -> DataLoader[Any]:
    data = TensorDataset(*_data(seed))
    sampler = RandomSampler(data, generator=torch.Generator().manual_seed(5)) if shuffled else None
    return DataLoader(data, batch_size=20, sampler=sampler)


class _Module(lightning.LightningModule):  # type: ignore[name-defined]
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lr = lr
        self.inner = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.kept: list[nn.Module] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def on_train_batch_end(self, *_: Any) -> None:  # after the callbacks, which only read
        self.kept.append(copy.deepcopy(self.inner))


def _normalized(batch: Any, training: bool) -> tuple[Tensor, Tensor]:
    """What a hook makes of a batch; while training it augments: by noise on what is trained on."""
    inputs = 3 * batch[0] + 1
    return (inputs + torch.randn(()) if training else inputs), batch[1]


class _Normalizes(_Module):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return _normalized(batch, False)


class _Augments(_Module):
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return _normalized(batch, self.trainer.training)


class _AugmentsInItsMode(_Module):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return _normalized(batch, self.training)


class _Paces(_Module):
    """Makes pairs of what is none, in place, and depends on how often it did."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.calls += 1
        return {"x": batch["x"].mul_(3).add_(self.calls), "y": batch["y"]}

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        return super().transfer_batch_to_device((batch["x"], batch["y"]), device, dataloader_idx)


class _DataModule(lightning.LightningDataModule):  # type: ignore[name-defined]
    def train_dataloader(self) -> DataLoader[Any]:
        return _loader(1, True)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return _normalized(batch, False)


class _Draws(_DataModule):
    """Augments from generators of its own beside the global one, and writes to the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.numpy, self.calls = (
            torch.Generator().manual_seed(3),
            np.random.default_rng(3),
            0,
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.calls += 1
        noise = (
            torch.randn(()) + torch.randn((), generator=self.own) + self.numpy.normal() + self.calls
        )
        batch[0] = batch[0].add_(noise)
        return batch


class _Log(lightning.loggers.CSVLogger):  # type: ignore[name-defined]
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(metrics)

    def save(self) -> None:
        """Nothing."""


def _fit(folder: Path, module: Any, data: Any, **options: Any) -> list[dict[str, float]]:
    from optbench.integrations.lightning import WatchCallback

    lightning.seed_everything(0, verbose=False)
    log = _Log(folder)
    callback = WatchCallback(F.cross_entropy, every=1, say=lambda _: None, **options)
    _trainer(folder, [callback] if options else [], log).fit(module, data)
    return log.rows


def _trainer(folder: Path, callbacks: list[Any], logger: Any) -> Any:
    return lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=logger,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def _same(one: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", ["module", "data module"])
@pytest.mark.parametrize("given", ["trainer's", "loader", "pair"])
def test_batches_go_through_the_hooks(tmp_path: Path, where: str, given: str) -> None:
    kind = _Normalizes if where == "module" else _Module
    plain, watched = kind(), kind()
    _fit(tmp_path, plain, _loader(1, True) if where == "module" else _DataModule())
    batches = {"trainer's": None, "loader": _loader(1, False), "pair": _data(1)}[given]
    test = _data(2) if given == "pair" else _loader(2, False)
    rows = _fit(
        tmp_path,
        watched,
        _loader(1, True) if where == "module" else _DataModule(),
        batches=batches,
        test=test,
    )
    assert _same(plain, watched) and len(rows) == len(watched.kept) == 4
    (x, y), (x_test, y_test) = _data(1), _data(2)
    for row, model in zip(rows, watched.kept, strict=True):
        expected = lambda_by_double_backward(model, F.cross_entropy, 3 * x + 1, y)
        assert row["sharpness/lambda_max"] == pytest.approx(expected, rel=CLOSE)
        with torch.no_grad():
            train, held_out = (
                F.cross_entropy(model(3 * x + 1), y),
                F.cross_entropy(model(3 * x_test + 1), y_test),
            )
        assert row["train/loss"] == pytest.approx(float(train), rel=SUMS)
        assert row["gap/loss"] == pytest.approx(
            float(held_out - train), abs=2 * SUMS * float(train)
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [_Augments, _AugmentsInItsMode])
def test_held_out_data_go_through_as_in_validation(tmp_path: Path, kind: type[_Module]) -> None:
    plain, watched = kind(), kind()
    _fit(tmp_path, plain, _loader(1, True))
    rows = _fit(tmp_path, watched, _loader(1, True), test=_data(2))
    assert _same(plain, watched) and len(rows) == 4
    (x, y), (x_test, y_test) = _data(1), _data(2)
    for row, model in zip(rows, watched.kept, strict=True):
        with torch.no_grad():  # held-out data get no noise, which the others do
            train, held_out = (
                F.cross_entropy(model(3 * x + 1), y),
                F.cross_entropy(model(3 * x_test + 1), y_test),
            )
        assert row["test/loss"] == pytest.approx(float(held_out), rel=SUMS)
        assert row["train/loss"] != pytest.approx(float(train), rel=1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("given", ["trainer's", "pair"])
def test_a_data_module_that_draws_does_so_once(tmp_path: Path, given: str) -> None:
    plain, watched, still = _Module(), _Module(), _Module(lr=0)
    x, y = _data(1)
    batches = None if given == "trainer's" else (x, y)
    _fit(tmp_path, plain, _Draws())
    assert len(_fit(tmp_path, watched, _Draws(), batches=batches, test=_data(2))) == 4
    assert _same(plain, watched)
    rows = _fit(tmp_path, still, _Draws(), batches=batches, test=_data(2))
    for name in ("train/loss", "test/loss"):
        assert len({row[name] for row in rows}) == 1
    assert torch.equal(x, _data(1)[0])


@pytest.mark.filterwarnings("ignore")
def test_batches_that_only_hooks_make_pairs_of(tmp_path: Path) -> None:
    x, y = _data(1)
    loader: Any = DataLoader([{"x": a, "y": b} for a, b in zip(x, y, strict=True)], batch_size=20)  # type: ignore[arg-type]
    plain, watched = _Paces(), _Paces()
    _fit(tmp_path, plain, loader)
    rows = _fit(tmp_path, watched, loader, test=[{"x": x, "y": y}])
    assert _same(plain, watched) and plain.calls == watched.calls == 4
    assert torch.equal(x, _data(1)[0])
    moved = torch.cat([3 * x[:20] + 1, 3 * x[20:] + 2])
    for row, model in zip(rows, watched.kept, strict=True):
        with torch.no_grad():
            assert row["train/loss"] == pytest.approx(
                float(F.cross_entropy(model(moved), y)), rel=SUMS
            )


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_is_left_in_its_stage(tmp_path: Path) -> None:
    from optbench.integrations.lightning import WatchCallback

    stages, module = list[Any](), _Normalizes()

    class Sees(lightning.Callback):  # type: ignore[name-defined]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            stages.append((copy.copy(trainer.state), [m.training for m in pl_module.modules()]))

    callback = WatchCallback(F.cross_entropy, test=_data(2), say=lambda _: None)
    trainer = _trainer(tmp_path, [Sees(), callback, Sees()], False)
    module.inner[1].eval()
    trainer.fit(module, _loader(1, True))
    assert stages[0] == stages[1] and stages[0][0].stage == "train"


@pytest.mark.filterwarnings("ignore")
def test_workers_that_training_reads_from_are_left_alone(tmp_path: Path) -> None:
    plain, watched = _Normalizes(), _Normalizes()
    for module, options in ((plain, {}), (watched, {"examples": 10})):
        data = TensorDataset(*_data(1))
        _fit(
            tmp_path,
            module,
            DataLoader(data, 10, shuffle=True, num_workers=1, persistent_workers=True),
            **options,
        )
    assert len(plain.kept) == len(watched.kept) == 8
    assert _same(plain, watched)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("several", [lambda one: [one, one], lambda one: {"a": one, "b": one}])
def test_several_loaders_are_refused(tmp_path: Path, several: Any) -> None:
    with pytest.raises(
        UserError, match="one training loader, and this trainer has several: pass batches="
    ):
        _fit(tmp_path, _Normalizes(), several(_loader(1, True)), test=None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batches", [iter([_data(1)]), 3])
def test_batches_that_cannot_be_are_refused_as_ever(tmp_path: Path, batches: Any) -> None:
    with pytest.raises(
        ValueError, match=r"read once: pass a list or a DataLoader|must be a pair .* got 3"
    ):
        _fit(tmp_path, _Normalizes(), _loader(1, True), batches=batches)
