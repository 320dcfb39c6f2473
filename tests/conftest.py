"""Fixtures that many tests share. No test needs the network."""

import gc
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from optbench.cli.command_job import main


def pytest_collection_finish() -> None:
    """Spare the collector what is imported by now: 500,000 objects, a third of a second a round."""
    import_module("torch._dynamo")  # the first optimizer would
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """The run folder: the last line of standard output."""
        return Path(self.out.splitlines()[-1])


Call = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks of what was verified go to a folder of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


Command = Callable[..., Outcome]
# neither is part of a result; a picture takes half a second
OFF = {"wandb.mode": "disabled", "picture": "false"}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """The `main` of a command, called in this process, in a folder, with the arguments of a command line."""

    def run(main: Callable[[], object], folder: Path, *arguments: str) -> Outcome:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capfd.readouterr()
        return Outcome(int(stop.value.code or 0), out, err)

    return run


@pytest.fixture
def optbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: Call) -> Command:
    """`python -m optbench ARGUMENTS` in this process, in a folder of its own, W&B and picture off unless asked for."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        off = [
            f"{key}={value}"
            for key, value in OFF.items()
            if not any(a.startswith(key) for a in arguments)
        ]
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        return called(main, Path.cwd(), *arguments, *off)

    return run


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launcher says to the processes it starts is not said to those of later tests."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium, driven by Playwright."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser here ({', '.join(BROWSERS)}): the page was not tested")
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="no playwright here: the page was not tested"
    )
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()
