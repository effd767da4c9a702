"""Maps: where policies take the fleet (figure 2), where trips end and how the fleet flows (figure 4)."""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from mf_taxi_env import TaxiMDP, certified_bound
from mf_taxi_env.information import entropy_fraction
from mf_taxi_env.render import UNIT, WIDE, colour_bar, common_scale, draw_map, maps_sheet, new_figure
from mf_taxi_env.scenario_sheet import draw_arrows
from mf_taxi_env.scenarios.city import box_km
from mf_taxi_env.scoring import episode_score
from mf_taxi_env.sparse import SparseMatrix
from safe_m3_agent.figures.drawing import Drawing, Table
from safe_m3_agent.figures.recorded import Group, RecordedRun
from safe_m3_agent.figures.style import caption, finite

#: Most maps in a row.
MOST_COLUMNS = 4
#: Likewise of a city much wider than high.
MOST_COLUMNS_WIDE = 2
#: Origins whose trips are shown.
ORIGINS = 3


def demand_title(world: TaxiMDP) -> str:
    """Title of a map of the last step's demand."""
    return f"Demand, step {world.horizon}" if world.changes else "Demand"


def fleets(curves: Sequence[tuple[str, Group]], title: str, left_out: int = 0) -> Drawing:
    """Demand, the fleet at the start, the best that is possible, and the fleet after learning, on maps of one colour scale.

    Args:
        curves: Labels and runs, all in one city; of each the run of the median last return is shown.
        title: Title of the sheet.
        left_out: How many more policies there are that it does not show; the caption says so.
    """
    world = curves[0][1].world
    last = world.horizon - 1
    characters, (width, height) = _title_width(world), box_km(world.scenario.box)
    panels = [(demand_title(world), _numbers(world.demand(last))), ("Fleet at the start", _numbers(world.initial()))]
    names = ["demand", "start"]
    for label, group in curves:
        run = group.middle
        mu = run.executed.mu[-1]
        violations = int(run.executed.violations)
        result = (
            f"unsafe in {violations}/{world.horizon} steps"
            if violations
            else f"score {finite(episode_score(run.executed, world), 2)}"
        )
        told = (f"{label}, seed {run.seed}", f"entropy {_percent(entropy_fraction(mu))}, {result}")
        panels.append(("\n".join(line for text in told for line in textwrap.wrap(text, characters)), _numbers(mu)))
        names.append(f"{label}, seed {run.seed}")
    try:
        panels.append(
            (
                "\n".join(textwrap.wrap(f"The best safe fleet (certified), {_floor(curves[0][1])}", characters)),
                certified_bound(world).mu[last],
            )
        )
        names.append("certified optimum")
    except (TypeError, ValueError):  # no convex program, or nothing is safe
        pass
    most = MOST_COLUMNS if width <= WIDE * height else MOST_COLUMNS_WIDE
    columns = math.ceil(len(panels) / math.ceil(len(panels) / most))
    figure = maps_sheet(panels, world.scenario.box, title=title, columns=columns)
    _slant_narrow(figure.axes[: len(panels)], world)
    # Room for titles of several lines.
    if isinstance(engine := figure.get_layout_engine(), ConstrainedLayoutEngine):
        engine.set(h_pad=0.12, w_pad=0.3 if height > WIDE * width else 0.04)
    figure.set_figheight(figure.get_figheight() + 0.35 * math.ceil(len(panels) / columns))
    more = f" Not shown: {left_out} more polic{'ies' if left_out > 1 else 'y'}." * (left_out > 0)
    caption(figure, f"Fleets after the last of {world.horizon} steps; of several seeds the one with the median return.{more}")
    return Drawing(figure, {"": cell_table(world, names, [values for _, values in panels])})


def trips_and_flows(run: RecordedRun, title: str) -> Drawing:
    """Where trips from the busiest cells end, and which way the policy sends the fleet.

    Args:
        run: A run; its last policy is shown.
        title: Title of the sheet.
    """
    world, box = run.world, run.world.scenario.box
    origins = busiest(world, ORIGINS)
    rows = [trips_from(world, origin) for origin in origins]
    with torch.no_grad():
        shifted = world.shift(run.executed.mu[-2], world.horizon - 1)
        actions = run.agent.policy.field(shifted, world.horizon - 1)
        moves = _numbers(world.motion(world.centers, shifted, actions) - world.centers) * np.array(box_km(box))
    after = _numbers(shifted)

    width, height = box_km(box)
    side, wide = 3.8 / max(width, height), width > WIDE * height
    columns = 4 if height > WIDE * width else 2
    across, down = columns * (side * width + 0.9), 4 / columns * (side * height + 0.75)
    figure = new_figure((across + (0.4 if wide else 1.6), down + (1.9 if wide else 0.9)))
    grid = figure.subplots(4 // columns, columns)
    *trip_axes, flow_axes = grid.flat
    scale, centres = common_scale([*rows, after]), _centres(world)
    wrapped = functools.partial(textwrap.fill, width=_title_width(world))
    at = ", step 1" * world.changes
    for number, (axes, origin, row) in enumerate(zip(trip_axes, origins, rows, strict=False), start=1):
        draw_map(axes, row, box, norm=scale.norm, title=wrapped(f"Where trips from origin {number} end{at}"))
        axes.plot(*centres[origin], "*", color="white", markeredgecolor="black", markersize=15)
    for axes in trip_axes[len(origins) :]:
        axes.set_axis_off()
    name = wrapped(f"The policy's moves at step {world.horizon}")
    image = draw_map(flow_axes, after, box, norm=scale.norm, title=name)
    draw_arrows(flow_axes, world.scenario, moves[:, 0], moves[:, 1], span=1.0)
    colour_bar(figure, image, list(grid.flat), scale.label.replace(UNIT, "multiples of a uniform distribution"), scale.extend)
    for index, axes in enumerate(grid.flat):
        axes.tick_params(labelleft=index % columns == 0)
    _slant_narrow(grid.flat, world)
    figure.suptitle(title, parse_math=False)
    caption(
        figure,
        "Stars: origins, the busiest cells at least a quarter of the city apart. Colours under the arrows: fleet after trips.",
    )
    names = [*(f"trips from origin {n + 1}" for n in range(len(origins))), "fleet after trips", "move east km", "move north km"]
    return Drawing(figure, {"": cell_table(world, names, [*rows, after, moves[:, 0], moves[:, 1]])})


def _title_width(world: TaxiMDP) -> int:
    """Characters per line of a map's title: maps are 3.3 inches or more in their longer side, an inch holds about eleven."""
    width, height = box_km(world.scenario.box)
    return max(14, int(11 * (3.3 * min(1.0, width / height) + 0.3)))


def _slant_narrow(panels: Iterable[Axes], world: TaxiMDP) -> None:
    """On maps of a city much higher than wide level labels of longitude would run into each other."""
    width, height = box_km(world.scenario.box)
    for axes in panels if height > WIDE * width else ():
        axes.tick_params(axis="x", labelrotation=60)


def busiest(world: TaxiMDP, count: int) -> list[int]:
    """The cells of most demand at the first step, at least a quarter of the city apart; those without trips do not count.

    Args:
        world: The world.
        count: How many to look for; a small city may have fewer.
    """
    centres, found = _numbers(world.centers), list[int]()
    for cell in np.argsort(-_numbers(world.demand(0)), kind="stable").tolist():
        apart = all(np.abs(centres[cell] - centres[other]).max() >= 0.25 for other in found)
        if apart and trips_from(world, cell)[cell] < 1.0:
            found.append(cell)
        if len(found) == count:
            break
    return found


def trips_from(world: TaxiMDP, cell: int) -> NDArray[np.float64]:
    """Where the trips from a cell end at the first step, ``[K]``."""
    trips = world.trips(0)
    if isinstance(trips, SparseMatrix):
        unit = torch.zeros(world.grid.size, dtype=world.dtype, device=world.device)
        unit[cell] = 1.0
        return _numbers(unit @ trips)
    return _numbers(trips[cell])


def _centres(world: TaxiMDP) -> NDArray[np.float64]:
    """Longitude and latitude of the cells' centres, ``[K, 2]``."""
    west, east, south, north = world.scenario.box
    return np.asarray(np.array([west, south]) + _numbers(world.centers) * np.array([east - west, north - south]))


def cell_table(world: TaxiMDP, names: Sequence[str], values: Sequence[NDArray[np.float64]]) -> Table:
    """Values of every cell, with its centre in degrees.

    Args:
        world: The world.
        names: Names of the values.
        values: For each name, ``[K]``.
    """
    centres = _centres(world)
    rows = [[cell, *centres[cell].tolist(), *(float(value[cell]) for value in values)] for cell in range(len(centres))]
    return Table(["cell", "longitude", "latitude", *names], rows)


def _percent(share: torch.Tensor) -> str:
    return f"{100 * float(share):.0f}\u00a0%"


def _floor(group: Group) -> str:
    return "under its constraints" if group.floor is None else f"entropy floor {100 * group.floor:g}\u00a0%"


def _numbers(values: torch.Tensor) -> NDArray[np.float64]:
    return np.asarray(values.detach().cpu().double().numpy(), dtype=np.float64)
