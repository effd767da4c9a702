"""Is the model as sure as it may be? Predicted against observed coverage of landings that it had not learned from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from safe_m3_agent.calibration import Calibration
from safe_m3_agent.figures.style import BLUE, GREY, ORANGE, caption, clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Levels of the predictive intervals, from 10 to 99 %.
LEVELS = np.append(np.arange(0.10, 0.96, 0.05), 0.99)


def reliability(calibration: Calibration) -> Figure:
    """Share of landings within predictive intervals, against the share that the model predicts; a right model's is a diagonal.

    Args:
        calibration: What an agent kept of its held-out landings.

    Returns:
        One panel, with the model's own intervals, those that the agent went by, and how far chance takes a right model.
    """
    from matplotlib.figure import Figure

    own = calibration.levels(calibration.held_out, recalibrated=False)
    used = calibration.levels(calibration.held_out)
    n = len(own)
    figure = Figure(figsize=(6.4, 6.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color=GREY, linestyle=":", linewidth=1.2)
    if n:
        low, high = stats.binom.interval(0.95, n, LEVELS)
        axes.fill_between(100 * LEVELS, 100 * low / n, 100 * high / n, color=GREY, alpha=0.18, linewidth=0)
        # The larger marker below stays visible where nothing was recalibrated and the two coincide.
        for levels, color, style, size, label in (
            (own, ORANGE, "s--", 8, "as the model predicts"),
            (used, BLUE, "o-", 4, "recalibrated, as the agent went by"),
        ):
            observed = (levels[:, None] <= LEVELS).mean(0)
            axes.plot(
                100 * LEVELS, 100 * observed, style, color=color, markersize=size, linewidth=1.6, clip_on=False, label=label
            )
        axes.legend(loc="upper left", frameon=False, fontsize=9)
    axes.annotate("too sure", (97, 6), ha="right", color=GREY, fontsize=9)
    axes.annotate("too doubtful", (3, 78), color=GREY, fontsize=9)
    axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal", xlabel="predicted share of landings, %", ylabel="observed share, %")
    clean(axes)
    axes.set_title("Held-out landings within predictive intervals", loc="left", fontsize="medium")
    caption(
        figure,
        f"{n:,} coordinates of landings, away from edges, each predicted before the model learned from it. Band: where a right "
        "model lies with 95 % probability at each level, were landings independent.",
    )
    return figure
