"""Works from a bare checkout, a wheel, and any folder; and imports point one way."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Each may import what stands below it, never what stands above.
ORDER = [
    "optbench.__main__",
    "optbench.tune",
    "optbench.study",
    "optbench.report",
    "optbench.measure",
    "optbench.landscape",
    "optbench.lr_range",
    "optbench.new",
    "optbench.studies",
    "optbench.leaderboard",
    "optbench.protocol",
    "optbench.launch",
    "optbench.lab",
    "optbench.cli",
    "optbench.check",
    "optbench.configuration",
    "optbench.run",
    "optbench.integrations",
    "optbench.watching",
    "optbench.probes",
    "optbench.dynamics",
    "optbench.curvature",
    "optbench.fast_layers",
    "optbench.record",
    "optbench.tasks",
    "optbench.data",
    "optbench.task",
    "optbench.models",
    "optbench.optimizers",
    "optbench.schedules",
    "optbench.statistics",
    "optbench.intervals",
    "optbench.search",
    "optbench.seeds",
    "optbench.metrics",
    "optbench.ranks",
    "optbench.boundary",
    "optbench.paths",
    "optbench.processes",
    "optbench.errors",
    "optbench.startup",
    "optbench.moved",
    "optbench",
]
ONLY_IMPORTER = {
    "hydra": {
        "optbench.cli.command_job",
        "optbench.configuration.compose",
        "optbench.configuration.construct",
        "optbench.configuration.keys",
        "optbench.configuration.explain",
        "optbench.cli.sweep",
        "optbench.launch.multirun",
    },
    "wandb": {"optbench.record.wandb", "optbench.record.workspace"},
    "torchvision": {"optbench.data.torchvision"},
    "ray": {"optbench.launch.ray"},
    "submitit": {"optbench.launch.slurm"},
    "lightning": {"optbench.integrations.lightning"},
    "transformers": {"optbench.integrations.transformers"},
    "matplotlib": {
        "optbench.record.axes",
        "optbench.record.picture",
        "optbench.record.update_picture",
        "optbench.curvature.density",
        "optbench.lab.landscape_command",
        "optbench.studies.figures",
    },
}
WITHOUT_TORCH = [
    "optbench.record.folder",
    "optbench.record.summary",
    "optbench.record.picture",
    "optbench.record.wandb",
    "optbench.dynamics.run_events",
    "optbench.configuration.finished",
    "optbench.study",
    "optbench.tune",
]
WITHOUT_HYDRA = [
    "optbench.leaderboard.__main__",
    "optbench.report",
    "optbench.statistics",
    "optbench.study",
    "optbench.tune",
]


def _modules() -> dict[str, Path]:
    files = [*(ROOT / "optbench").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]
    named = {}
    for file in files:
        relative = file.relative_to(ROOT)
        parts = relative.with_suffix("").parts
        parts = ("optbench", *parts) if parts[0] == "tasks" else parts
        named[".".join(parts).removesuffix(".__init__")] = file
    named.pop("optbench.tasks", None)
    return named


@cache
def _imports(file: Path) -> frozenset[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def _level(module: str) -> int:
    return next(
        i for i, prefix in enumerate(ORDER) if module == prefix or module.startswith(prefix + ".")
    )


MODULES = _modules()


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    if module == "optbench":  # the face of the package: it registers the paths of earlier versions
        assert _imports(MODULES[module]) & MODULES.keys() <= {"optbench.moved"}
        return
    for imported in _imports(MODULES[module]) & MODULES.keys():
        assert imported == "optbench" or _level(imported) >= _level(module), (
            f"{module} imports {imported}"
        )


def test_no_two_files_of_one_name_hold_different_things() -> None:
    """`errors` are those of a room; three more names are of two things.

    `sam` is the optimizer, and the rule for its edge; `subspace` the eigensolver's space, and the
    study, whose file has its name; so is `edge_flow` the equations, and the study of them.
    """
    names = Counter(module.rpartition(".")[2] for module in MODULES if "tasks" not in module)
    twice = {name for name, count in names.items() if count > 1}
    assert twice - {"__main__", "errors", "sam", "subspace", "edge_flow"} == set()


def test_the_map_in_contributing_is_this_list() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    table = page[page.index("| room in") : page.index("| to add")]
    rooms = [re.findall(r"`([a-z_]+)/?`", line.split("|")[1]) for line in table.split("\n")[2:-2]]
    named = [f"optbench.{room}" for line in rooms for room in line]
    ordered = [room for room in ORDER if room not in ("optbench", "optbench.__main__")]
    assert sorted(named) == sorted(ordered)
    levels = [[ORDER.index(f"optbench.{room}") for room in line] for line in rooms]
    assert all(max(upper) < min(lower) for upper, lower in pairwise(levels))


@pytest.mark.parametrize("package", ONLY_IMPORTER)
def test_each_of_these_is_imported_in_its_own_place_only(package: str) -> None:
    importers = {
        m for m, file in MODULES.items() if any(i.split(".")[0] == package for i in _imports(file))
    }
    assert importers <= ONLY_IMPORTER[package]


def test_whoever_reads_a_run_folder_needs_no_torch() -> None:
    program = f"import sys, importlib; [importlib.import_module(m) for m in {WITHOUT_TORCH}]"
    program += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_whoever_starts_or_compares_runs_needs_neither_torch_nor_hydra() -> None:
    program = f"import sys, importlib; [importlib.import_module(m) for m in {WITHOUT_HYDRA}]"
    program += "; assert not {'torch', 'hydra'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_every_folder_of_code_is_in_the_list_of_packages() -> None:
    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / "optbench").rglob("*.py")}
    assert listed == {".".join(folder.parts) for folder in folders} | {
        "optbench.tasks",
        "optbench.conf",
    }


def _run(folder: Path, *start: str, **environment: str) -> str:
    arguments = [
        "task=quadratic",
        "steps=3",
        "wandb.mode=disabled",
        f"results_dir={folder / 'out'}",
    ]
    done = subprocess.run(
        [sys.executable, *start, "-m", "optbench", *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_bare_checkout_and_a_wheel_run_from_any_folder(tmp_path: Path) -> None:
    """`-S`-like isolation is not to be had with torch; what comes first on the path decides."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("optbench", "tasks", "conf"):
        (checkout / name).symlink_to(ROOT / name)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        (checkout / file).symlink_to(ROOT / file)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    bare = _run(elsewhere, PYTHONPATH=str(checkout))

    copy = tmp_path / "copy"
    subprocess.run(["cp", "-rL", checkout, copy], check=True)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            tmp_path,
            copy,
        ],
        check=True,
    )
    wheel = next(tmp_path.glob("optbench-*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"optbench"}
    for folder in ("conf", "tasks"):
        files = {
            file.relative_to(ROOT).as_posix()
            for file in (ROOT / folder).rglob("*.*")
            if "__pycache__" not in file.parts
        }
        assert {f"optbench/{file}" for file in files} <= set(names)
    assert {
        f"optbench/check/templates/{file.name}"
        for file in (ROOT / "optbench/check/templates").iterdir()
    } <= set(names)
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    from_wheel = _run(elsewhere, PYTHONPATH=str(installed))
    assert Path(bare).name == Path(from_wheel).name
