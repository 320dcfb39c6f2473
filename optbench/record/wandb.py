"""W&B mirrors the run folder: `python -m optbench.record.wandb FOLDER`. The only importer of wandb.

What a person sees there: `config.optimizer` is `adam` and `config.lr` its rate, the whole
configuration is under `config.settings`; `_step` is the step; each metric has its smallest, largest
and last value in the summary; losses of all splits are in one panel; pictures, spectrum, and an
artifact with the run's files come at the end, and a divergence is an alert.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optbench import metrics
from optbench.boundary.command_line import Command
from optbench.record.folder import (
    CHECKPOINT,
    CONFIG,
    METRICS,
    PROVENANCE,
    SUMMARY,
    read_json,
    read_lines,
)
from optbench.record.mirror import Row, Settings, State, main_of, pictures, short_config

MODES = ("auto", "online", "offline", "disabled")
INIT_TIMEOUT_SECONDS = 30
PANEL_POINTS = 500  # of a line in the panel of all losses
OF_THE_SUMMARY = ("last", "best", "process", "schema")  # in summary.json; W&B has them from history
LOSSES = {"train": metrics.TRAIN_LOSS, "val": metrics.VAL_LOSS, "test": metrics.TEST_LOSS}
ARTIFACT = (CONFIG, PROVENANCE, METRICS, SUMMARY, CHECKPOINT)


class WandbSink:
    """A W&B run; see `optbench.record.mirror.Sink`."""

    def __init__(self, wandb: Any, run: Any, state: State, folder: Path) -> None:
        self._wandb, self._run, self._state, self._folder = wandb, run, state, folder
        self._known: set[str] = set()

    def log(self, step: int, row: Row, is_last: bool) -> None:
        """Send a step's values, with smallest, largest and last of each in the summary."""
        sent = _with_histograms(self._wandb, row)
        for name in sent.keys() - self._known:
            if not isinstance(row.get(name), list) and name in row:
                self._run.define_metric(name, summary="min,max,last")
        self._known |= sent.keys()
        self._run.log(sent | (self._pictures() if is_last else {}), step=step, commit=True)

    def _pictures(self) -> dict[str, Any]:
        """Pictures of the run, the losses of all splits in one panel, the last spectrum."""
        found = pictures(self._folder, lambda file: self._wandb.Image(str(file)))
        try:
            lines = read_lines(self._folder / METRICS)
        except ValueError:  # a damaged line: the mirror has counted it
            lines = []
        return found | self._losses(lines) | self._spectrum(lines)

    def _losses(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        series = {
            name: points
            for name, metric in LOSSES.items()
            if (points := [(line["step"], line[metric]) for line in lines if metric in line])
        }
        if len(series) < 2:
            return {}
        thinned = [_thinned(points, PANEL_POINTS) for points in series.values()]
        return {
            "losses": self._wandb.plot.line_series(
                xs=[[step for step, _ in points] for points in thinned],
                ys=[[value for _, value in points] for points in thinned],
                keys=list(series),
                title="loss of each split",
                xname="step",
            )
        }

    def _spectrum(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        last = next((line for line in reversed(lines) if metrics.NODES in line), None)
        if last is None or metrics.WEIGHTS not in last:
            return {}
        rows = [list(pair) for pair in zip(last[metrics.NODES], last[metrics.WEIGHTS], strict=True)]
        table = self._wandb.Table(columns=["eigenvalue", "weight"], data=rows)
        return {"spectrum/table": table}

    def end(self, summary: Mapping[str, Any], is_news: bool) -> None:
        """Send the summary; at the run's end its files too, and an alert if it has diverged."""
        status = summary.get("status")
        self._run.summary.update({k: v for k, v in summary.items() if k not in OF_THE_SUMMARY})
        if is_news:
            self._log_files()
            if status == "diverged":
                step = summary.get("step")
                self._run.alert(
                    title="diverged",
                    text=f"{self._folder.name} has diverged at step {step}",
                    level=self._wandb.AlertLevel.WARN,
                )
        self._run.finish(exit_code=0 if status in ("done", "diverged") else 1)

    def _log_files(self) -> None:
        artifact = self._wandb.Artifact(f"run-{self._state.id}", type="run")
        for name in ARTIFACT:
            if (self._folder / name).is_file():
                artifact.add_file(str(self._folder / name))
        self._run.log_artifact(artifact)

    def where(self) -> str:
        """Return a line on where the run is in W&B, and what is left to do."""
        return where(self._folder, self._state)


def where(folder: Path, state: State) -> str:
    """Return a line on where a folder's run is in W&B, and what is left to do."""
    parts = [folder / name for name in state.offline if (folder / name).exists()]
    sync = f"send it: wandb sync {shlex.join(map(str, parts))}"
    if not state.url:
        return f"W&B: offline ({state.why}); {sync}"
    if parts:
        return f"W&B: {state.url}, but for a part recorded offline; {sync}"
    return f"W&B: {state.url}"


def open_sink(folder: Path, config: Mapping[str, Any], state: State) -> WandbSink:
    """Begin or resume the folder's run in W&B, online if possible."""
    import wandb

    run = _init(wandb, folder, config, state, _mode(wandb, config["wandb"]["mode"]))
    return WandbSink(wandb, run, state, folder)


def _thinned(points: Sequence[Any], count: int) -> Sequence[Any]:
    """Every so many of the points, the last among them."""
    stride = -(-len(points) // count)
    return points[::-1][::stride][::-1]


def _with_histograms(wandb: Any, line: Mapping[str, Any]) -> dict[str, Any]:
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
    wandb: Any, folder: Path, config: Mapping[str, Any], state: State, mode: tuple[str, str]
) -> Any:
    settings, choices = config["wandb"], config.get("choices") or {}
    chosen = [choices[group] for group in ("task", "model", "optimizer") if group in choices]
    about = short_config(config) | {
        "settings": {key: value for key, value in config.items() if key != "choices"},
        "provenance": read_json(folder / PROVENANCE),
    }
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
                tags=list(dict.fromkeys([*settings["tags"], *map(str, chosen)])),
                name=folder.name,
                id=state.id,
                resume="allow",
                job_type=settings.get("job_type", "train"),
                mode=attempt,
                dir=str(folder),
                config=about,
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


COMMAND = Command("optbench.record.wandb", Settings, examples=("results/runs/NAME",))


def main() -> None:
    """Mirror the run folder that the command line names."""
    main_of(COMMAND, "wandb", open_sink)


if __name__ == "__main__":
    main()
