from pathlib import Path
from typing import Any

import pytest
import torch

from optbench.errors import UserError

transformers = pytest.importorskip("transformers", reason="needs optbench[transformers]")
pytest.importorskip("accelerate", reason="needs optbench[transformers]")


def _examples(seed: int, N: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 20, (N, 8), generator=generator)
    return [{"input_ids": row, "labels": row, "ignored": "text"} for row in tokens]


def _trainer(folder: Path, train: Any = None, steps: int = 6) -> Any:
    transformers.set_seed(0)
    config = transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        logging_steps=2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )

    def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {key: torch.stack([x[key] for x in examples]) for key in ("input_ids", "labels")}

    return transformers.Trainer(
        transformers.GPT2LMHeadModel(config),
        arguments,
        train_dataset=_examples(0, 48) if train is None else train,
        eval_dataset=_examples(1, 16),
        data_collator=collate,
    )


@pytest.mark.filterwarnings("ignore")
def test_the_trainers_own_log_gets_sharpness_and_training_does_not_notice(tmp_path: Path) -> None:
    from optbench.integrations.transformers import WatchCallback

    plain, watched = _trainer(tmp_path / "plain", steps=24), None
    plain.train()
    watched = _trainer(tmp_path / "watched", steps=24)
    watched.add_callback(WatchCallback(watched, every=21, examples=16))
    watched.train()
    for one, other in zip(
        plain.model.state_dict().values(), watched.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    measured = [row for row in watched.state.log_history if "sharpness/lambda_max" in row]
    # AdamW's second moment has settled at the second
    assert [row["step"] for row in measured] == [1, 22]
    assert (
        "edge/distance" not in measured[0]
        and {"edge/distance", "gap/loss", "train/loss"} <= measured[-1].keys()
    )
    losses = [row["loss"] for row in plain.state.log_history if "loss" in row]
    assert losses == [row["loss"] for row in watched.state.log_history if "loss" in row]
    assert 0 < measured[-1]["train/loss"] < 4  # of 20 tokens; a uniform guess has ln 20 = 3.0


@pytest.mark.filterwarnings("ignore")
def test_a_stream_is_refused(tmp_path: Path) -> None:
    from optbench.integrations.transformers import WatchCallback

    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(_examples(0, 48))

    trainer = _trainer(tmp_path, Stream())
    trainer.add_callback(WatchCallback(trainer))
    with pytest.raises(UserError, match="data sets with a length"):
        trainer.train()
