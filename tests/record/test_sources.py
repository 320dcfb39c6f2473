"""The code that a configuration names: a hash if it is the user's, a version if installed."""

import subprocess
import sys
from pathlib import Path

import pytest

import optbench
from optbench.record.sources import MISSING, changed_code, source, sources, targets

CODE = '"""Doc."""\nfrom torch.optim import SGD\n\n\nclass Mine(SGD):\n    """Mine."""\n\n    rate = 1.0  # so\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_target_in_a_configuration_is_found() -> None:
    config = {
        "optimizer": {"_target_": "a.B", "base": {"_target_": "c.D"}},
        "probes": {"x": None, "y": {"_target_": "e.F"}, "z": [{"_target_": "g.H"}]},
        "schedule": {"_target_": None},
    }
    assert targets(config) == {"a.B", "c.D", "e.F", "g.H"}


def test_what_is_installed_is_its_version_and_is_not_imported() -> None:
    assert source("optbench.tasks.digits.digits") == f"optbench {optbench.__version__}"
    assert source("torch.optim.SGD").startswith("torch 2")
    assert source("nowhere.Mine") == MISSING and source("") == MISSING
    program = "import sys; from optbench.record.sources import source; source('torch.optim.SGD')"
    subprocess.run(
        [sys.executable, "-c", program + "; assert 'torch' not in sys.modules"], check=True
    )


@pytest.mark.parametrize(
    ("new", "same"),
    [
        (CODE.replace("  # so", "  # or so"), True),
        (CODE.replace("Mine.", "Yours."), True),
        (CODE.replace("\n\n\n", "\n\n\n\n").replace('"""Doc."""\n', ""), True),
        (CODE.replace("1.0", "1.5"), False),
        (CODE.replace("1.0", "1"), False),
        (CODE + "x = None\n", False),
        (CODE + "class Mine(\n", False),
    ],
)
def test_code_counts_and_comments_do_not(here: Path, new: str, same: bool) -> None:
    (here / "my_file.py").write_text(CODE)
    before = source("my_file.Mine")
    assert len(before) == 64
    (here / "my_file.py").write_text(new)
    assert (source("my_file.Mine") == before) == same


@pytest.mark.parametrize(
    "line",
    [
        "import helper",
        "from helper import f",
        "def g():\n    import helper",
        "try:\n    import helper as h\nexcept ImportError:\n    pass",
        "import between",
        "from pack import part",
        "import pack.part",
        "from pack.part import f",
        "from pack import *",
    ],
)
def test_modules_of_the_users_own_that_are_imported_count(here: Path, line: str) -> None:
    (here / "pack").mkdir()
    (here / "pack/__init__.py").write_text(
        "from .part import *\nfrom . import part\nfrom ..no import x\n"
    )
    (here / "pack/part.py").write_text("from helper import f\n")
    (here / "between.py").write_text("import my_file\nimport helper\n")  # and in a circle
    (here / "helper.py").write_text("def f(): return 1\n")
    (here / "my_file.py").write_text(line + "\nimport json, torch, nowhere\n")
    before = source("my_file.Mine")
    (here / "helper.py").write_text("def f(): return 2\n")
    assert source("my_file.Mine") != before


def test_a_module_that_is_not_imported_does_not_count(here: Path) -> None:
    (here / "my_file.py").write_text(CODE)
    before = source("my_file.Mine")
    (here / "other.py").write_text("x = 1\n")
    assert source("my_file.Mine") == before


def test_a_class_in_a_package_depends_on_the_package_itself(here: Path) -> None:
    (here / "pack/deep").mkdir(parents=True)
    (here / "pack/__init__.py").write_text("")
    (here / "pack/deep/mine.py").write_text(CODE)  # `deep` has no __init__.py
    before = source("pack.deep.mine.Mine")
    assert len(before) == 64
    (here / "pack/__init__.py").write_text("import torch; torch.set_default_dtype(torch.float64)")
    assert source("pack.deep.mine.Mine") != before


def test_a_change_is_told_with_both_hashes_and_another_version_is_none() -> None:
    a, b = "a" * 64, "b" * 64
    assert changed_code({"m.X": a}, {"m.X": b}) == (
        "the code of m.X has changed since (source hash aaaaaaaaaaaa then, bbbbbbbbbbbb now)"
    )
    assert "missing now" in changed_code({"m.X": a}, {"m.X": MISSING})
    assert "package 1.0 then" in changed_code({"m.X": "package 1.0"}, {"m.X": b})
    for then in (None, {}, {"m.X": b}, {"m.X": MISSING}, "text"):
        assert changed_code(then, {"m.X": b}) == ""
    assert changed_code({"m.X": "package 1.0"}, {"m.X": "package 2.0"}) == ""


def test_all_of_a_configuration(here: Path) -> None:
    (here / "my_file.py").write_text(CODE)
    found = sources(
        {
            "optimizer": {"_target_": "my_file.Mine"},
            "model": {"_target_": "optbench.models.mlp.mlp"},
        }
    )
    assert found == {
        "my_file.Mine": source("my_file.Mine"),
        "optbench.models.mlp.mlp": source("optbench.x"),
    }
