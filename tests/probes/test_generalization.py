import pytest
import torch
from torch import nn

from optbench.probes import State
from optbench.probes.generalization import Generalization, evaluate, evaluating
from optbench.task import Split, Task, classification


def _task() -> Task:
    generator = torch.Generator().manual_seed(0)
    splits = {
        name: (
            torch.randn(n, 4, generator=generator),
            torch.randint(0, 3, (n,), generator=generator),
        )
        for name, n in {"train": 50, "val": 20, "test": 30}.items()
    }
    return classification(splits, 3, "ce")


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    return State(0, 10, _task(), model, optimizer, True, 1, 0)


@pytest.mark.parametrize(
    ("inputs", "at_a_time"),
    [
        (torch.zeros(3, 1, 8, 8), 2**18 // 64),
        (torch.zeros(3, 3, 32, 32), 250),  # 85 fit in 2^18 numbers
        (torch.zeros(3, 64, dtype=torch.long), 250),  # tokens
        (torch.zeros(3, 28, 28), 334),
        (torch.zeros(3), 4096),
        (torch.zeros(0, 4), 250),
    ],
)
def test_small_examples_are_taken_many_at_a_time(inputs: torch.Tensor, at_a_time: int) -> None:
    split = Split(inputs, torch.zeros(len(inputs)))
    assert Generalization().at_a_time(split) == at_a_time
    assert Generalization(chunk=7).at_a_time(split) == 7


def test_means_and_gaps_are_those_of_the_definition_whatever_the_chunks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    found = Generalization(chunk=7)(_state(model, torch.optim.SGD(model.parameters(), 0.1)))
    task, model = _task(), model.eval()
    for name, split in task.splits.items():
        outputs = model(split.inputs)
        # Sums in another order, float32 losses: 50 terms, 3e-6 relative.
        assert found[f"{name}/loss"] == pytest.approx(
            task.loss(outputs, split.targets).item(), rel=3e-6
        )
        wrong = (outputs.argmax(1) != split.targets).sum().item()
        assert found[f"{name}/error"] == pytest.approx(wrong / len(split), rel=1e-15)
    for quantity in ("loss", "error"):
        assert found[f"gap/{quantity}"] == found[f"test/{quantity}"] - found[f"train/{quantity}"]  # type: ignore[operator]


def test_train_examples_are_the_first_ones() -> None:
    model = nn.Linear(4, 3)
    found = Generalization(train_examples=10)(
        _state(model, torch.optim.SGD(model.parameters(), 0.1))
    )
    task = _task()
    assert found["train/loss"] == evaluate(task, model, task.train.first(10))["loss"]


def test_a_task_without_error_and_test_set_has_no_such_keys() -> None:
    task = _task()
    model = nn.Linear(4, 3)
    bare = Task(task.train, None, None, 3, task.loss)
    state = State(0, 10, bare, model, torch.optim.SGD(model.parameters(), 0.1), True, 1, 0)
    assert set(Generalization()(state)) == {"train/loss"}


def test_a_mode_swapping_optimizer_is_in_eval_mode_inside_and_its_weights_bit_identical_after() -> (
    None
):
    class Averaging(torch.optim.SGD):
        mode = "train"

        def eval(self) -> None:
            self.mode = "eval"
            self._move(1 / 3)

        def train(self) -> None:
            self.mode = "train"
            self._move(3)

        @torch.no_grad()
        def _move(self, factor: float) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(factor)

    torch.manual_seed(0)
    model = nn.Linear(100, 100)
    optimizer = Averaging(model.parameters(), 0.1)
    before = model.weight.detach().clone()
    with evaluating(model, optimizer):
        assert optimizer.mode == "eval" and not torch.equal(model.weight, before)
        there_and_back = model.weight * 3
    assert not torch.equal(there_and_back, before)  # which is why the weights are saved
    assert optimizer.mode == "train" and torch.equal(model.weight, before)


def test_modes_of_every_module_come_back_also_after_an_exception() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].eval()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not model.training
        raise RuntimeError
    assert model.training and model[0].training and not model[1].training
