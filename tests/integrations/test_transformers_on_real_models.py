"""The Transformers callback on padded text and in mixed precision, against the model's own loss over all examples."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from optbench.torchvision import import_datasets

import_datasets()  # transformers may import torchvision, which needs our help beside some builds of torch
transformers = pytest.importorskip("transformers", reason="needs optbench[transformers]")
pytest.importorskip("accelerate", reason="needs optbench[transformers]")
CLOSE = 5e-3  # relative: the bound that the probe asks for


def _padded(seed: int, N: int, longest: int = 12) -> list[dict[str, Tensor]]:
    """Sequences of lengths 2, …, `longest`, the rest padding that no label counts."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for i in range(N):
        tokens = torch.randint(1, 20, (longest,), generator=generator)
        real = torch.arange(longest) < 2 + (i * (longest - 1)) // N
        examples.append(
            {"input_ids": tokens * real, "labels": torch.where(real, tokens, -100), "attention_mask": real.long()}
        )
    return examples


def _together(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([x[key] for x in examples]) for key in examples[0]}


def _trainer(folder: Path, examples: int, half: bool = False, **arguments: Any) -> Any:
    transformers.set_seed(0)
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=12, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    settings = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }
    model = transformers.GPT2LMHeadModel(config)
    return transformers.Trainer(
        model.bfloat16() if half else model,
        transformers.TrainingArguments(**settings | arguments),
        train_dataset=_padded(0, examples),
        eval_dataset=_padded(1, examples),
        data_collator=_together,
    )


def _measured(trainer: Any, examples: int, **options: Any) -> tuple[list[dict[str, float]], list[Any]]:
    """What was logged at each step, and the model as it was then."""
    from optbench.integrations.transformers import WatchCallback

    models: list[Any] = []

    class Keep(transformers.TrainerCallback):  # type: ignore[name-defined]
        def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
            models.append(copy.deepcopy(model))

    trainer.add_callback(Keep())
    trainer.add_callback(WatchCallback(trainer, every=1, examples=examples, **options))
    trainer.train()
    return [row for row in trainer.state.log_history if "train/loss" in row], models


def _loss(model: Any, examples: list[dict[str, Tensor]]) -> float:
    with torch.no_grad():
        return float(model.eval()(**_together(examples)).loss)


def _rayleigh_iteration(model: Any, examples: list[dict[str, Tensor]]) -> float:
    """λ₁ by 300 power iterations on H + 5 I in double precision, plain double backward of the model's own loss."""
    double, batch = copy.deepcopy(model).double().eval(), _together(examples)
    double.set_attn_implementation("eager")
    weights = [p for p in double.parameters() if p.requires_grad]
    slope = torch.autograd.grad(double(**batch).loss, weights, create_graph=True)
    v = [torch.randn(p.shape, generator=torch.Generator().manual_seed(3), dtype=p.dtype) for p in weights]
    value = 0.0
    for _ in range(300):
        size = sum(float(x.square().sum()) for x in v) ** 0.5
        v = [x / size for x in v]
        image = torch.autograd.grad(slope, weights, v, retain_graph=True)
        value = sum(float((x * y).sum()) for x, y in zip(v, image, strict=True))
        v = [y + 5 * x for x, y in zip(v, image, strict=True)]
    return value


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["float32", "autocast"])
def test_padded_text_is_measured_as_the_model_measures_it(tmp_path: Path, precision: str) -> None:
    found, models = _measured(_trainer(tmp_path, 300, bf16=precision == "autocast"), 300)
    assert len(found) == 2
    for row, model in zip(found, models, strict=True):
        train, test = _padded(0, 300), _padded(1, 300)
        model = copy.deepcopy(model)
        model.forward = type(model).forward.__get__(model)  # without Accelerate's autocast around it
        assert row["sharpness/lambda_max"] == pytest.approx(_rayleigh_iteration(model, train), rel=CLOSE)
        rounding = 1e-2 if precision == "autocast" else 1e-5  # the loss is the user's own, in bfloat16
        assert row["train/loss"] == pytest.approx(_loss(model, train), rel=rounding)
        assert row["test/loss"] == pytest.approx(_loss(model, test), rel=rounding)


@pytest.mark.filterwarnings("ignore")
def test_weights_in_half_precision(tmp_path: Path) -> None:
    said: list[str] = []
    found, models = _measured(_trainer(tmp_path, 24, half=True), 24, say=said.append)
    single = copy.deepcopy(models[-1]).float()
    assert found[-1]["sharpness/lambda_max"] == pytest.approx(_rayleigh_iteration(single, _padded(0, 24)), rel=CLOSE)
    assert sum("measured in torch.float32" in line for line in said) == 1
