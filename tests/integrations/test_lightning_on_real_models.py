"""The Lightning callback while layers are unfrozen, put in, compiled or cast: λ₁ and the edge of a dense reference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.references import in_double, largest

lightning = pytest.importorskip("lightning.pytorch", reason="needs optbench[lightning]")

# and epoch, of two updates each: Adam's second moment has settled by then
LR, UNFROZEN_AT = (0.01, 11)
CLOSE = 5e-3  # relative error of λ₁ and of the edge: the bound that the probes ask for
SUMS = 1e-6  # of a mean of 40 losses in single precision
# and of outputs in bfloat16, whose unit is 4e-3 and whose errors are averaged; seen: 1.2e-4
HALF = 1e-3


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(40, 6, generator=generator), torch.arange(40) % 3


class _Module(lightning.LightningModule):  # type: ignore[name-defined]
    def __init__(self, optimizer: str = "SGD") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone: Any = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh())
        self.head: Any = nn.Linear(8, 3)
        self.criterion: Any = nn.CrossEntropyLoss()
        self.optimizer = optimizer

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))  # type: ignore[no-any-return]

    def training_step(self, batch: Any, _: int) -> Tensor:
        return self.criterion(self(batch[0]), batch[1])  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for p in self.parameters() if p.requires_grad]
        return getattr(torch.optim, self.optimizer)(trained, lr=LR)  # type: ignore[no-any-return]


@dataclass
class _Reference:
    """What a dense Hessian in double precision says at one update."""

    trained: int  # P
    sharpness: float
    train_loss: float
    # from the edge; None where the optimizer has seen none of some tensor's gradients
    distance: float | None


class _Keeps(lightning.Callback):  # type: ignore[name-defined]
    def __init__(self) -> None:
        self.found: list[_Reference] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        parts = nn.Sequential(
            *(getattr(m, "_orig_mod", m) for m in (pl_module.backbone, pl_module.head))
        )
        own = [p for p in parts.parameters() if p.requires_grad]
        double = copy.deepcopy(parts).double()
        weights = [p for p in double.parameters() if p.requires_grad]
        x, y = _data()
        x = in_double(x.to(own[0].dtype))
        slope = torch.autograd.grad(F.cross_entropy(double(x), y), weights, create_graph=True)
        flat = torch.cat([g.flatten() for g in slope])
        rows = [torch.autograd.grad(s, weights, retain_graph=True) for s in flat]
        matrix = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        with torch.no_grad():
            loss = float(F.cross_entropy(copy.deepcopy(parts).double().eval()(x), y))
        scale = _scale(trainer.optimizers[0], own)
        distance = None if scale is None else largest(scale.sqrt()[:, None] * matrix * scale.sqrt())
        self.found.append(_Reference(len(flat), largest(matrix), loss, distance))


def _scale(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> Tensor | None:
    """The diagonal D for which λ₁(D^½ H D^½) is 1 at the edge.

    η/2 for SGD; η / 38 P for Adam with β₁ = .9, P = (1 − β₁ᵗ)(√(ν/(1 − β₂ᵗ)) + ε): Cohen et al.
    (2022), section 2.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    diagonal = []
    for p in parameters:
        lr, state = groups[id(p)]["lr"], optimizer.state.get(p, {})
        if isinstance(optimizer, torch.optim.SGD):
            diagonal.append(torch.full((p.numel(),), lr / 2, dtype=torch.float64))
            continue
        if not state:
            return None
        t = float(state["step"])
        root = (state["exp_avg_sq"].double() / (1 - 0.999**t)).sqrt() + 1e-8
        diagonal.append((lr / 38 / root / (1 - 0.9**t)).flatten())
    return torch.cat(diagonal)


class _Log(lightning.loggers.logger.Logger):  # type: ignore[name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    @property
    def name(self) -> str:
        return "log"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "train/loss" in metrics:
            self.rows.append(metrics)


class _Widens(lightning.Callback):  # type: ignore[name-defined]
    """Puts in wider layers at an epoch's start."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == UNFROZEN_AT:
            torch.manual_seed(5)
            pl_module.backbone = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh())
            pl_module.head = nn.Linear(12, 3)
            new = [*pl_module.backbone.parameters(), *pl_module.head.parameters()]
            trainer.optimizers[0].add_param_group({"params": new})


def _fit(
    folder: Path, module: Any, callbacks: list[Any], logger: Any, epochs: int, precision: str
) -> None:
    lightning.seed_everything(0, verbose=False)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=logger,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        precision=precision,
    )
    trainer.fit(module, DataLoader(TensorDataset(*_data()), batch_size=20, shuffle=True))


def _measured(
    folder: Path,
    make: Callable[[], Any],
    loss: Any = F.cross_entropy,
    others: Callable[[], list[Any]] = list,
    epochs: int = 2,
    precision: str = "32-true",
) -> tuple[list[dict[str, float]], list[_Reference], list[str]]:
    """What was logged at each update, what it should have been, and what was said; training must not notice."""
    from optbench.integrations.lightning import WatchCallback

    plain, watched, log, keeps, said = make(), make(), _Log(), _Keeps(), list[str]()
    _fit(folder, plain, others(), False, epochs, precision)
    callback = WatchCallback(loss, batches=_data(), every=1, say=said.append)
    _fit(folder, watched, [*others(), keeps, callback], log, epochs, precision)
    for one, other in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert len(log.rows) == len(keeps.found) == 2 * epochs
    for row, expected in zip(log.rows, keeps.found, strict=True):
        assert row["sharpness/lambda_max"] == pytest.approx(expected.sharpness, rel=CLOSE)
        off = abs(row["sharpness/lambda_max"] - expected.sharpness)
        assert off <= row["sharpness/lambda_max_bound"]
        rounding = HALF if precision == "bf16-true" else SUMS
        assert row["train/loss"] == pytest.approx(expected.train_loss, rel=rounding)
        if "edge/distance" in row:
            assert row["edge/distance"] == pytest.approx(expected.distance, rel=CLOSE)
    return log.rows, keeps.found, said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_lightnings_own_finetuning(tmp_path: Path, optimizer: str) -> None:
    """It adds the backbone's group with a tenth of the rate, which doubles each epoch: the edge is that of both."""

    def finetuning() -> list[Any]:
        own = lightning.callbacks.BackboneFinetuning
        return [own(unfreeze_backbone_at_epoch=UNFROZEN_AT, verbose=False)]

    epochs = UNFROZEN_AT + (12 if optimizer == "Adam" else 4)
    rows, expected, said = _measured(
        tmp_path, lambda: _Module(optimizer), others=finetuning, epochs=epochs
    )
    before, after = expected[2 * UNFROZEN_AT - 1].trained, expected[2 * UNFROZEN_AT].trained
    assert (before, after) == (27 + 16, 99)  # head and batch norm, then all
    there = ["edge/distance" in row for row in rows]
    if optimizer == "SGD":
        assert all(there)
    else:  # 20 gradients of each tensor
        assert there[2 * UNFROZEN_AT - 1] and not there[2 * UNFROZEN_AT] and there[-1]
        assert (
            sum("holds still enough once it has averaged 20 gradients" in line for line in said)
            >= 2
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_a_layer_that_is_put_in_later(tmp_path: Path, optimizer: str) -> None:
    rows, expected, said = _measured(
        tmp_path, lambda: _Module(optimizer), others=lambda: [_Widens()], epochs=UNFROZEN_AT + 2
    )
    assert [expected[2 * UNFROZEN_AT + i].trained for i in (-1, 0)] == [99, 147]
    assert (
        "edge/distance" in rows[2 * UNFROZEN_AT - 1]
        and "edge/distance" not in rows[2 * UNFROZEN_AT]
    )
    # Said why: the optimizer still holds the layers that were taken out, or has averaged too few
    # gradients.
    assert any(line.startswith("edge/distance is absent") for line in said)


def _compiled() -> Any:
    module = _Module()
    module.head = torch.compile(module.head, backend="aot_eager")
    module.criterion = torch.compile(module.criterion, backend="aot_eager")
    return module


@pytest.mark.filterwarnings("ignore")
def test_parts_and_criterion_that_are_compiled(tmp_path: Path) -> None:
    loss = torch.compile(nn.CrossEntropyLoss(), backend="aot_eager")
    rows, _, _ = _measured(tmp_path, _compiled, loss=loss)
    assert all("edge/distance" in row for row in rows)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precisions_of_the_trainer(tmp_path: Path, precision: str) -> None:
    rows, _, said = _measured(tmp_path, _Module, precision=precision)
    assert all("edge/distance" in row for row in rows)
    lines = {line for line in said if "measured in" in line}
    assert lines == ({"curvature: weights are torch.bfloat16, measured in torch.float32"} & lines)
    assert bool(lines) == (precision == "bf16-true")
