"""A script's first lines work beside a torch that torchvision was not built for."""

import subprocess
import sys

import pytest

SCRIPTS = {
    "lightning": "from optbench.integrations.lightning import WatchCallback\n"
    "from lightning.pytorch import Trainer\nTrainer(callbacks=[WatchCallback(None)], logger=False)",
    "transformers": "from optbench.integrations.transformers import WatchCallback\n"
    "from transformers import Trainer",
}


@pytest.mark.parametrize("package", SCRIPTS)
def test_a_script_imports_the_callback_and_the_trainer(package: str) -> None:
    pytest.importorskip(package, reason=f"needs optbench[{package}]")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPTS[package]], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-1500:]
