"""What the end of a run leaves behind: pictures, ``metrics.json`` and a summary to print."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mf_taxi_env import ParticleMDP, TaxiMDP
from mf_taxi_env.atomic import replacing
from mf_taxi_env.render import save_figure
from mf_taxi_env.safety import in_nats
from mf_taxi_env.scoring import possible_return
from safe_m3_agent import figures as pictures
from safe_m3_agent.agent import SafeM3UCRL
from safe_m3_agent.checkpoint import CHECKPOINT_FILE
from safe_m3_agent.history import History
from safe_m3_agent.run import EVENTS_FOLDER, FIGURES_FOLDER, HISTORY_FILE


def report(agent: SafeM3UCRL, out: Path) -> str:
    """Draw a run, sum it up in ``metrics.json``, and say the same in lines to print.

    Args:
        agent: The agent, with at least one episode.
        out: The run's folder.
    """
    history, mdp, folder = agent.history, agent.mdp, out / FIGURES_FOLDER
    drawn = _drawn(agent, folder)
    summary = _summary(history, mdp)
    finite = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in summary.items()}
    with replacing(out / "metrics.json") as temporary:
        temporary.write_text(json.dumps(finite, indent=2) + "\n")
    first, unit = summary["first_certified_episode"], " nats" if in_nats(mdp.constraints) else ""
    return _table(
        ("score", f"{pictures.finite(summary['score'])} of what is possible (0 = staying put, 1 = {_one(mdp)})"),
        ("return", f"{summary['return']:.3f}{' nats' if isinstance(mdp, TaxiMDP) else ''}"),
        ("violations", f"in {history.violations} of {len(history)} executed episodes"),
        ("smallest margin", f"{summary['smallest_margin']:.4f}{unit}" if mdp.constraints else "nothing to keep"),
        ("first certificate", "none yet" if first is None else f"episode {first}"),
        ("time", f"{summary['seconds']:.0f} s"),
        ("run", f"{out} ({HISTORY_FILE}, {CHECKPOINT_FILE}, {EVENTS_FOLDER}/ for TensorBoard)"),
        ("pictures", f"{folder} ({', '.join(drawn)})"),
    )


def _drawn(agent: SafeM3UCRL, folder: Path) -> list[str]:
    """Pictures of a run, written to a folder; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"learning_curve.png": pictures.learning_curve(agent.history, agent.mdp)}
    if not agent.model.exact:
        drawn["reliability.png"] = pictures.reliability(agent.calibration)
    for name, figure in drawn.items():
        save_figure(figure, folder / name)
    return list(drawn)


def _summary(history: History, mdp: ParticleMDP) -> dict[str, Any]:
    """What ``metrics.json`` says of a run."""
    certified = [episode.episode for episode in history if episode.certified]
    return {
        "score": history[-1].score,
        "return": history[-1].reward,
        "bound": possible_return(mdp),
        "episodes": len(history),
        "episodes_with_violation": history.violations,
        "smallest_margin": min(history.column("min_margin")),
        "first_certified_episode": certified[0] if certified else None,
        "seconds": sum(history.column("seconds")),
    }


def _one(world: ParticleMDP) -> str:
    """What scores 1."""
    return "certified bound" if isinstance(world, TaxiMDP) else "analytic control, where nothing has to be kept"


def _table(*rows: tuple[str, str]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
