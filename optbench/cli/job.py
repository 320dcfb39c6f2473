"""One run, from its configuration to its closed folder.

1. Skip it, resume it or start it. 2. Train. 3. Sum up. 4. Draw. 5. Let the mirror finish.
"""

import contextlib
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from optbench.boundary import read_yaml
from optbench.configuration.build import build
from optbench.configuration.finished import PresentData
from optbench.dynamics.run_events import report
from optbench.errors import MachineError
from optbench.ranks import Ranks
from optbench.ranks.distributed import joined
from optbench.record import folder as record
from optbench.record.axes import Records
from optbench.record.folder import RunFolder
from optbench.record.mirror import Mirrors, short_config
from optbench.record.picture import PICTURE, draw, is_drawn, pictures
from optbench.record.provenance import changed_versions, versions
from optbench.record.sources import sources
from optbench.record.summary import summarise
from optbench.record.terminal import Terminal, closing_table, next_of_series
from optbench.run.follow import GO, NOTHING_TO_DO, follow, share_start
from optbench.run.loop import Experiment, Runner
from optbench.run.memory import keep_freed_memory, peak_gib, state_gib
from optbench.run.resume import Start, resume_or_start
from optbench.run.threads import threads_of


def run_job(config: DictConfig, name: str, choices: Mapping[str, str], present: PresentData) -> str:
    """Run, and return the status. Prints the table and, as its last line, the run folder's path.

    Several processes that torchrun has started make one run; the first of them leads it. A run
    that is finished, and whole, with data and code that are still the same, is not run again,
    and one that was cut short goes on where it was, unless `overwrite`.

    Args:
        config: The configuration.
        name: Name of the run folder.
        choices: The entry chosen of each group.
        present: Data and code as they are now.

    Raises:
        UserError: If something in the way can be mended by the user.
    """
    with joined(str(config.device)) as ranks:
        if ranks.leads:
            return _lead(config, name, choices, present, ranks)
        if ranks.tell(b"") == NOTHING_TO_DO:
            return "done"
        keep_freed_memory()
        experiment = build(config, ranks)
        with threads_of(experiment):
            return str(follow(experiment)["status"])


def _lead(
    config: DictConfig,
    name: str,
    choices: Mapping[str, str],
    present: PresentData,
    ranks: Ranks,
) -> str:
    path = Path(config.results_dir) / "runs" / name
    next_of_series()
    before = record.read_finished(path)
    if before and not config.overwrite:
        present.check(path, lambda: config, "overwrite=true runs it again; or ")
        others = _other_versions(path)
        closing_table(before, config.optimizer.get("lr"))
        print(
            f"finished before ({before['status']} at step {before['step']}{others}); "
            "overwrite=true runs it again"
        )
        _complete(path, config.picture)
        print(path)
        ranks.tell(NOTHING_TO_DO)
        return str(before["status"])
    ranks.tell(GO)
    keep_freed_memory()
    experiment = build(config, ranks)
    with RunFolder(path) as folder, threads_of(experiment):
        if config.overwrite:
            folder.clear()
        status = _train(experiment, folder, config, choices)
    print(path)
    return status


@dataclass
class Session:
    """A run with its folder open: begun or resumed, then trained, then closed.

    Attributes:
        runner: What trains it.
        mirror: W&B, and what `mirrors` names.
        is_closed: Whether its end has been written down.
    """

    config: DictConfig
    folder: RunFolder
    runner: Runner
    mirror: Mirrors
    is_closed: bool = False

    @classmethod
    def begin(
        cls,
        experiment: Experiment,
        folder: RunFolder,
        config: DictConfig,
        choices: Mapping[str, str],
        terminal: Terminal,
    ) -> "Session":
        """Resume the run or start it, and write down what it is."""
        settings = OmegaConf.to_container(config, resolve=True)
        assert isinstance(settings, dict)
        about = {"name": folder.path.name, **choices, "seed": config.seed}
        if experiment.inherited is not None:
            about["start_from"] = dict(experiment.inherited)
            terminal.say(_inherited(experiment.inherited))
        ranks = experiment.update.ranks
        start = Start(lambda: build(config, ranks), about, sources(settings))
        runner = resume_or_start(start, experiment, folder, terminal)
        share_start(runner)
        record.write_whole(
            folder.path / record.CONFIG,
            OmegaConf.to_yaml({**settings, "choices": dict(choices)}),
        )
        folder.write_summary("running", runner.progress())
        return cls(config, folder, runner, Mirrors(folder.path, config.mirrors, config.wandb.mode))

    def close(self, outcome: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """Sum up, draw, let the mirror finish; return the summary, and what the mirror said."""
        self.is_closed = True
        try:
            whole = dict(outcome) | _memory(self.runner.experiment)
            records = record.read_lines(self.folder.path / record.METRICS)
            summary = whole | summarise(records) | {"events": report(records)}
            self.folder.write_summary(whole["status"], summary)
            if self.config.picture:
                _draw(records, self.folder, self.runner.terminal.say)
        finally:
            said = self.mirror.close(self.config.wandb.wait_seconds)
        return summary, said

    def crashed(self, error: BaseException) -> None:
        """Write down that an error ended it."""
        self.is_closed = True
        # a full disk, most likely; then the error itself says so
        with contextlib.suppress(OSError):
            self.folder.write_summary(
                "crashed", self.runner.progress() | {"error": f"{type(error).__name__}: {error}"}
            )


def _train(
    experiment: Experiment, folder: RunFolder, config: DictConfig, choices: Mapping[str, str]
) -> str:
    terminal = Terminal(experiment.settings.steps)
    session = Session.begin(experiment, folder, config, choices, terminal)
    if experiment.update.ranks.size > 1:
        # Training heeds one; closing does not: torchrun sends one to all where a process has died.
        signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        outcome = _run(session)
    except BaseException:
        session.mirror.close(config.wandb.wait_seconds)
        raise
    summary, said = session.close(outcome)
    closing_table(summary, config.optimizer.get("lr"))
    if config.picture:
        print(f"picture: {folder.path / PICTURE}")
    print(said)
    return str(outcome["status"])


def _run(session: Session) -> dict[str, Any]:
    runner = session.runner
    try:
        with runner.terminal:
            outcome = runner.run()
        if outcome["status"] == "done":
            runner.save()
    except BaseException as error:
        session.crashed(error)
        raise
    return outcome


def _inherited(record: Mapping[str, Any]) -> str:
    took, left = ("; ".join(record[key]) or "nothing" for key in ("took", "left"))
    return f"begins with {record['run']} at step {record['step']}: took {took}; left {left}"


def _memory(experiment: Experiment) -> dict[str, float]:
    update = experiment.update
    return {
        "peak_gib": peak_gib(update.parameters[0].device),
        "optimizer_gib": state_gib(update.optimizer),
    }


def _other_versions(path: Path) -> str:
    changed = changed_versions(
        record.read_json(path / record.PROVENANCE) or {}, {"versions": versions()}
    )
    return f"; {changed}" if changed else ""


def _complete(path: Path, picture: bool) -> None:
    """Draw the pictures that a killed process has not drawn; remove what it left half written."""
    records = record.read_lines(path / record.METRICS) if picture else []
    missing = picture and not all(is_drawn(path / name) for name in pictures(records))
    if not missing and not record.leftovers(path):
        return
    try:
        with RunFolder(path) as folder:
            if missing:
                _draw(records, folder, print)
    except MachineError as why:
        print(why)


def _title(path: Path) -> str:
    """What was run, from the folder's configuration: `adam, lr 0.002 · digits, mlp · seed 3`."""
    about = short_config(read_yaml(path / record.CONFIG))
    rate = f", lr {about['lr']:g}" if "lr" in about else ""
    return f"{about['optimizer']}{rate} · {about['task']}, {about['model']} · seed {about['seed']}"


def _draw(records: Records, folder: RunFolder, say: Callable[[str], None]) -> None:
    try:
        draw(records, _title(folder.path), folder.path, folder.path.name)
    except Exception as why:  # a picture can be drawn again, a result must not be lost for it
        say(f"could not draw the picture: {why}")
