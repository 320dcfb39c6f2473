"""Module paths of earlier versions still import, and say the new one."""

import importlib
import subprocess
import sys

import pytest

from optbench.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_every_new_path_is_there(old: str) -> None:
    assert importlib.util.find_spec(f"optbench.{MOVED[old]}") is not None


def test_names_are_found_by_the_earlier_path_with_a_warning() -> None:
    program = (
        "import warnings; warnings.simplefilter('error', DeprecationWarning)\n"
        "try:\n    import optbench.runner\nexcept DeprecationWarning as why:\n    print(why)\n"
        "warnings.simplefilter('ignore')\n"
        "import optbench.job, optbench.config\n"
        "from optbench.runner import Runner\nfrom optbench.run import loop\n"
        "from optbench.cli import main\n"
        "print(Runner is loop.Runner, callable(main), callable(optbench.config.build))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "optbench.runner is optbench.run.loop now",
        "True True True",
    ], done.stderr


def test_what_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("optbench.never")
