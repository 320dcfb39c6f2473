"""One answer, whatever was imported first and whoever registered a rule before."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import TorchAlone

ROOT = Path(__file__).resolve().parents[2]
ASK = """
import torch
from optbench.optimizers.sign import Lion
p = torch.ones(2, requires_grad=True)
said = []
for optimizer in (torch.optim.Adam([p], 1e-3), torch.optim.SGD([p], 0.1), torch.optim.Muon([q], 0.1), Lion([p], 1e-3)):
    p.grad, q.grad = torch.ones(2), torch.ones(2, 2)
    optimizer.step()
    said.append(edge(optimizer).source)
print(said)
""".replace("p = torch", "q = torch.ones(2, 2, requires_grad=True)\np = torch", 1)
RULES = "['closed form', 'closed form', 'conjecture', 'conjecture']"
FROM = "from optbench.dynamics.dispatch import edge"
FIRST = {
    "the package": "from optbench.dynamics import edge",
    "the function": FROM,
    "the black box": f"import optbench.dynamics.black_box.probed_edge\n{FROM}",
    "one module of rules": f"import optbench.dynamics.rules.adam\n{FROM}",
    "the last module of rules": f"import optbench.dynamics.rules.no_edge\n{FROM}",
    "ours": f"import optbench.dynamics.rules.optbench_optimizers\n{FROM}",
    "terms": f"from optbench.dynamics import unknown\n{FROM}",
    "a probe": f"import optbench.probes.edge\n{FROM}",
}
REGISTERED = {
    "for one class": ("Adam", "['mine', 'closed form', 'conjecture', 'conjecture']"),
    "for all that have no rule": ("Optimizer", RULES),
}


@pytest.fixture(scope="module")
def torch_alone() -> Iterator[TorchAlone]:
    processes = TorchAlone(ROOT)
    yield processes
    processes.close()


@pytest.fixture
def printed(torch_alone: TorchAlone, tmp_path: Path) -> Callable[[str], str]:
    """What a program prints that runs where torch alone has been imported."""

    def run(program: str) -> str:
        done = torch_alone.run(program, tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.mark.parametrize("name", FIRST)
def test_the_rules_are_there_whatever_was_imported_first(
    name: str, printed: Callable[[str], str]
) -> None:
    assert printed(FIRST[name] + ASK) == RULES


@pytest.mark.parametrize("first", ["the package", "the function", "one module of rules"])
@pytest.mark.parametrize("name", REGISTERED)
def test_a_rule_of_the_users_replaces_ours_however_early_it_comes(
    name: str, first: str, printed: Callable[[str], str]
) -> None:
    cls, expected = REGISTERED[name]
    mine = f"""
import torch
from optbench.dynamics import EigenvalueEdge
@edge.register(torch.optim.{cls})
def _(optimizer):
    return EigenvalueEdge(1.0, "mine", source="mine")
"""
    assert printed(FIRST[first] + mine + ASK) == expected
