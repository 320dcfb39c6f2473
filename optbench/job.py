"""One run, from its configuration to its closed folder: skip, resume or start; train; sum up; draw; mirror."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from optbench import checkpoint
from optbench.config import build
from optbench.dynamics.report import report
from optbench.errors import UserError
from optbench.memory import keep_freed_memory, peak_gib, state_gib
from optbench.record import folder as record
from optbench.record.folder import RunFolder
from optbench.record.picture import PICTURE, Records, draw
from optbench.record.provenance import provenance
from optbench.record.summary import summarise
from optbench.record.terminal import Terminal, closing_table
from optbench.record.wandb import Mirror
from optbench.reuse import PresentData
from optbench.runner import Experiment, Runner


def run_job(config: DictConfig, name: str, choices: Mapping[str, str], present: PresentData) -> str:
    """Run, and return the status. Prints the table and, as its last line, the run folder's path.

    A run that is finished, on data that are still the same, is not run again, and one that was cut short goes on
    where it was, unless `overwrite`.

    Args:
        config: The configuration.
        name: Of the run folder.
        choices: The entry chosen of each group.
        present: What is known of the data as they are now.

    Raises:
        UserError: If something in the way can be mended by the user.
    """
    path = Path(config.results_dir) / "runs" / name
    before = record.read_finished(path)
    if before and not config.overwrite:
        present.check(path, lambda: config, "overwrite=true runs it again; or ")
        print(f"finished before ({before['status']} at step {before['step']}); overwrite=true runs it again")
        print(path)
        return str(before["status"])
    keep_freed_memory()
    experiment = build(config)
    with RunFolder(path) as folder:
        if config.overwrite:
            folder.clear()
        status = _train(experiment, folder, config, choices)
    print(path)
    return status


def _train(experiment: Experiment, folder: RunFolder, config: DictConfig, choices: Mapping[str, str]) -> str:
    terminal = Terminal(experiment.settings.steps)
    state = _resume_or_start(experiment, folder, config, choices, terminal)
    runner = Runner(experiment, folder, terminal, {"name": folder.path.name, **choices, "seed": config.seed})
    if state:
        runner.load(state)
    folder.write_summary("running", runner.progress())
    mirror = Mirror(folder.path, config.wandb.mode)
    try:
        outcome = _run(runner) | _memory(experiment)
        records = record.read_lines(folder.path / record.METRICS)
        summary = outcome | summarise(records) | {"events": report(records)}
        folder.write_summary(outcome["status"], summary)
        if config.picture:
            _draw(records, folder, terminal)
    finally:
        said = mirror.close(config.wandb.wait_seconds)
    closing_table(summary, config.optimizer.get("lr"))
    if config.picture:
        print(f"picture: {folder.path / PICTURE}")
    print(said)
    return str(outcome["status"])


def _resume_or_start(
    experiment: Experiment, folder: RunFolder, config: DictConfig, choices: Mapping[str, str], terminal: Terminal
) -> dict[str, Any] | None:
    """Return the checkpoint to go on from, None to start, with the folder's files as that wants them."""
    state, damaged = checkpoint.load(folder.path)
    for line in damaged:
        terminal.say(line)
    if state and any(
        not (folder.path / name).exists() or (folder.path / name).stat().st_size < offset
        for name, offset in state["offsets"].items()
    ):
        terminal.say("the series are shorter than the checkpoint says; starting again")
        state = None
    origin = provenance(experiment.task, experiment.update.model, experiment.initial_loss)
    earlier = folder.provenance
    if state and earlier:
        for key, what in (("data_hash", "data"), ("init_hash", "initial weights")):
            if earlier.get(key) != origin[key]:
                raise UserError(
                    f"the {what} of {folder.path.name} are not those that it began with, so it cannot go on: "
                    "overwrite=true starts again"
                )
        if earlier.get("versions") != origin["versions"] or earlier.get("hardware") != origin["hardware"]:
            terminal.say("versions or hardware differ from those this run began with: it may not end bit-identical")
    folder.open_series(state["offsets"] if state else {})
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    record.write_whole(folder.path / record.CONFIG, OmegaConf.to_yaml({**settings, "choices": dict(choices)}))
    if state and earlier:
        origin = earlier | {"sessions": [*earlier["sessions"], *origin["sessions"]]}
    folder.write_json(record.PROVENANCE, origin)
    if state:
        terminal.say(f"going on from step {state['step']}")
    return state


def _run(runner: Runner) -> dict[str, Any]:
    try:
        with runner.terminal:
            outcome = runner.run()
        if outcome["status"] == "done":
            runner.save()
    except BaseException as error:
        with contextlib.suppress(OSError):  # a full disk, most likely; then the error itself says so
            runner.folder.write_summary("crashed", runner.progress() | {"error": f"{type(error).__name__}: {error}"})
        raise
    return outcome


def _memory(experiment: Experiment) -> dict[str, float]:
    update = experiment.update
    return {"peak_gib": peak_gib(update.parameters[0].device), "optimizer_gib": state_gib(update.optimizer)}


def _draw(records: Records, folder: RunFolder, terminal: Terminal) -> None:
    try:
        draw(records, folder.path.name, folder.path)
    except Exception as why:  # a picture can be drawn again, a result must not be lost for it
        terminal.say(f"could not draw the picture: {why}")
