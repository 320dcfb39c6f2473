"""How figures of studies look: readable in print, and with any colour vision."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, and a marker each: neither is needed to tell the other's meaning
LOOKS = (
    ("#000000", "o"),
    ("#E69F00", "s"),
    ("#56B4E9", "^"),
    ("#009E73", "D"),
    ("#CC79A7", "v"),
    ("#0072B2", "P"),
    ("#D55E00", "X"),
)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of a size in inches, whose parts keep out of each other's way."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain_log(axis: Any) -> None:
    """Make the x axis logarithmic, with a few plain numbers however narrow it is."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def save(figure: "Figure", place: Path) -> str:
    """Write a figure as PNG and as SVG; return its name."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "optbench"}):
        figure.savefig(place.with_suffix(".png"), dpi=150, metadata={"Software": None})
        figure.savefig(place.with_suffix(".svg"), metadata={"Date": None})
    return place.name
