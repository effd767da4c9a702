"""A scenario on one sheet: what ``mf-taxi show`` draws."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mf_taxi_env.render import WIDE, colour_bar, common_scale, draw_cells, draw_map, new_figure
from mf_taxi_env.scenarios.city import box_km
from mf_taxi_env.scenarios.scenario import Scenario
from mf_taxi_env.scenarios.trip_probabilities import TripMatrix

#: About the most arrows per axis.
ARROWS = 13
#: Characters per line of a sheet's text.
TEXT_WIDTH = 40
#: What a sheet tells of a scenario's provenance: key and label.
PROVENANCE = {
    "source": "source",
    "file": "file",
    "window": "window",
    "smoothing": "smoothing",
    "rows": "rows read",
    "bad_rows": "unreadable",
    "rows_outside_window": "outside window",
    "rows_outside_box": "start outside",
    "rows_leaving": "end outside",
    "trips": "trips as demand",
    "trips_inside": "trips inside",
}


def scenario_sheet(scenario: Scenario) -> Figure:
    """A scenario on one sheet: demand, where trips end, how far trips go from each cell, and its key figures.

    Demand and trips that vary over time enter with their mean over steps, lengths weighted by demand. Distances are between
    cell centres.

    Args:
        scenario: The scenario.

    Returns:
        The figure; write it with :func:`save_figure`.
    """
    size, box = scenario.cells**2, scenario.box
    demand = scenario.demand.reshape(-1, size).mean(0)
    demands, trips = np.atleast_2d(scenario.demand), scenario.trip_steps
    steps = max(len(demands), len(trips))
    ends = np.mean([demands[t % len(demands)] @ trips[t % len(trips)] for t in range(steps)], axis=0)
    length, east, north = trip_lengths(scenario)

    width, height = box_km(box)
    # Compressing a wide city's low maps would push titles into each other; its sheet is as high as the text needs.
    wide = width > WIDE * height
    figure = new_figure((10.5, 9.0 if wide else min(8.2 * height / width, 14.0) + 1.6), "constrained" if wide else "compressed")
    (demand_axes, ends_axes), (trips_axes, text_axes) = figure.subplots(2, 2)
    scale = common_scale([demand, ends])
    draw_map(demand_axes, demand, box, norm=scale.norm, title="Demand: where trips start")
    image = draw_map(ends_axes, ends, box, norm=scale.norm, title="Where these trips end")
    ends_axes.tick_params(labelleft=False)
    colour_bar(figure, image, [demand_axes, ends_axes], scale.label, scale.extend)

    no_trips = _without_trips(scenario)
    known = length[~no_trips] if not no_trips.all() else np.zeros(1)
    # Cells with a handful of trips have extreme means; they must not take the colours of the rest.
    low, high = np.percentile(known, (2, 98))
    norm = Normalize(low, high if high > low else low + 1.0)
    shown = np.where(no_trips, np.nan, length).reshape(scenario.cells, scenario.cells)
    image = draw_cells(
        trips_axes, shown, box, norm, "cividis", "Trips from each cell" + " (grey: no trips)" * bool(no_trips.any())
    )
    colour_bar(figure, image, [trips_axes], "mean trip length [km]", "both")
    draw_arrows(trips_axes, scenario, np.where(no_trips, 0.0, east), np.where(no_trips, 0.0, north))
    _write_facts(text_axes, _facts(scenario))
    figure.suptitle(scenario.name, parse_math=False, fontsize="xx-large")
    return figure


def trip_lengths(scenario: Scenario) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean length and mean displacement of the trips that start in each cell, between cell centres.

    Args:
        scenario: The scenario; steps at which a cell has trips (no identity row) enter by its demand there.

    Returns:
        Length, displacement east and displacement north, in kilometres, each ``[K]``.
    """
    k = scenario.cells
    width, height = (side / k for side in box_km(scenario.box))
    results = np.stack([_lengths_of_step(trips, k, width, height) for trips in scenario.trip_steps])
    # A vanishing weight lets cells without demand keep the mean of their trips.
    weight = _weights(scenario, 1e-12)
    total = weight.sum(0)
    length, east, north = (weight[:, None] * results).sum(0) / np.where(total > 0, total, 1.0)
    return length, east, north


def _lengths_of_step(trips: TripMatrix, k: int, width: float, height: float) -> NDArray[np.float64]:
    """Mean length, displacement east and north of the trips from each cell of ``width x height`` kilometres, ``[3, K]``."""
    if not isinstance(trips, np.ndarray):
        entries = trips.tocoo()
        origin, destination = entries.coords
        across, along = (destination // k - origin // k) * width, (destination % k - origin % k) * height
        values = (np.hypot(across, along), across, along)
        return np.stack([np.bincount(origin, entries.data * value, minlength=k * k) for value in values])
    axis = np.arange(k)
    result = np.zeros((3, k, k))
    # Column by column: on fine grids another K x K matrix, of distances, would cost as much memory as the trips.
    for i, flow in enumerate(trips.reshape(k, k, k, k)):  # [origin j, destination i, destination j]
        across = (axis - i) * width
        along = (axis[None, :] - axis[:, None]) * height  # [origin j, destination j]
        result[0, i] = (flow * np.hypot(across[None, :, None], along[:, None, :])).sum((1, 2))
        result[1, i] = flow.sum(2) @ across
        result[2, i] = (flow.sum(1) * along).sum(1)
    return result.reshape(3, -1)


def mean_trip(scenario: Scenario) -> float:
    """Mean length of all trips in kilometres, between cell centres, all steps alike.

    Cells whose taxis stay for want of trips do not count, at the steps when they do.
    """
    weight = _weights(scenario).sum(0)
    return float(weight @ trip_lengths(scenario)[0] / max(weight.sum(), 1e-12))


def _weights(scenario: Scenario, ground: float = 0.0) -> NDArray[np.float64]:
    """What each step's trips from each cell count, ``[T, K]``: its demand, on a uniform ``ground``; nothing without trips."""
    some = np.stack([trips.diagonal() != 1.0 for trips in scenario.trip_steps])
    return np.asarray((np.atleast_2d(scenario.demand) + ground) * some)


def _without_trips(scenario: Scenario) -> NDArray[np.bool_]:
    """The cells ``[K]`` that have the identity row at every step."""
    return np.asarray(np.min([trips.diagonal() for trips in scenario.trip_steps], axis=0) == 1.0)


def draw_arrows(
    axes: Axes, scenario: Scenario, east: NDArray[np.float64], north: NDArray[np.float64], span: float = 1.5
) -> None:
    """Mean displacements as arrows from a subset of the cells; the axis label gives their scale.

    Args:
        axes: A map of the scenario's study area.
        scenario: The scenario.
        east: Displacements ``[K]`` in kilometres.
        north: Likewise.
        span: Length of the longest arrow, in gaps between arrows.
    """
    k, (west, right, south, top) = scenario.cells, scenario.box
    width, height = box_km(scenario.box)
    # Gaps between arrows are about equal along both axes.
    i, j = (_subset(k, max(2, round(ARROWS * side / max(width, height)))) for side in (width, height))
    x, y = west + (i + 0.5) / k * (right - west), south + (j + 0.5) / k * (top - south)
    u, v = (field.reshape(k, k)[np.ix_(i, j)].T for field in (east, north))
    lengths = np.hypot(u, v)
    moving = lengths > 0
    if not moving.any():
        return
    longest = float(lengths.max())
    usual = float(np.percentile(lengths[moving], 95))
    # One far trip from a cell with few must not shrink all other arrows to dots.
    cut = longest > 1.5 * usual
    longest = usual if cut else longest
    shrink = np.minimum(1.0, longest / np.where(moving, lengths, longest))[moving]
    lon, lat = (grid[moving] for grid in np.meshgrid(x, y))
    arrows = axes.quiver(
        lon, lat, u[moving] * shrink, v[moving] * shrink, scale=longest * len(i) / span, scale_units="width",
        width=0.0045, headwidth=3.5, color="white", edgecolor="black", linewidth=0.4, clip_on=False,
    )  # fmt: skip
    arrows.set_in_layout(False)  # their heads may stick out of the map; it keeps its size
    axes.set_xlabel(f"mean displacement; the longest arrows are {longest:.1f} km{' or more' if cut else ''}", fontsize="small")


def _subset(cells: int, most: int) -> NDArray[np.int64]:
    """About ``most`` evenly spaced cells of an axis, or all where there are no more."""
    step = max(1, round(cells / most))
    return np.arange((cells - 1) % step // 2, cells, step)


def _facts(scenario: Scenario) -> list[tuple[str, str]]:
    """What the sheet says in words: label and value."""
    k, (width, height) = scenario.cells, box_km(scenario.box)
    facts = [
        ("grid", f"{k} x {k} cells of {width / k:.3g} x {height / k:.3g} km"),
        ("area", f"{width:.1f} x {height:.1f} km"),
        ("demand entropy", f"{scenario.demand_entropy:.1%} of the maximum"),
        ("entropy floor", f"{scenario.entropy_floor:.1%} of the maximum"),
        ("mean trip", f"{mean_trip(scenario):.2f} km"),
    ]
    steps = scenario.steps
    if steps > 1:
        facts.append(("time", f"{steps} steps; their mean is shown"))
    for key, label in PROVENANCE.items():
        value = scenario.provenance.get(key)
        if value is None or value == "":
            continue
        if isinstance(value, (list, tuple)):
            value = " to ".join(map(str, value))
        elif key == "smoothing":
            value = f"median of {value} x {value} cells"
        facts.append((label, f"{value:,.0f}" if isinstance(value, (int, float)) else str(value)))
    return facts


def _write_facts(axes: Axes, facts: Sequence[tuple[str, str]]) -> None:
    axes.set_axis_off()
    down = 0.0
    for label, value in facts:
        lines = textwrap.wrap(value, TEXT_WIDTH) or [""]
        # In points from the corner, so that lines keep their distance on a panel of any size.
        for right, text, color in ((6.0, label, "0.35"), (110.0, "\n".join(lines), "black")):
            note = axes.annotate(text, (0, 1), (right, -down), "axes fraction", "offset points", va="top", color=color)
            note.set_parse_math(False)
            note.set_in_layout(False)
        down += 13.0 * len(lines) + 5.0
