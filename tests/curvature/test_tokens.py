"""Sequence models under the engine: integer inputs, attention, and a loss over tokens."""

import torch

from optbench.curvature import Hessian, top_eigenpairs
from optbench.models.gpt import gpt
from optbench.run.batches import Batches
from optbench.run.update import Update
from optbench.task import Split, Task, classification
from tests.curvature.helpers import differenced_hessian


def _task() -> Task:
    generator = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(0, 5, (2, 6, 4), generator=generator)
    return classification({"train": (tokens, targets)}, 5, "ce")


def test_products_and_the_top_eigenvalue_of_a_gpt_match_the_differenced_hessian() -> None:
    torch.manual_seed(0)
    task, model = _task(), gpt((4,), 5, width=8, depth=1, heads=2, expansion=1).double()
    data = (task.train.inputs, task.train.targets)
    dense = differenced_hessian(model, task.loss, data)
    H = Hessian(model, task.loss, data)
    v = torch.randn(H.size, dtype=torch.float64)
    torch.testing.assert_close(H @ v, dense @ v, rtol=0, atol=1e-6)  # differences: 1e-7
    pairs = top_eigenpairs(H, accuracy=1e-8)
    torch.testing.assert_close(pairs.values[0], torch.linalg.eigvalsh(dense)[-1], rtol=0, atol=1e-6)


def test_micro_batches_of_tokens_are_one_update() -> None:
    def trained(micro: int | None) -> list[torch.Tensor]:
        torch.manual_seed(0)
        task, model = _task(), gpt((4,), 5, width=8, depth=1, heads=2).double()
        update = Update(
            model, task.loss, torch.optim.SGD(model.parameters(), lr=0.1), micro_batch_size=micro
        )
        batches = Batches(task, "full", 0)
        losses = [update(*batches.next()) for _ in range(3)]
        return [torch.stack(losses), *model.parameters()]

    for one, other in zip(trained(None), trained(4), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)  # float64 rounding


def test_inputs_keep_their_type_on_the_way_to_another_precision() -> None:
    moved = Split(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long))
    assert moved.to(torch.device("cpu"), torch.float64).inputs.dtype == torch.int64
