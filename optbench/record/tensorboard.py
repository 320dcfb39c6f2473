"""TensorBoard mirrors the run folder: `python -m optbench.record.tensorboard FOLDER`.

`mirrors=[tensorboard]` does so while it trains. The event files lie in the run folder, so that
`tensorboard --logdir results/runs` shows every run by its name.
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


class TensorBoardSink:
    """A TensorBoard run; see `optbench.record.mirror.Sink`."""

    def __init__(self, writer: Any, folder: Path) -> None:
        self._writer, self._folder = writer, folder

    def log(self, step: int, row: Row, is_last: bool) -> None:
        """Write a step's numbers, lists as histograms, and at the end the pictures."""
        import numpy

        for name, value in row.items():
            if isinstance(value, list):
                self._writer.add_histogram(name, numpy.asarray(value, dtype=float), step)
            elif isinstance(value, bool | int | float):
                self._writer.add_scalar(name, value, step)
            else:
                raise TypeError(f"{name} is {value!r}")
        for name, pixels in pictures(self._folder, _pixels).items() if is_last else []:
            self._writer.add_image(name, pixels, step, dataformats="HWC")

    def end(self, summary: Mapping[str, Any], is_news: bool) -> None:
        """Close the event file."""
        self._writer.close()

    def where(self) -> str:
        """Return a line on how to look at it."""
        return f"TensorBoard: tensorboard --logdir {self._folder.parent}"


def _pixels(picture: Path) -> Any:
    """Height x width x 3 bytes."""
    import numpy
    from PIL import Image

    with Image.open(picture) as image:
        return numpy.asarray(image.convert("RGB"))


def open_sink(folder: Path, config: Mapping[str, Any], state: State) -> TensorBoardSink:
    """Write on in the run folder, behind the last step written."""
    check_mirrors(["tensorboard"])
    from torch.utils.tensorboard.writer import SummaryWriter

    # of a mirror that was killed, steps behind the last that it noted are written again
    writer: Any = SummaryWriter(str(folder), purge_step=state.step + 1)
    if state.step < 0:
        words = "\n".join(f"    {key}: {value}" for key, value in short_config(config).items())
        writer.add_text("settings", words)
    return TensorBoardSink(writer, folder)


COMMAND = Command("optbench.record.tensorboard", Settings, examples=("results/runs/NAME",))


def main() -> None:
    """Mirror the run folder that the command line names."""
    main_of(COMMAND, "tensorboard", open_sink)


if __name__ == "__main__":
    main()
