"""`python -m optbench`: command line → configuration → run."""

import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from optbench.boundary.counting import counted
from optbench.cli.batch import Member
from optbench.cli.batch_processes import run_batch_in_processes
from optbench.cli.job import run_job
from optbench.cli.sweep import QUEUED, Elsewhere, Report, RunError, telling_failures
from optbench.configuration.compose import (
    config_dirs,
    find_plugins,
    options_first,
    with_paths,
    without_options,
)
from optbench.configuration.explain import explain
from optbench.configuration.finished import PresentData
from optbench.configuration.keys import check
from optbench.configuration.naming import run_name
from optbench.errors import UserError, exit_with, printable, who_ended
from optbench.paths import conf_folder
from optbench.processes import place
from optbench.ranks.meeting import Meeting, meet
from optbench.startup import secure_terminal

HELP = {"--help", "-h"}


def main(
    elsewhere: Elsewhere | None = None,
    report: Report | None = None,
    sweep_keys: Sequence[str] = (),
) -> None:
    """Run what the command line says.

    Exit code 0 is finished (a divergence too), 1 and 2 an error, 130 Ctrl-C.

    Args:
        elsewhere: Takes from the words of the command line those that say where the runs of a
            sweep are made, and returns what makes them, or None for this process.
        report: Writes about the runs of a sweep, once all have ended; None for nothing.
        sweep_keys: Lines of the help on these words.
    """
    wants_tracebacks = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")

    def work(meeting: Meeting | None) -> int:
        if HELP & set(sys.argv[1:]):
            return _help(sweep_keys)
        return _main(wants_tracebacks, elsewhere, report, meeting)

    try:
        meeting = meet(place(), explain) if place().size > 1 else None
    except UserError as why:  # it has not met the others, so it says it itself
        print(f"optbench: {why}", file=sys.stderr)
        sys.exit(why.exit_code)
    if meeting is None:
        _exit(lambda: work(None), wants_tracebacks)
    with _parting(meeting):
        _exit(lambda: work(meeting), wants_tracebacks, meeting)


@contextmanager
def _parting(meeting: Meeting) -> Iterator[None]:
    """Context of all that a process does in which others have a part; the leader alone prints."""
    errors, code = sys.stderr, 1
    try:
        with nullcontext() if meeting.leads else silent():
            yield
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        raise
    except Exception as error:
        meeting.leave_word(error, "".join(traceback.format_exception(error)).rstrip())
        if meeting.leads:
            raise
        sys.exit(code)  # the traceback is printed below
    finally:
        meeting.part(code, errors)


def _exit(
    work: Callable[[], int], wants_tracebacks: bool, meeting: Meeting | None = None
) -> NoReturn:
    def explained(error: BaseException, _: str) -> tuple[str | None, int]:
        if meeting is not None:
            meeting.leave_word(error)
        return explain(error)

    exit_with(
        work,
        explain=explained,
        heed_signals=False,  # they are the training loop's, which saves a checkpoint first
        tracebacks=wants_tracebacks,
    )


def _help(sweep_keys: Sequence[str]) -> int:
    from optbench.cli.help import help_page  # a run needs none of it

    _find_own_files()
    _find_plugins()
    folders = config_dirs(sys.argv[1:])
    print(help_page(without_options(sys.argv[1:]), folders, sweep_keys))
    return 0


@contextmanager
def silent() -> Iterator[None]:
    """Context in which this process prints nothing."""
    with (
        Path(os.devnull).open("w", encoding="utf-8", errors="replace") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        yield


def _main(
    wants_tracebacks: bool,
    elsewhere: Elsewhere | None,
    report: Report | None,
    meeting: Meeting | None,
) -> int:
    _find_own_files()
    if place().size > 1 and {"--multirun", "-m"} & set(sys.argv):
        raise UserError(
            f"{counted(place().size, 'process')} that torchrun starts make one run: leave out "
            "--multirun; or torchrun, without which a sweep has processes of its own (jobs=N)"
        )
    engine = elsewhere(sys.argv) if elsewhere is not None else None
    _find_plugins()
    # Without it Hydra prints an error in its own words, and exits.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    config_dirs(sys.argv[1:])
    sys.argv[1:] = options_first(with_paths(sys.argv[1:]))
    job = Job(wants_tracebacks, _process(), meeting)
    try:
        with telling_failures(_process(), engine) as sweep:
            hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(
                job
            )()
    except (
        RunError
    ) as error:  # printed already; a sweeper other than Hydra's may end with the first
        return error.code
    codes = [*sweep.codes, *job.run_queued()]
    sweep.print_table()
    if report is not None and sweep.folder is not None and len(sweep.runs) > 1:
        try:
            line = report(sweep.runs, sweep.folder)
        except OSError as why:  # a full disk, most likely: the runs are made all the same
            line = f"no report: {why}"
        print(printable(line), end="\n" * bool(line))
    return max(codes, default=0)


@dataclass(frozen=True)
class Job:
    """What Hydra calls with each configuration; it may be sent to another process.

    Attributes:
        wants_tracebacks: Whether errors that one line explains get a traceback, too.
        began_in: Process of the command.
        meeting: The processes that make this run; None if this one makes it alone.
        present: Data and code as they are now.
    """

    wants_tracebacks: bool
    began_in: str
    meeting: Meeting | None = None
    present: PresentData = field(default_factory=PresentData)
    queued: list[Member] = field(default_factory=list)

    def run_queued(self) -> list[int]:
        """Run what `batched=true` has queued, and return the exit codes of what failed."""
        codes = []
        groups: dict[str, list[Member]] = {}
        for member in self.queued:
            groups.setdefault(member.group, []).append(member)
        for members in groups.values():
            for member, ended in zip(
                members, run_batch_in_processes(members, self.present), strict=True
            ):
                if isinstance(ended, Exception):
                    which = f"failed: {member.words}: "
                    text, code = _explained(ended, self.wants_tracebacks, which)
                    print(text, file=sys.stderr)
                    codes.append(code)
        return codes

    def __call__(self, config: DictConfig) -> dict[str, str]:
        """Run, and return status and folder. Ctrl-C ends a sweep too; an error does not."""
        if _process() != self.began_in:
            _find_own_files()
            secure_terminal()
        try:
            member = _prepared(config)
            sweep = HydraConfig.get().mode == RunMode.MULTIRUN
            if config.batched and sweep and _process() == self.began_in:
                self.queued.append(member)
                return {"status": QUEUED, "folder": str(member.folder)}
            return {"status": _run_one(member, self.present), "folder": str(member.folder)}
        except SystemExit as ended:
            error: Exception = UserError(who_ended(ended))
            error.__cause__ = ended
        except Exception as why:
            error = why
        text, code = _explained(error, self.wants_tracebacks, _which())
        process = _process()
        if process == self.began_in:
            self._tell(error, text)
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            sys.exit(code)
        raise RunError(text, code, process)

    def _tell(self, error: BaseException, text: str) -> None:
        """Print an error; of several processes the leader does, and the others what it has not."""
        if self.meeting is not None:
            self.meeting.leave_word(error, text)
        print(text, file=sys.stderr)


def _prepared(config: DictConfig) -> Member:
    """Check one point of the configuration space, and name its run."""
    hydra_config = HydraConfig.get()
    choices = {
        key: value
        for key, value in hydra_config.runtime.choices.items()
        if not key.startswith("hydra/")
    }
    prepare(config, choices, hydra_config.overrides.task)
    if hydra_config.mode == RunMode.MULTIRUN and config.wandb.group is None:
        config.wandb.group = "sweep-" + Path(hydra_config.sweep.dir).name
    words = " ".join(hydra_config.overrides.task)
    return Member(config, run_name(config, choices), choices, words)


def _run_one(member: Member, present: PresentData) -> str:
    status = run_job(member.config, member.name, member.choices, present)
    if status == "interrupted":
        raise KeyboardInterrupt
    return status


def prepare(config: DictConfig, choices: dict[str, str], overrides: Iterable[str]) -> None:
    """Check a composed configuration, and complete it by what was said on purpose.

    Raises:
        UserError: If it cannot be.
    """
    given = {override.lstrip("+").split("=")[0] for override in overrides}
    if "epochs" in given:
        if "steps" in given:
            raise UserError("steps and epochs both say how long to train: give one of them")
        config.steps = None
    check(config)
    if choices["optimizer"] == "custom" or "optimizer._target_" in given:
        choices["optimizer"] = str(config.optimizer._target_).rsplit(".", 1)[-1]


def _find_own_files() -> None:
    """Let `my_file.py` of this folder be imported.

    `python -m optbench` does so by itself, the script `optbench` does not.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def _find_plugins() -> None:
    """Find the YAMLs that packages bring along, and say what is wrong with any."""
    for problem in find_plugins():
        print(f"optbench: {problem}", file=sys.stderr)


def _process() -> str:
    """Name this process: host and number."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _which() -> str:
    """Which run of a sweep failed; of one alone there is nothing to say."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode != RunMode.MULTIRUN:
        return ""
    return f"failed: {' '.join(hydra_config.overrides.task)}: "


def _explained(error: BaseException, wants_traceback: bool, which: str = "") -> tuple[str, int]:
    """Return what to print of an error, and the exit code.

    An error that the user can mend is one line.
    """
    message, code = explain(error)
    lines = []
    if message is None or wants_traceback:
        lines.append("".join(traceback.format_exception(error)).rstrip())
    if message is not None or which:
        lines.append(f"optbench: {which}{message or f'{type(error).__name__}: {error}'}")
    return "\n".join(lines), code
