"""trackio mirrors the run folder: `python -m optbench.record.trackio FOLDER`.

`mirrors=[trackio]` does so while it trains. trackio keeps its runs on this machine, and
`trackio show --project PROJECT` shows them; the project is `wandb.project`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optbench.boundary.command_line import Command
from optbench.record.mirror import (
    Row,
    Settings,
    State,
    check_mirrors,
    main_of,
    pictures,
    short_config,
)


class TrackioSink:
    """A trackio run; see `optbench.record.mirror.Sink`."""

    def __init__(self, trackio: Any, run: Any, project: str, folder: Path) -> None:
        self._trackio, self._run, self._project, self._folder = trackio, run, project, folder

    def log(self, step: int, row: Row, is_last: bool) -> None:
        """Send a step's numbers, lists as histograms, and at the end the pictures."""
        sent = {
            name: self._trackio.Histogram(value) if isinstance(value, list) else value
            for name, value in row.items()
        }
        if is_last:
            sent |= pictures(self._folder, lambda file: self._trackio.Image(str(file)))
        self._run.log(sent, step=step)

    def end(self, summary: Mapping[str, Any], is_news: bool) -> None:
        """Finish; a divergence is an alert."""
        if is_news and summary.get("status") == "diverged":
            step = summary.get("step")
            self._trackio.alert(title="diverged", text=f"at step {step}")
        self._run.finish()

    def where(self) -> str:
        """Return a line on how to look at it."""
        return f"trackio: trackio show --project {self._project}"


def open_sink(folder: Path, config: Mapping[str, Any], state: State) -> TrackioSink:
    """Begin or resume the folder's run in trackio."""
    check_mirrors(["trackio"])
    import trackio

    settings = config["wandb"]
    run = trackio.init(
        project=settings["project"],
        name=folder.name,
        group=settings["group"],
        config=short_config(config),
        resume="never" if state.step < 0 else "allow",
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    return TrackioSink(trackio, run, settings["project"], folder)


COMMAND = Command("optbench.record.trackio", Settings, examples=("results/runs/NAME",))


def main() -> None:
    """Mirror the run folder that the command line names."""
    main_of(COMMAND, "trackio", open_sink)


if __name__ == "__main__":
    main()
