"""An engine whose package is missing says what to install."""

import sys
from pathlib import Path

import pytest

from optbench.errors import UserError
from optbench.launch.engines import make_launcher
from optbench.launch.launcher import Order


@pytest.mark.parametrize(("engine", "package"), [("ray", "Ray"), ("slurm", "submitit")])
def test_what_to_install_is_said(
    engine: str, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package.lower(), None)
    launcher = make_launcher(engine, [], Order(tmp_path))
    with pytest.raises(UserError) as told:
        next(launcher.launch([["seed=0"]], print))
    assert f"launcher={engine} needs {package}, which cannot be imported" in str(told.value)
    assert str(told.value).endswith(f"pip install 'optbench[{engine}]'")
    assert not list(tmp_path.iterdir())
