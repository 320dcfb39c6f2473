"""W&B mirrors the run folder, in another process: training never waits for it.

`python -m optbench.record.wandb FOLDER` reads the folder's series as they grow and sends each step
once. Killed or restarted, it goes on after the last step sent; run by hand later, it sends what
never arrived. One mirror at a time works on a folder. The only importer of wandb.
"""

import os
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout

from optbench.boundary import UnreadableError, read_yaml
from optbench.boundary.command_line import Command, Key
from optbench.errors import MachineError, UserError
from optbench.record.folder import (
    CONFIG,
    METRICS,
    MIRROR_LOG,
    PROVENANCE,
    SUMMARY,
    TIMINGS,
    read_json,
)
from optbench.record.last_lines import Tail
from optbench.record.mirror_state import STATE, State

MODES = ("auto", "online", "offline", "disabled")
LOG, LOCK = MIRROR_LOG, "wandb.lock"
SERIES = (METRICS, TIMINGS)
INIT_TIMEOUT_SECONDS = 30
POLL_SECONDS = 0.5
LOCK_SECONDS = 60.0  # how long a mirror whose training has ended waits for the one before it


class Mirror:
    """The training process's side: starts the mirror and, at the end, says how it went."""

    def __init__(self, folder: Path, mode: str) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._trouble = ""
        if mode == "disabled" or (mode == "auto" and os.environ.get("WANDB_MODE") == "disabled"):
            return
        try:
            self._process = _start(folder)
        except OSError as why:  # no room, no processes left: W&B's trouble, not the training's
            self._trouble = f" ({why})"

    def close(self, patience_seconds: float) -> str:
        """Let the mirror finish, for so long at most; return a line on where the run is in W&B."""
        folder = shlex.quote(str(self._folder.absolute()))
        again = f"try again: python -m optbench.record.wandb {folder}"
        if self._process is None:
            return (
                f"W&B: nothing was sent{self._trouble}; {again}"
                if self._trouble
                else "W&B: disabled"
            )
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            code = self._process.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            return f"W&B: still sending, on its own; see {self._folder / LOG}"
        state = State.read(self._folder)
        if code or not (state.url or state.offline):
            return f"W&B: nothing was sent, see {self._folder / LOG}; {again}"
        return state.where(self._folder)


def _start(folder: Path) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    # a FIFO in its place is an error, not a wait
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
    log = os.open(folder / LOG, flags, 0o644)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "optbench.record.wandb", str(folder.absolute()), "follow=true"],
            # its end tells the mirror that this process has ended, however it did
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the training
            env=environment,
        )
    finally:
        os.close(log)


class _Sender:
    """Sends rows of history to a W&B run, counted on over all of the run's parts."""

    def __init__(self, wandb: Any, run: Any, state: State, folder: Path) -> None:
        self._wandb, self._run, self.state, self._folder = wandb, run, state, folder
        state.rows = max(state.rows, run.starting_step)
        self.refused = 0
        self._kept = False
        self.keep()

    def keep(self) -> None:
        """Write the state, unless the folder was cleared for a new run with another mirror."""
        if self._kept and not (self._folder / STATE).exists():
            raise MachineError(
                f"{self._folder} has been cleared: the mirror of what was there ends"
            )
        self.state.write(self._folder)
        self._kept = (self._folder / STATE).exists()

    def send(self, line: dict[str, Any]) -> None:
        """Send a line, or count it where W&B cannot take its values, such as a list of words."""
        try:
            self.log(_with_histograms(self._wandb, line))
        except (TypeError, ValueError, ArithmeticError, RecursionError) as why:
            print(f"a line of step {line['step']} was not sent: {why}", flush=True)
            self.refused += 1

    def log(self, row: dict[str, Any]) -> None:
        # Without a number of our own, the rows of a second offline part would be counted from 0
        # again.
        self._run.log(row, step=self.state.rows, commit=True)
        self.state.rows += 1


def mirror(folder: Path, follow: bool) -> State:
    """Send the run in `folder` to W&B; follow it while standard input stays open if `follow`."""
    config = _config(folder)
    import wandb

    state = State.read(folder)
    state.write(folder)
    run = _init(wandb, folder, config, state, _mode(wandb, config["wandb"]["mode"]))
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    sender = _Sender(wandb, run, state, folder)
    _send_series(folder, sender, follow)
    summary = read_json(folder / SUMMARY) or {}
    run.summary.update({key: value for key, value in summary.items() if key != "process"})
    _send_pictures(wandb, folder, sender)
    sender.keep()
    run.finish(exit_code=0 if summary.get("status") in ("done", "diverged") else 1)
    return state


def _send_pictures(wandb: Any, folder: Path, sender: _Sender) -> None:
    for picture in sorted(file for file in folder.glob("*.png") if file.is_file()):
        try:
            sender.log({picture.stem: wandb.Image(str(picture))})
        except (OSError, ValueError, SyntaxError) as why:  # Pillow's, for a damaged picture
            print(f"{picture.name} was not sent: {why}", flush=True)


def _send_series(folder: Path, sender: _Sender, follow: bool) -> None:
    state = sender.state
    tails = [Tail(folder / name, state.steps.get(name, -1)) for name in SERIES]
    ended = not follow
    while True:
        before = asdict(state)
        for tail in tails:
            for line in tail.read():
                sender.send(line)
        state.steps = {tail.path.name: tail.last for tail in tails}
        state.damaged = sender.refused + sum(tail.damaged for tail in tails)
        if asdict(state) != before:
            sender.keep()
        if ended:
            return
        ended = _standard_input_ended(POLL_SECONDS)


def _with_histograms(wandb: Any, line: dict[str, Any]) -> dict[str, Any]:
    """Turn lists into histograms; `x/nodes` and `x/weights` are one, `x/density`, weighted."""
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
    try:
        config: dict[str, Any] = read_yaml(folder / CONFIG)
        for key in ("mode", "project", "entity", "group", "tags"):
            config["wandb"][key]
    except (UnreadableError, TypeError, LookupError) as why:
        line = " ".join(str(why).split())
        raise MachineError(
            f"cannot read what to send from {folder / CONFIG} ({line}): give the run's command "
            "again to write it"
        ) from why
    return config


def _mode(wandb: Any, wanted: str) -> tuple[str, str]:
    """Return (online or offline, why), asking the user nothing."""
    from_environment = os.environ.get("WANDB_MODE", "")
    if wanted not in ("online", "offline") and from_environment in ("online", "offline"):
        return from_environment, "WANDB_MODE says so"
    # `disabled` gets here only by hand, and then the hand decides
    if wanted in ("online", "offline"):
        return wanted, "wandb.mode says so"
    try:
        logged_in = bool(wandb.login(verify=False))
    except Exception:  # no key, no network, a broken netrc: whatever it is, offline works
        logged_in = False
    return ("online", "") if logged_in else ("offline", "no login here")


def _init(
    wandb: Any, folder: Path, config: dict[str, Any], state: State, mode: tuple[str, str]
) -> Any:
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
                id=state.id,
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
        if run.offline:
            state.offline.append(os.path.relpath(Path(run.dir).parent, folder))
        else:
            state.url = run.url
        state.why = why
        return run


def _hold(folder: Path, follow: bool) -> FileLock:
    """Take the folder for this mirror alone.

    The mirror of a run just killed may still be finishing: one that follows waits for it while its
    own training goes on, and a little longer. One started by hand ends at once.
    """
    lock = FileLock(folder / LOCK)
    last_moment = float("inf") if follow else 0.0
    while True:
        try:
            lock.acquire(timeout=0)
            return lock
        except Timeout as why:
            if time.monotonic() > last_moment:
                raise MachineError(
                    f"another mirror is at work on {folder}: wait until it has ended"
                ) from why
        if last_moment < float("inf"):
            time.sleep(POLL_SECONDS)
        elif _standard_input_ended(POLL_SECONDS):
            last_moment = time.monotonic() + LOCK_SECONDS


def log_table(
    project: str,
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str | float | None]],
    kind: str = "leaderboard",
) -> str:
    """Log a table to W&B, in a run of this kind (`leaderboard`, `measures`); return where it is."""
    import wandb

    mode, why = _mode(wandb, "auto")
    settings: dict[str, Any] = {"job_type": kind, "group": name, "mode": mode}
    run = wandb.init(project=project, name=f"{kind}-{name}", **settings)
    run.log(
        {f"{kind}/{name}": wandb.Table(columns=list(columns), data=[list(row) for row in rows])}
    )
    run.finish()
    wandb.teardown()  # its service writes on after finish() has returned
    return (
        f"W&B: {run.url}"
        if mode == "online"
        else f"W&B: offline ({why}); send it: wandb sync {Path(run.dir).parent}"
    )


@dataclass(frozen=True)
class Settings:
    """Send a run folder to W&B: what of it has not been sent before."""

    folder: Annotated[Path, Key("the run folder", placeholder="RUN_FOLDER", positional=True)]
    follow: Annotated[bool, Key("go on until standard input ends, as a run has its mirror do")] = (
        False
    )


COMMAND = Command("optbench.record.wandb", Settings, examples=("results/runs/NAME",))


def main() -> None:
    """Mirror the run folder that the command line names."""
    # a signal ends W&B's own process, too: it is not held up by an exception here
    COMMAND.run(send, heed_signals=False)


def send(settings: Settings) -> int:
    """Mirror the run folder, and return the exit code."""
    folder = settings.folder
    if not (folder / CONFIG).exists():
        raise UserError(f"{folder} is no run folder: it has no {CONFIG}")
    with _hold(folder, settings.follow):
        print(mirror(folder, settings.follow).where(folder), flush=True)
    return 0


if __name__ == "__main__":
    main()
