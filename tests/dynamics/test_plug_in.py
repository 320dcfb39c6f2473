"""An optimizer of 15 lines outside the package gets its distance to the edge from its own file and YAML alone."""

import json
from pathlib import Path

import pytest

from tests.processes import command

ROOT = Path(__file__).resolve().parents[2]
CODE = """import torch

class Quick(torch.optim.Optimizer):
    def __init__(self, params, lr, beta=0.5, decay=0.99):
        super().__init__(params, dict(lr=lr, beta=beta, decay=decay))

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                m, v = (self.state[p].setdefault(key, torch.zeros_like(p)) for key in "mv")
                m.mul_(group["beta"]).add_(p.grad)
                v.lerp_(p.grad ** 2, 1 - group["decay"])
                p.sub_(group["lr"] * m / (v.sqrt() + 1e-6))
        return loss
"""
YAML = "_target_: quick.Quick\n_partial_: true\nlr: 2e-4\nbeta: 0.5\n"


def test_fifteen_lines_and_a_yaml_from_outside_the_checkout(tmp_path: Path) -> None:
    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    (tmp_path / "conf" / "optimizer" / "quick.yaml").write_text(YAML)
    (tmp_path / "quick.py").write_text(CODE)
    assert len([line for line in CODE.splitlines() if line]) <= 15
    words = ("--config-dir", "conf", "optimizer=quick", "task=digits", "steps=40")
    done = command(tmp_path, *words, "wandb.mode=disabled", "results_dir=out")
    done.check_returncode()
    assert "(probed)" in done.stderr and "λ₁(P⁻¹H)" in done.stderr
    folder = tmp_path / done.stdout.splitlines()[-1]
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    # Heavy ball over P: (2+2β)/η. The probe settles to 1e-3.
    assert last["edge/threshold"] == pytest.approx(3 / 2e-4, rel=1e-3)
    assert last["edge/distance"] == last["edge/preconditioned_sharpness"] / last["edge/threshold"]
