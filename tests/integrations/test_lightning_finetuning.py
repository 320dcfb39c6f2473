"""The Lightning callback while a backbone is unfrozen: the Hessian is that of the parameters that train then."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

lightning = pytest.importorskip("lightning.pytorch", reason="needs optbench[lightning]")

UNFROZEN_AT = 12  # epoch, of two updates each
CLOSE = 5e-3  # relative: the bound that the probe asks for


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(40, 6, generator=generator), torch.arange(40) % 3


class _Module(lightning.LightningModule):  # type: ignore[name-defined]
    def __init__(self, optimizer: str, compiled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh())
        self.head: Any = nn.Linear(8, 3)
        self.optimizer = optimizer
        if compiled:
            self.head = torch.compile(self.head, backend="aot_eager")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))  # type: ignore[no-any-return]

    def training_step(self, batch: Any, _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for p in self.parameters() if p.requires_grad]
        return getattr(torch.optim, self.optimizer)(trained, lr=0.01)  # type: ignore[no-any-return]


class _Unfreezes(lightning.callbacks.BaseFinetuning):  # type: ignore[name-defined]
    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == UNFROZEN_AT:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, train_bn=True)


class _Keeps(lightning.Callback):  # type: ignore[name-defined]
    def __init__(self) -> None:
        self.models: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.models.append(
            {"state": copy.deepcopy(pl_module.state_dict()), "train": _flags(pl_module)}
        )


def _flags(module: nn.Module) -> dict[str, tuple[bool, bool]]:
    modes = {name: (m.training, False) for name, m in module.named_modules()}
    return modes | {f"p:{name}": (False, p.requires_grad) for name, p in module.named_parameters()}


def _train(folder: Path, module: Any, callbacks: list[Any]) -> None:
    lightning.seed_everything(0, verbose=False)
    trainer = lightning.Trainer(
        max_epochs=25,
        accelerator="cpu",
        logger=callbacks[-1].loggers if hasattr(callbacks[-1], "loggers") else False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(TensorDataset(*_data()), batch_size=20, shuffle=True))


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


def _reference(kept: dict[str, Any]) -> float:
    """λ₁ of the parameters that trained then, in the modes of then, by a dense Hessian in double precision."""
    module = _Module("SGD").double()
    module.load_state_dict(
        {name.replace("._orig_mod", ""): value for name, value in kept["state"].items()}
    )
    flags = {name.replace("._orig_mod", ""): value for name, value in kept["train"].items()}
    for name, m in module.named_modules():
        m.training = flags[name][0]
    x, y = _data()
    weights = [p for name, p in module.named_parameters() if flags[f"p:{name}"][1]]
    slope = torch.autograd.grad(F.cross_entropy(module(x.double()), y), weights, create_graph=True)
    flat = torch.cat([g.flatten() for g in slope])
    rows = [
        torch.autograd.grad(s, weights, retain_graph=True, materialize_grads=True) for s in flat
    ]
    matrix = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    return float(torch.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("optimizer", "compiled"), [("SGD", False), ("Adam", False), ("SGD", True)]
)
def test_a_backbone_that_is_unfrozen(tmp_path: Path, optimizer: str, compiled: bool) -> None:
    from optbench.integrations.lightning import WatchCallback

    plain = _Module(optimizer, compiled)
    _train(tmp_path, plain, [_Unfreezes()])
    watched, log, keeps = _Module(optimizer, compiled), _Log(), _Keeps()
    callback = WatchCallback(F.cross_entropy, batches=_data(), every=1, say=lambda _: None)
    callback.loggers = [log]
    _train(tmp_path, watched, [_Unfreezes(), keeps, callback])
    for one, other in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert len(log.rows) == len(keeps.models) == 50
    for step in (0, 2 * UNFROZEN_AT - 1, 2 * UNFROZEN_AT, 2 * UNFROZEN_AT + 1, 49):
        assert log.rows[step]["sharpness/lambda_max"] == pytest.approx(
            _reference(keeps.models[step]), rel=CLOSE
        )
    assert "edge/distance" in log.rows[-1]
    if optimizer == "Adam":  # the backbone's second moment has had 1 gradient
        assert (
            "edge/distance" in log.rows[2 * UNFROZEN_AT - 1]
            and "edge/distance" not in log.rows[2 * UNFROZEN_AT + 1]
        )
