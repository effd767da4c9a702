"""The console script ``safe-m3``: train, evaluate, show a policy on a finite fleet, draw figures. Needs the extra ``agent``."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch

from mf_taxi_env import ParticleMDP, TaxiMDP
from mf_taxi_env.bound import BoundExceededError
from mf_taxi_env.checks import used_device
from mf_taxi_env.fleet import Resolution
from mf_taxi_env.information import entropy_fraction, kl_divergence
from mf_taxi_env.scoring import episode_score, possible_return
from safe_m3_agent.agent import SafeM3UCRL
from safe_m3_agent.checkpoint import CHECKPOINT_FILE, RUN_FILE, check_run_files, run_facts, saved_episodes
from safe_m3_agent.config import Config
from safe_m3_agent.fleet_evaluation import Subject, evaluate_fleets, recorded_fleets
from safe_m3_agent.fleet_summary import fleet_report
from safe_m3_agent.fleet_table import FLEET_FILE
from safe_m3_agent.jobs import JobsError
from safe_m3_agent.run import RunFolder
from safe_m3_agent.world_options import WorldOptions, headline

try:
    import tyro
    from tqdm.auto import tqdm

    from safe_m3_agent import figures as pictures
    from safe_m3_agent.figures.paper import FigureName, paper_figures
    from safe_m3_agent.run_report import report
except ImportError as error:
    # A user who left out the extra gets a hint from main(), not a traceback from here.
    _MISSING: ImportError | None = error
else:
    _MISSING = None


class EpisodeFailedError(RuntimeError):
    """An episode could not be computed; the message says what is left of the run, and how to go on."""


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
    used_device(device)
    mdp = world.build(device)
    try:
        agent = _agent(mdp, config, seed, out, resume=resume)
        print(headline(mdp), end="\n\n")
        remaining = episodes - len(agent.history)
        with RunFolder(out) as run:
            if remaining > 0:
                _learn(agent, remaining, run)
            else:
                run.on_training_start(agent)  # a kill may have come between the last checkpoint and the rest of the record
        print(report(agent, out))
    except KeyboardInterrupt:
        done = saved_episodes(out)
        print(f"\nsafe-m3: stopped; {out} holds {done} episode(s), the same command with --resume goes on", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)  # as a shell expects


def _agent(mdp: ParticleMDP, config: Config, seed: int, out: Path, *, resume: bool) -> SafeM3UCRL:
    """A new agent, or the one whose run is to go on."""
    if (out / RUN_FILE).exists():
        if not resume:
            raise ValueError(f"{out} holds a run already: go on with it by --resume, or choose another folder with --out")
        check_run_files(out, run_facts(mdp, config, seed))
        if (out / CHECKPOINT_FILE).exists():
            agent = SafeM3UCRL.load(out, mdp=mdp)
            print(f"Going on after episode {len(agent.history)} of the run in {out}")
            return agent
    return SafeM3UCRL(mdp, config, seed=seed)


def _learn(agent: SafeM3UCRL, episodes: int, run: RunFolder) -> None:
    """Learn; where an episode fails, say what is left of the run and how to go on."""
    try:
        agent.learn(episodes, callback=run, progress_bar=True)
    except (
        FloatingPointError, BoundExceededError, torch.linalg.LinAlgError, torch.cuda.OutOfMemoryError  # type: ignore[attr-defined]
    ) as error:  # fmt: skip
        done = len(agent.history)
        # What is computed again fails again; the memory of a device may have been another process's.
        again = (
            "The same command with --resume goes on once the device has more memory; a smaller city (--cells), in another "
            "folder, takes less"
            if isinstance(error, torch.cuda.OutOfMemoryError)
            else "--resume would fail at the same episode: start a run with other settings, in another folder"
        )
        reason = str(error).partition("\n")[0].rstrip(".")
        raise EpisodeFailedError(
            f"episode {done} failed: {reason}. {run.folder} holds the run up to there (episodes: {done}) and its policy in "
            f"use; 'safe-m3 evaluate {run.folder}' shows it. {again}"
        ) from error


def evaluate(run: tyro.conf.Positional[Path], device: str = "cpu") -> None:
    """Execute a trained policy in the true mean field, step by step.

    Args:
        run: Folder of a run.
        device: torch device.
    """
    used_device(device)
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
    run: tyro.conf.Positional[tuple[Path, ...]],
    taxis: tuple[int, ...] = (10_000,),
    runs: int = 10,
    seed: int = 0,
    resolution: Resolution = "cell",
    workers: int | None = None,
    ray: str | None = None,
    device: str = "cpu",
) -> None:
    """Evaluate trained policies with finite fleets of taxis, and record every episode in the run's fleet.csv.

    Episodes that are recorded there are not simulated again: the same command goes on where another one was stopped.

    Args:
        run: Folders of runs, at least one.
        taxis: Fleet sizes, such as `--taxis 10 1000 100000`.
        runs: Episodes of every size, each from its own seed.
        seed: Seed of the first episode; the next ones follow.
        resolution: Whether a taxi departs from the centre of its cell, as in the mean field, or from where it is.
        workers: Processes; default one per CPU, and one on a GPU.
        ray: Address of a Ray cluster that runs the episodes instead, or `local` for one started here.
        device: torch device.
    """
    if not run or len(set(run)) < len(run):
        raise ValueError(f"run must name at least one folder, and none twice, got {[str(folder) for folder in run]}")
    on_cpu = used_device(device).type == "cpu"
    if ray is not None and not on_cpu:
        raise ValueError(f"--ray runs episodes on CPUs, got --device {device!r}")
    subjects = {str(folder): _subject(folder, device) for folder in run}
    total = sum(set(taxis)) * runs * len(run)
    failed = None
    # In taxis, for that is what an episode's time is proportional to.
    with tqdm(total=total, unit=" taxis", unit_scale=True, desc="fleets", disable=None) as bar:
        try:
            evaluate_fleets(
                subjects, taxis, runs, seed=seed, resolution=resolution, progress=bar.update, ray=ray,
                workers=workers if workers is not None or on_cpu else 1,
            )  # fmt: skip
        except JobsError as error:
            failed = error
        except KeyboardInterrupt:
            sys.exit("\nsafe-m3: stopped; the same command goes on with the episodes that are missing")
    for name, subject in subjects.items():
        episodes = recorded_fleets(Path(name), subject, resolution, taxis, range(seed, seed + runs))
        if episodes:
            print(f"{name}, resolution {resolution!r}")
            print(f"score of the policy in the mean field: {pictures.finite(episode_score(subject.executed, subject.world))}\n")
            print(fleet_report(subject, episodes), end="\n\n")
            drawn = pictures.fleet_pictures(subject, episodes, Path(name))
            print(f"table     {Path(name) / FLEET_FILE}\npictures  {', '.join(map(str, drawn))}\n")
    if failed is not None:
        raise failed


def _subject(folder: Path, device: str) -> Subject:
    agent = SafeM3UCRL.load(folder, device=device)
    if not isinstance(agent.mdp, TaxiMDP):
        raise ValueError(f"run must be of taxis in a city, got one of {type(agent.mdp).__name__}: see evaluate")
    return Subject.of(agent.mdp, agent.policy)


def figures(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    out: Path,
    only: tuple[FigureName, ...] = (),
    judge_floor: float = 0.85,
    format: tuple[Literal["png", "pdf", "svg"], ...] = ("png",),  # noqa: A002 - the flag's name
) -> None:
    """Draw the paper's figures from runs; for those that cannot be drawn, name the missing runs.

    Args:
        runs: Folders of runs, in any order; runs that differ in nothing but their seed are drawn together.
        out: Folder of the figures, and of the numbers drawn, as CSV.
        only: Draw these figures only, such as `--only 3a 5b`.
        judge_floor: Entropy floor that figure 5a judges policies at, a share of log K.
        format: Formats of the figures.
    """
    print(paper_figures(runs, out, only=only, judge_floor=judge_floor, formats=format))


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
            description="Safe-M3-UCRL: learn to reposition a fleet while it stays spread out over the city.",
            args=arguments,
        )
    except (
        ValueError, OSError, ImportError, EpisodeFailedError, BoundExceededError, JobsError, torch.cuda.OutOfMemoryError
    ) as error:  # fmt: skip
        print(f"safe-m3: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
