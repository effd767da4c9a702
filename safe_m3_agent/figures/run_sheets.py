"""A picture of a run: how it learned."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mf_taxi_env import ParticleMDP, TaxiMDP
from mf_taxi_env.safety import in_nats
from mf_taxi_env.scoring import possible_return, stay_return
from safe_m3_agent.figures.style import BLUE, GREEN, GREY, ORANGE, RED, clean
from safe_m3_agent.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def learning_curve(history: History, mdp: ParticleMDP) -> Figure:
    """Score per episode against what is possible, and the safety margin per episode against the limit.

    Where it is not known what is possible, as in a swarm with constraints, the return stands in for the score.

    Args:
        history: The executed episodes, at least one.
        mdp: The world that they were executed in.
    """
    from matplotlib.figure import Figure

    if not len(history):
        raise ValueError("history must hold at least one episode")
    episodes = np.array(history.column("episode"))
    unit = _unit(mdp)
    earned = np.array(history.column("reward" if unit is None else "score"), dtype=float)
    stay = stay_return(mdp) if unit is None else 0.0
    margin = np.array(history.column("min_margin"), dtype=float)
    worst = np.array(history.column("worst_margin"), dtype=float)
    certified = np.array(history.column("certified"), dtype=bool)

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    top.axhline(stay, color=GREY, linestyle=":", linewidth=1.2)
    top.plot(episodes, earned, color=BLUE, linewidth=2, drawstyle="steps-post", label="policy in use")
    top.plot(episodes[certified], earned[certified], "o", color=BLUE, markersize=4, label="new policy certified")
    edge = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "fontsize": 9}
    if unit is not None:
        top.axhline(1.0, color=GREEN, linestyle="--", linewidth=1.2)
        top.annotate(unit, (0.01, 1.0), xytext=(0, -4), va="top", color=GREEN, **edge)
    top.annotate("staying put", (0.99, stay), xytext=(0, 4), va="bottom", ha="right", color=GREY, **edge)
    top.set_ylabel(
        "return"
        if unit is None
        else f"score\n(0 = staying put, 1 = {'bound' if isinstance(mdp, TaxiMDP) else 'analytic control'})"
    )
    if unit is not None:
        finite = earned[np.isfinite(earned)].tolist()
        top.set_ylim(min([-0.05, *finite]) - 0.02, max([1.0, *finite]) + 0.08)
    top.legend(loc="center right", frameon=False)
    name = mdp.scenario.name if isinstance(mdp, TaxiMDP) else "swarm"
    top.set_title(f"{name}: {len(history)} episodes, {history.violations} with a violation", loc="left")

    # Only adversaries near the limit say something; early ones are far below and would flatten the rest.
    known = margin[np.isfinite(margin)] if np.isfinite(margin).any() else np.zeros(1)  # infinite without constraints
    top_of_view = 1.15 * max(float(known.max()), 1e-3)
    bottom.axhspan(-10 * top_of_view, 0.0, color=RED, alpha=0.12, linewidth=0)
    bottom.axhline(0.0, color=RED, linewidth=1.2)
    bottom.plot(episodes, margin, color=BLUE, linewidth=2, drawstyle="steps-post", label="executed, smallest over the episode")
    bottom.plot(episodes, worst, "v", color=ORANGE, markersize=4, label="candidate under its worst plausible motion")
    violated = np.array(history.column("violations")) > 0
    if violated.any():
        bottom.plot(episodes[violated], margin[violated], "x", color=RED, markersize=8, label="violation")
    bottom.set_ylim(min(-0.4 * top_of_view, 1.1 * float(known.min())), top_of_view)
    bottom.annotate("unsafe", (0.99, 0.0), xytext=(0, -4), va="top", ha="right", color=RED, **edge)
    bottom.set_ylabel("safety margin\n(nats of entropy)" if in_nats(mdp.constraints) else "safety margin")
    bottom.set_xlabel("episode")
    bottom.legend(loc="upper right", frameon=False, fontsize=9)
    for axes in (top, bottom):
        clean(axes)
    return figure


def _unit(mdp: ParticleMDP) -> str | None:
    """What scores 1, in words; None where there is no score."""
    most = possible_return(mdp)
    if math.isnan(most):
        return None
    return f"certified bound: {most:.2f} nats" if isinstance(mdp, TaxiMDP) else f"analytic control: {most:.2f}"
