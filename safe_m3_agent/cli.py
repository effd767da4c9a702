"""The console script ``safe-m3``: train, evaluate, show a policy on a finite fleet, draw figures. Needs the extra ``agent``."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from mf_taxi_env import FleetRollout, FleetSimulator, ParticleMDP, TaxiMDP
from mf_taxi_env.atomic import replacing
from mf_taxi_env.bound import episode_score, possible_return
from mf_taxi_env.fleet import Resolution
from mf_taxi_env.information import entropy_fraction, kl_divergence
from safe_m3_agent.agent import SafeM3UCRL
from safe_m3_agent.checkpoint import CHECKPOINT_FILE, RUN_FILE
from safe_m3_agent.config import Config
from safe_m3_agent.run import EVENTS_FOLDER, FIGURES_FOLDER, HISTORY_FILE, RunFolder
from safe_m3_agent.world_options import WorldOptions, headline

try:
    import tyro

    from mf_taxi_env.render import save_figure
    from safe_m3_agent import figures as pictures
    from safe_m3_agent.figures.paper import FigureName, paper_figures
except ImportError as error:
    # A user who left out the extra gets a hint from main(), not a traceback from here.
    _MISSING: ImportError | None = error
else:
    _MISSING = None


def train(
    world: Annotated[WorldOptions, tyro.conf.arg(name="")] = WorldOptions(),  # noqa: B008 - frozen
    episodes: int = 60,
    out: Path = Path("runs/safe-m3"),
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    config: Annotated[Config, tyro.conf.arg(name="")] = Config(),  # noqa: B008 - frozen
) -> None:
    """Learn a policy safely, and record the run in a folder.

    Args:
        world: The world.
        episodes: Episodes of the whole run.
        out: Folder of the run.
        seed: Seed of everything random.
        device: torch device.
        resume: Go on with the run in `out` where there is one.
        config: Settings of the agent.
    """
    if episodes < 1:
        raise ValueError(f"--episodes must be at least 1, got {episodes}")
    _check_device(device)
    mdp = world.build(device)
    agent = SafeM3UCRL(mdp, config, seed=seed)
    if (out / RUN_FILE).exists():
        if not resume:
            raise ValueError(f"{out} holds a run already: go on with it by --resume, or choose another folder with --out")
        agent.check_folder(out)
        if (out / CHECKPOINT_FILE).exists():
            agent = SafeM3UCRL.load(out, mdp=mdp)
            print(f"Going on after episode {len(agent.history)} of the run in {out}")
    print(headline(mdp), end="\n\n")
    remaining = episodes - len(agent.history)
    with RunFolder(out) as run:
        if remaining > 0:
            _learn(agent, remaining, run)
        else:
            run.on_training_start(agent)  # a kill may have come between the last checkpoint and the rest of the record
    history = agent.history
    folder = out / FIGURES_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"learning_curve.png": pictures.learning_curve(history, mdp)}
    if not agent.model.exact:
        drawn["reliability.png"] = pictures.reliability(agent.calibration)
    for name, figure in drawn.items():
        save_figure(figure, folder / name)
    last = history[-1]
    certified = [episode.episode for episode in history if episode.certified]
    summary = {
        "score": last.score,
        "return": last.reward,
        "bound": possible_return(mdp),
        "episodes": len(history),
        "episodes_with_violation": history.violations,
        "smallest_margin": min(history.column("min_margin")),
        "first_certified_episode": certified[0] if certified else None,
        "seconds": sum(history.column("seconds")),
    }
    finite = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in summary.items()}
    with replacing(out / "metrics.json") as temporary:
        temporary.write_text(json.dumps(finite, indent=2) + "\n")
    print(
        _table(
            ("score", f"{pictures.finite(last.score)} of the possible (0 = staying put, 1 = {_one(mdp)})"),
            ("return", f"{last.reward:.3f}{' nats' if isinstance(mdp, TaxiMDP) else ''}"),
            ("violations", f"in {history.violations} of {len(history)} executed episodes"),
            ("smallest margin", f"{summary['smallest_margin']:.4f} nats" if mdp.constraints else "nothing to keep"),
            ("first certificate", f"episode {certified[0]}" if certified else "none yet"),
            ("time", f"{summary['seconds']:.0f} s"),
            ("run", f"{out} ({HISTORY_FILE}, {CHECKPOINT_FILE}, {EVENTS_FOLDER}/ for TensorBoard)"),
            ("pictures", f"{folder} ({', '.join(drawn)})"),
        )
    )


def _learn(agent: SafeM3UCRL, episodes: int, run: RunFolder) -> None:
    """Learn; where planning breaks down, say what is left of the run and how to go on."""
    try:
        agent.learn(episodes, callback=run, progress_bar=True)
    except FloatingPointError as error:
        done = len(agent.history)
        raise FloatingPointError(
            f"episode {done} failed: {error}. {run.folder} holds the run up to there (episodes: {done}) and its policy in use; "
            f"'safe-m3 evaluate {run.folder}' shows it. --resume would fail at the same episode: start a run with other "
            "settings, in another folder"
        ) from error


def evaluate(run: tyro.conf.Positional[Path], device: str = "cpu") -> None:
    """Execute a trained policy in the true mean field, step by step.

    Args:
        run: Folder of a run.
        device: torch device.
    """
    _check_device(device)
    agent = SafeM3UCRL.load(run, device=device)
    world = agent.mdp
    with torch.no_grad():
        executed = world.rollout(agent.policy)
    targets = [target for t in range(world.horizon) if (target := world.target(t)) is not None]
    kl = kl_divergence(torch.stack(targets), executed.mu[1:]) if targets else torch.full((world.horizon,), math.nan)
    print("step  KL to target  entropy / max  smallest margin")
    for t in range(world.horizon):
        share = float(entropy_fraction(executed.mu[t + 1]))
        worst = float(executed.margins[t].min()) if world.constraints else math.nan
        print(f"{t + 1:4d}  {float(kl[t]):12.4f}  {share:13.4f}  {pictures.finite(worst, 4):>15}")
    best = possible_return(world)
    bound = f"  (certified bound {-best / world.horizon:.4f})" if isinstance(world, TaxiMDP) and math.isfinite(best) else ""
    print(f"mean  {float(kl.mean()):12.4f}{bound}")
    print(f"score {pictures.finite(episode_score(executed, world))}, {int(executed.violations)} violations")
    print(f"return {float(executed.returns):.3f}")


def fleet(
    run: tyro.conf.Positional[Path],
    taxis: int = 10_000,
    runs: int = 10,
    seed: int = 0,
    resolution: Resolution = "cell",
    device: str = "cpu",
) -> None:
    """Show a trained policy on a finite fleet of taxis.

    Args:
        run: Folder of a run.
        taxis: Taxis in the fleet.
        runs: Episodes, each from its own seed.
        seed: Seed of the first episode; the next ones follow.
        resolution: Whether a taxi departs from the centre of its cell, as in the mean field, or from where it is.
        device: torch device.
    """
    if runs < 1:
        raise ValueError(f"runs must be at least 1, got {runs}")
    _check_device(device)
    agent = SafeM3UCRL.load(run, device=device)
    world = agent.mdp
    if not isinstance(world, TaxiMDP):
        raise ValueError(f"run must be of taxis in a city, got one of {type(world).__name__}: see safe-m3 evaluate {run}")
    with torch.no_grad():
        executed = world.rollout(agent.policy)
    rollouts = [FleetSimulator(world, taxis, seed=seed + i, resolution=resolution).rollout(agent.policy) for i in range(runs)]
    picture = run / FIGURES_FOLDER / f"fleet_{taxis}.png"
    picture.parent.mkdir(exist_ok=True)
    save_figure(pictures.fleet_sheet(executed, rollouts[0], world), picture)
    print(f"{taxis:,} taxis, {runs} episodes, resolution {resolution!r}")
    print(f"score of the policy in the mean field: {pictures.finite(episode_score(executed, world))} of the possible\n")
    print(_fleet_table(rollouts, executed.mu, world, taxis))
    print(f"\npicture  {picture}")


def figures(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    out: Path,
    only: tuple[FigureName, ...] = (),
    judge_floor: float = 0.85,
    format: tuple[Literal["png", "pdf", "svg"], ...] = ("png",),  # noqa: A002 - the flag's name
) -> None:
    """Draw the paper's figures from runs, and name the runs that are missing for the others.

    Args:
        runs: Folders of runs, in any order; runs that differ in nothing but their seed are drawn together.
        out: Folder of the figures, and of the numbers drawn, as CSV.
        only: Draw these figures only, such as `--only 3a 5b`.
        judge_floor: Entropy floor that figure 5a judges policies at, a share of log K.
        format: Formats of the figures.
    """
    print(paper_figures(runs, out, only=only, judge_floor=judge_floor, formats=format))


def _fleet_table(rollouts: Sequence[FleetRollout], mean_field: Tensor, world: TaxiMDP, taxis: int) -> str:
    fleets = torch.stack([rollout.distributions for rollout in rollouts])[:, 1:]
    demand = torch.stack([world.demand(t) for t in range(world.horizon)])
    margins = world.margins(fleets).amin(-1).amin(-1) if world.constraints else torch.full((len(rollouts),), math.inf)
    # The entropy of m samples falls short of that of their distribution by about (K - 1) / (2 m) (Miller 1955).
    bias = (world.grid.size - 1) / (2 * taxis)
    gap = 0.5 * (fleets - mean_field[1:]).abs().sum(-1)
    occupied = torch.stack([rollout.occupied for rollout in rollouts])
    travelled = torch.stack([rollout.travelled_km for rollout in rollouts]).mean()
    limit = kl_divergence(demand, mean_field[1:]).mean()
    return _table(
        ("KL to demand", f"{float(kl_divergence(demand, fleets).mean()):.4f} per step (mean field {float(limit):.4f})"),
        ("entropy", f"at least {float(entropy_fraction(fleets).min()):.4f} of its maximum"),
        (
            "smallest margin",
            f"{float(margins.min()):.4f} nats, {float(margins.min()) + bias:.4f} corrected for {taxis:,} samples",
        ),
        (
            "violations",
            f"in {int((margins < 0).sum())} of {len(rollouts)} episodes, {int((margins + bias < 0).sum())} corrected",
        ),
        ("mean field", f"{float(gap.mean()):.4f} away in total variation, on average"),
        ("occupied", f"{float(occupied.mean()):.1%} of the taxis per step"),
        ("repositioning", f"{float(travelled):.2f} km per taxi and step"),
    )


def _one(world: ParticleMDP) -> str:
    """What scores 1."""
    return "certified bound" if isinstance(world, TaxiMDP) else "analytic control, where nothing has to be kept"


def _check_device(name: str) -> None:
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch raises either, depending on how it was built
        raise ValueError(f"--device {name!r} is not usable here: {str(error).splitlines()[0]}") from error


def _table(*rows: tuple[str, str]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``safe-m3``."""
    if _MISSING is not None:
        sys.exit(f"safe-m3: error: {_MISSING}; install the agent's requirements: pip install 'safe-m3-taxi[agent]'")
    app = tyro.extras.SubcommandApp()
    for command in (train, evaluate, fleet, figures):
        app.command(command)
    try:
        app.cli(
            prog="safe-m3",
            description="Safe-M3-UCRL: learn to reposition a fleet without ever leaving a district.",
            args=arguments,
        )
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"safe-m3: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
