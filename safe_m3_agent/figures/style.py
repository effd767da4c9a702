"""What all figures share: colours, clean axes, captions."""

from __future__ import annotations

import math
import textwrap
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

# Okabe and Ito's palette: distinguishable with every kind of colour vision.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"


class Line(NamedTuple):
    """How a curve is drawn: told apart by more than its colour."""

    color: str
    style: str
    marker: str


#: For the first, second, ... curve of a picture. Red is kept for what is unsafe, green for what is possible.
LINES = (
    Line(BLUE, "-", "o"),
    Line(ORANGE, "--", "s"),
    Line(PURPLE, "-.", "^"),
    Line(BLACK, ":", "D"),
    Line(SKY, "-", "v"),
)


def clean(axes: Axes) -> None:
    """A light grid and no box."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)


def logarithmic(axes: Axes) -> None:
    """A logarithmic vertical axis with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def unsafe_below(axes: Axes, limit: float, note: str) -> None:
    """Shade what lies below a limit, from the current lower end of the axis."""
    bottom, top = axes.get_ylim()
    axes.axhspan(bottom, limit, color=RED, alpha=0.10, linewidth=0)
    axes.axhline(limit, color=RED, linewidth=1.2)
    axes.set_ylim(bottom, top)
    axes.annotate(  # above the panel, where it hides no curve
        note, (0.99, 1.0), xytext=(0, 2), xycoords="axes fraction", textcoords="offset points",
        va="bottom", ha="right", color=RED, fontsize=9,
    )  # fmt: skip


def legend_below(axes: Axes, source: Axes) -> None:
    """The legend of one panel under another one, where it hides no curve."""
    handles, labels = source.get_legend_handles_labels()
    axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.0, -0.16), frameon=False, fontsize=9, borderaxespad=0.0)


def caption(figure: Figure, text: str) -> None:
    """Small print under a figure: what lines and bands are."""
    width = int(figure.get_figwidth() * 15)
    figure.supxlabel("\n".join(textwrap.wrap(text, width)), fontsize=8.5, color=GREY, x=0.01, ha="left", parse_math=False)


def finite(value: float, digits: int = 3) -> str:
    """A number for a person: ``-`` where there is none."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
