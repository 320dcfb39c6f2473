"""W&B mirrors the run folder, in a process of its own: whatever W&B does, training never waits for it.

`python -m optbench.record.wandb FOLDER` reads the folder's files as they grow and sends what it reads. Killed
or restarted, it goes on where it stopped; run by hand later, it sends what never arrived. The only importer
of wandb.
"""

import json
import os
import select
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optbench.arguments import VERSION
from optbench.record.folder import CONFIG, METRICS, PROVENANCE, SUMMARY, TIMINGS, read_json, write_whole

MODES = ("auto", "online", "offline", "disabled")
STATE, LOG = "wandb.json", "wandb.log"
SERIES = (METRICS, TIMINGS)
INIT_TIMEOUT_SECONDS = 30
POLL_SECONDS = 0.5
FOLLOW = "--follow"  # until standard input ends


class Mirror:
    """The training process's side: starts the mirror and, at the end, says how it went."""

    def __init__(self, folder: Path, mode: str) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        if mode == "disabled" or (mode == "auto" and os.environ.get("WANDB_MODE") == "disabled"):
            return
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, "-m", "optbench.record.wandb", str(folder), FOLLOW]
        with (folder / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # its end tells the mirror that this process has ended, however it did
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the training
                env=environment,
            )

    def close(self, patience_seconds: float) -> str:
        """Let the mirror finish, for so long at most, and return a line on where the run is in W&B."""
        if self._process is None:
            return "W&B: disabled"
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            code = self._process.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            return f"W&B: still sending, on its own; see {self._folder / LOG}"
        state = read_json(self._folder / STATE) or {}
        if code or "directory" not in state:
            return (
                f"W&B: nothing was sent, see {self._folder / LOG}; "
                f"try again: python -m optbench.record.wandb {self._folder}"
            )
        if state.get("url"):
            return f"W&B: {state['url']}"
        return f"W&B: offline ({state['why']}); send it: wandb sync {state['directory']}"


class _Tail:
    """Whole new lines of a growing file, from an offset on."""

    def __init__(self, path: Path, offset: int) -> None:
        self.path, self.offset = path, offset

    def read(self) -> list[dict[str, Any]]:
        # A resumed run cuts the file back and writes the same bytes again: below the offset is old news.
        if not self.path.exists() or self.path.stat().st_size <= self.offset:
            return []
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            whole, _, _ = stream.read().rpartition(b"\n")
        if not whole:
            return []
        self.offset += len(whole) + 1
        return [json.loads(line) for line in whole.split(b"\n")]


def mirror(folder: Path, follow: bool) -> None:
    """Send the run in `folder` to W&B; follow it while standard input stays open if `follow`."""
    import wandb

    config = _config(folder)
    settings = config["wandb"]
    state = read_json(folder / STATE) or {"id": uuid.uuid4().hex[:8], "offsets": {}}
    run = _init(wandb, folder, config, state, _mode(wandb, settings["mode"]))
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    tails = {name: _Tail(folder / name, state["offsets"].get(name, 0)) for name in SERIES}
    ended = not follow
    while True:
        for tail in tails.values():
            for line in tail.read():
                run.log(_with_histograms(wandb, line))
        state["offsets"] = {name: tail.offset for name, tail in tails.items()}
        write_whole(folder / STATE, json.dumps(state))
        if ended:
            break
        ended = _standard_input_ended(POLL_SECONDS)
    summary = read_json(folder / SUMMARY) or {}
    run.summary.update({key: value for key, value in summary.items() if key != "process"})
    for picture in sorted(folder.glob("*.png")):
        run.log({picture.stem: wandb.Image(str(picture))})
    run.finish(exit_code=0 if summary.get("status") in ("done", "diverged") else 1)


def _with_histograms(wandb: Any, line: dict[str, Any]) -> dict[str, Any]:
    """Turn lists into histograms; `x/nodes` with `x/weights` is one, weighted, called `x/density`."""
    import numpy

    sent = {key: value for key, value in line.items() if not isinstance(value, list)}
    lists = {key: value for key, value in line.items() if isinstance(value, list)}
    for key in [key for key in lists if key.endswith("/nodes")]:
        group = key.removesuffix("/nodes")
        nodes, weights = lists.pop(key), lists.pop(f"{group}/weights", None)
        counts = numpy.histogram(nodes, bins=64, weights=weights)
        sent[f"{group}/density"] = wandb.Histogram(np_histogram=counts)
    return sent | {key: wandb.Histogram(value) for key, value in lists.items()}


def _standard_input_ended(patience_seconds: float) -> bool:
    ready, _, _ = select.select([sys.stdin], [], [], patience_seconds)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1024)


def _config(folder: Path) -> dict[str, Any]:
    import yaml

    config: dict[str, Any] = yaml.safe_load((folder / CONFIG).read_text())
    return config


def _mode(wandb: Any, wanted: str) -> tuple[str, str]:
    """Return (online or offline, why), asking the user nothing."""
    from_environment = os.environ.get("WANDB_MODE", "")
    if wanted not in ("online", "offline") and from_environment in ("online", "offline"):
        return from_environment, "WANDB_MODE says so"
    if wanted in ("online", "offline"):  # `disabled` gets here only by hand, and then the hand decides
        return wanted, "wandb.mode says so"
    try:
        logged_in = bool(wandb.login(verify=False))
    except Exception:  # no key, no network, a broken netrc: whatever it is, offline works
        logged_in = False
    return ("online", "") if logged_in else ("offline", "no login here")


def _init(wandb: Any, folder: Path, config: dict[str, Any], state: dict[str, Any], mode: tuple[str, str]) -> Any:
    settings = config["wandb"]
    options = wandb.Settings(
        init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_TIMEOUT_SECONDS)),
        console="off",
        x_save_requirements=False,
    )
    attempt, why = mode
    while True:
        try:
            run = wandb.init(
                project=settings["project"],
                entity=settings["entity"],
                group=settings["group"],
                tags=settings["tags"],
                name=folder.name,
                id=state["id"],
                resume="allow",
                job_type=settings.get("job_type", "train"),
                mode=attempt,
                dir=str(folder),
                config=config | {"provenance": read_json(folder / PROVENANCE)},
                settings=options,
            )
        except Exception as error:  # wandb's own classes, its service's, the network's
            print(f"W&B {attempt}: {error}", flush=True)
            if attempt == "offline":
                raise
            wandb.teardown()  # else its service holds the id
            attempt, why = "offline", f"online failed: {str(error).splitlines()[0]}"
            continue
        directory = os.path.relpath(Path(run.dir).parent)
        state |= {"url": None if run.offline else run.url, "directory": directory, "why": why}
        return run


def log_table(project: str, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Log a leaderboard as a W&B table in a run of its own, of job type `leaderboard`; return where it is."""
    import wandb

    mode, why = _mode(wandb, "auto")
    settings: dict[str, Any] = {"job_type": "leaderboard", "group": name, "mode": mode}
    run = wandb.init(project=project, name=f"leaderboard-{name}", **settings)
    run.log({f"leaderboard/{name}": wandb.Table(columns=list(columns), data=[list(row) for row in rows])})
    run.finish()
    wandb.teardown()  # its service writes on after finish() has returned
    return (
        f"W&B: {run.url}" if mode == "online" else f"W&B: offline ({why}); send it: wandb sync {Path(run.dir).parent}"
    )


def main() -> None:
    """Mirror the run folder named on the command line: what there is of it, or, told to, until it ends."""
    arguments = sys.argv[1:]
    if "--version" in arguments:
        print(VERSION)
        return
    follow = FOLLOW in arguments
    folders = [Path(argument) for argument in arguments if argument != FOLLOW]
    if len(folders) != 1 or not (folders[0] / CONFIG).exists():
        sys.exit("usage: python -m optbench.record.wandb RUN_FOLDER\nSends a run folder to W&B, what is new of it.")
    mirror(folders[0], follow)


if __name__ == "__main__":
    main()
