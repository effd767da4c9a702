"""Finite fleets of one policy: its taxis on the map (figure 6b), and all pictures that ``safe-m3 fleet`` leaves in a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mf_taxi_env import FleetSimulator
from mf_taxi_env.render import maps_sheet
from safe_m3_agent.figures.city_maps import cell_table, demand_title
from safe_m3_agent.figures.drawing import Drawing, save_drawing
from safe_m3_agent.figures.finite_fleets import FleetCurve, along_the_episode, fleet_sizes
from safe_m3_agent.fleet_evaluation import Subject
from safe_m3_agent.fleet_table import FleetEpisode
from safe_m3_agent.run import FIGURES_FOLDER

#: Largest fleet drawn taxi by taxi: more would cover each other.
MOST_POINTS = 20_000


def fleet_map(subject: Subject, episodes: Sequence[FleetEpisode]) -> Drawing:
    """Demand, the distribution that a policy reaches in the mean field, and the taxis of a finite fleet.

    One recorded episode is simulated once more, for the positions: of the largest fleet that a map can show, or else of the
    smallest there is.

    Args:
        subject: The policy.
        episodes: Its episodes, at least one.
    """
    world = subject.world
    shown = mapped_episode(episodes)
    simulator = FleetSimulator(world, shown.taxis, seed=shown.seed, resolution=shown.resolution)
    rollout = simulator.rollout(subject.policy)
    last = world.horizon - 1
    columns = {
        "demand": world.demand(last).double().cpu().numpy(),
        "mean field": subject.executed.mu[-1].double().cpu().numpy(),
        f"{shown.taxis} taxis": rollout.distributions[-1].double().cpu().numpy(),
    }
    demand, reached, _ = columns.values()
    figure = maps_sheet(
        [(demand_title(world), demand), (f"Fleet in the mean field, step {world.horizon}", reached)],
        world.scenario.box,
        points=(f"{shown.taxis:,} taxis, step {world.horizon}", rollout.positions.double().cpu().numpy()),
        title=f"{world.scenario.name}: where passengers are, and where the policy takes the fleet",
    )
    return Drawing(figure, {"": cell_table(world, list(columns), list(columns.values()))})


def mapped_episode(episodes: Sequence[FleetEpisode]) -> FleetEpisode:
    """The episode that :func:`fleet_map` shows."""
    few = [one for one in episodes if one.taxis <= MOST_POINTS]
    return max(few, key=lambda one: (one.taxis, -one.seed)) if few else min(episodes, key=lambda one: (one.taxis, one.seed))


def fleet_pictures(subject: Subject, episodes: Sequence[FleetEpisode], folder: Path) -> list[Path]:
    """Draw one run's fleets on the map, along the episode and, where there are several sizes, by size; with their numbers.

    Args:
        subject: The policy.
        episodes: Its episodes, at least one, of one resolution.
        folder: The run's folder.

    Returns:
        The pictures written.
    """
    target, world = folder / FIGURES_FOLDER, subject.world
    target.mkdir(exist_ok=True)
    curve = FleetCurve("finite fleets", [(subject, episodes)])
    name = f"{world.scenario.name}, {world.grid.cells} x {world.grid.cells} cells"
    drawings = {
        f"fleet_{mapped_episode(episodes).taxis}": fleet_map(subject, episodes),
        "fleet_episode": along_the_episode(curve, f"{name}: infinite and finite fleets along the episode"),
    }
    if len({one.taxis for one in episodes}) > 1:
        drawings["fleet_sizes"] = fleet_sizes([curve], f"{name}: from few taxis to the mean field")
    return [save_drawing(drawing, target, part, ["png"])[0] for part, drawing in drawings.items()]
