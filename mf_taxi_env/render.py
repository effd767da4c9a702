"""Pictures of a city: distributions as maps, a scenario on one sheet, taxis as points. Needs the extra ``cli`` (matplotlib).

A distribution is drawn as multiples of a uniform fleet, ``K * mu``: 1 is a cell's fair share on every grid, so that pictures of
different grids compare. Nothing touches pyplot: figures are plain objects, safe without a display and in threads.
"""

from __future__ import annotations

import math
import os
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mf_taxi_env.scenarios.city import box_km
from mf_taxi_env.scenarios.scenario import Box, Scenario, validated_box

try:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import Normalize, PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError("Pictures need matplotlib: pip install 'safe-m3-taxi[cli]'") from error

#: Unit of every map of a distribution.
UNIT = "multiples of a uniform fleet"
#: Default colour map: perceptually uniform and readable with any colour vision.
CMAP = "viridis"
#: Suffixes that :func:`save_figure` writes.
FORMATS = (".png", ".pdf", ".svg")
#: Where peaks drown the rest, the scale ends at this percentile of the cells ...
PERCENTILE = 99.5
#: ... which is the case if the highest peak is this many times higher.
PEAK_RATIO = 2.0
#: About the most arrows per axis.
ARROWS = 13
#: A study area this many times wider than high is drawn with its colour bars below.
WIDE = 1.5
#: Under points and where there is nothing to colour.
GROUND = "0.93"
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


class Scale(NamedTuple):
    """A colour scale for maps that are to be compared, see :func:`common_scale`."""

    norm: Normalize
    """Maps multiples of a uniform fleet to colours."""
    label: str
    """Unit, kind of scale, and where it is clipped."""
    extend: str
    """For the colour bar: ``"max"`` where cells lie above the scale, else ``"neither"``."""


def common_scale(distributions: Sequence[Tensor | ArrayLike]) -> Scale:
    """One colour scale from zero that shows both peaks and lows of all distributions.

    Colours follow the square root, as a city's demand spans orders of magnitude. Where a few peaks would still drown the rest,
    the scale ends at a percentile of the cells; the label says so and names the peak.

    Args:
        distributions: One or more ``[K]`` or ``[k, k]``.

    Returns:
        The scale.

    Raises:
        ValueError: If there is no distribution, or one is malformed.
    """
    if not distributions:
        raise ValueError("distributions must hold at least one distribution, got none")
    values = np.concatenate([_multiples(distribution).ravel() for distribution in distributions])
    peak, percentile = float(values.max()), float(np.percentile(values, PERCENTILE))
    clipped = peak > max(PEAK_RATIO * percentile, 2.0)
    # A uniform fleet belongs in the middle of the colours, not at their end.
    top = max(percentile if clipped else peak, 2.0)
    label = f"{UNIT}, square-root scale"
    if clipped:
        share = (values < top).mean()
        label += f"\nclipped at {top:.3g} (percentile {100 * share:.1f}), peak {peak:.3g}"
    return Scale(PowerNorm(0.5, 0.0, top), label, "max" if clipped else "neither")


def draw_map(
    axes: Axes,
    distribution: Tensor | ArrayLike,
    box: Box,
    *,
    norm: Normalize | None = None,
    cmap: str = CMAP,
    title: str = "",
) -> AxesImage:
    """Draw a distribution over the study area, north up, in multiples of a uniform fleet.

    Args:
        axes: Where to draw; its limits become the box in degrees, its aspect true to distances.
        distribution: ``[K]``, or ``[k, k]`` with longitude first; non-negative.
        box: Study area ``(west, east, south, north)`` in degrees.
        norm: Colour scale; default that of :func:`common_scale` for this map alone.
        cmap: Name of a matplotlib colour map.
        title: Title of the map.

    Returns:
        The image, for a colour bar.

    Raises:
        ValueError: If the distribution is no square, not finite or negative, or the box is no box.
    """
    values = _multiples(distribution)
    return _draw_cells(axes, values, box, norm or common_scale([distribution]).norm, cmap, title)


def maps_sheet(
    panels: Sequence[tuple[str, Tensor | ArrayLike]],
    box: Box,
    *,
    points: tuple[str, Tensor | ArrayLike] | None = None,
    title: str = "",
    columns: int = 4,
) -> Figure:
    """Several maps side by side with one colour scale, and optionally the taxis as points.

    Args:
        panels: Title and distribution (``[K]`` or ``[k, k]``) of each map; at least one.
        box: Study area ``(west, east, south, north)`` in degrees.
        points: Title and positions ``[m, 2]`` in the unit square (longitude first) of a last panel.
        title: Title of the sheet.
        columns: Most panels in a row, at least 1.

    Returns:
        The figure; write it with :func:`save_figure`.

    Raises:
        ValueError: If there is no panel, or a distribution, the points or the box are malformed.
    """
    if not panels:
        raise ValueError("panels must hold at least one (title, distribution), got none")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns!r}")
    scale = common_scale([distribution for _, distribution in panels])
    count = len(panels) + (points is not None)
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    width, height = box_km(validated_box(box))
    # A map is about 3.3 inches in its longer side; the rest is for ticks, titles and the colour bar.
    side = 3.3 / max(width, height)
    figure = _figure((columns * (side * width + 0.6) + 1.0, rows * (side * height + 0.6) + (0.3 if title else 0.0)))
    grid = figure.subplots(rows, columns, squeeze=False)
    for index, axes in enumerate(grid.flat):
        if index < len(panels):
            name, distribution = panels[index]
            image = draw_map(axes, distribution, box, norm=scale.norm, title=name)
        elif index < count and points is not None:
            _draw_points(axes, points[1], box, points[0])
        else:
            axes.set_axis_off()
        if index < count and index % columns:
            axes.tick_params(labelleft=False)
        if index + columns < count:
            axes.tick_params(labelbottom=False)
    _colour_bar(figure, image, list(grid.flat), scale.label, scale.extend)
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


def scenario_sheet(scenario: Scenario) -> Figure:
    """A scenario on one sheet: demand, where trips end, how far trips go from each cell, and its key figures.

    Demand and trips that vary over time enter with their mean over steps. Distances are between cell centres.

    Args:
        scenario: The scenario.

    Returns:
        The figure; write it with :func:`save_figure`.
    """
    size, box = scenario.cells**2, scenario.box
    demand = scenario.demand.reshape(-1, size).mean(0)
    ends = (scenario.demand[..., None, :] @ scenario.trips).reshape(-1, size).mean(0)
    length, east, north = trip_lengths(scenario)

    width, height = box_km(box)
    # Compressing a wide city's low maps would push titles into each other; its sheet is as high as the text needs.
    wide = width > WIDE * height
    figure = _figure((10.5, 9.0 if wide else min(8.2 * height / width, 14.0) + 1.6), "constrained" if wide else "compressed")
    (demand_axes, ends_axes), (trips_axes, text_axes) = figure.subplots(2, 2)
    scale = common_scale([demand, ends])
    draw_map(demand_axes, demand, box, norm=scale.norm, title="Demand: where trips start")
    image = draw_map(ends_axes, ends, box, norm=scale.norm, title="Where these trips end")
    ends_axes.tick_params(labelleft=False)
    _colour_bar(figure, image, [demand_axes, ends_axes], scale.label, scale.extend)

    no_trips = _without_trips(scenario)
    known = length[~no_trips] if not no_trips.all() else np.zeros(1)
    # Cells with a handful of trips have extreme means; they must not take the colours of the rest.
    low, high = np.percentile(known, (2, 98))
    norm = Normalize(low, high if high > low else low + 1.0)
    shown = np.where(no_trips, np.nan, length).reshape(scenario.cells, scenario.cells)
    image = _draw_cells(
        trips_axes, shown, box, norm, "cividis", "Trips from each cell" + " (grey: no trips)" * bool(no_trips.any())
    )
    _colour_bar(figure, image, [trips_axes], "mean trip length [km]", "both")
    _draw_arrows(trips_axes, scenario, np.where(no_trips, 0.0, east), np.where(no_trips, 0.0, north))
    _write_facts(text_axes, _facts(scenario))
    figure.suptitle(scenario.name, parse_math=False, fontsize="xx-large")
    return figure


def trip_lengths(scenario: Scenario) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean length and mean displacement of the trips that start in each cell, between cell centres.

    Args:
        scenario: The scenario; trips that vary over time enter with their mean over steps.

    Returns:
        Length, displacement east and displacement north, in kilometres, each ``[K]``.
    """
    k = scenario.cells
    width, height = (side / k for side in box_km(scenario.box))
    trips = scenario.trips.reshape(-1, k, k, k, k)
    axis = np.arange(k)
    length, east, north = np.zeros((k, k)), np.zeros((k, k)), np.zeros((k, k))
    # Column by column: on fine grids another K x K matrix, of distances, would cost as much memory as the trips.
    for i in range(k):
        flow = trips[0, i] if len(trips) == 1 else trips[:, i].mean(0)  # [origin j, destination i, destination j]
        across = (axis - i) * width
        along = (axis[None, :] - axis[:, None]) * height  # [origin j, destination j]
        length[i] = (flow * np.hypot(across[None, :, None], along[:, None, :])).sum((1, 2))
        east[i] = flow.sum(2) @ across
        north[i] = (flow.sum(1) * along).sum(1)
    return length.ravel(), east.ravel(), north.ravel()


def mean_trip(scenario: Scenario) -> float:
    """Mean length of all trips in kilometres, between cell centres; cells whose taxis stay for want of trips do not count."""
    demand = scenario.demand.reshape(-1, scenario.cells**2).mean(0)
    weight = np.where(_without_trips(scenario), 0.0, demand)
    return float(weight @ trip_lengths(scenario)[0] / max(weight.sum(), 1e-12))


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure, whole or not at all.

    Args:
        figure: The figure.
        path: Target; its suffix, ``.png``, ``.pdf`` or ``.svg``, sets the format. An existing file is replaced.

    Returns:
        The path written.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If the suffix is another one.
    """
    target = Path(path)
    if target.suffix.lower() not in FORMATS:
        raise ValueError(f"path must end in one of {', '.join(FORMATS)}, got {os.fspath(path)!r}")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        figure.savefig(temporary, format=target.suffix[1:].lower(), dpi=150)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _figure(size: tuple[float, float], layout: Literal["constrained", "compressed"] = "compressed") -> Figure:
    figure = Figure(figsize=size, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _colour_bar(figure: Figure, image: AxesImage, axes: Sequence[Axes], label: str, extend: str) -> None:
    # Beside a map as low as that of a wide city the label would not fit.
    (west, east), (south, north) = axes[0].get_xlim(), axes[0].get_ylim()
    wide = (east - west) > WIDE * (north - south) * float(axes[0].get_aspect())
    place: dict[str, Any] = {"location": "bottom", "aspect": 40, "shrink": 0.9} if wide else {"location": "right", "aspect": 22}
    bar = figure.colorbar(image, ax=axes, label=label, extend=extend, pad=0.02, **place)
    if isinstance(image.norm, PowerNorm):
        # Round numbers in even-looking steps: under the square root equal steps would crowd at the top.
        top, ticks = image.norm.vmax or 1.0, [0.0]
        for tick in (digit * 10.0**power for power in range(-1, 5) for digit in (1, 2, 5)):
            if tick <= top and math.sqrt(tick / top) - math.sqrt(ticks[-1] / top) >= 0.07:
                ticks.append(tick)
        bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        bar.minorticks_off()


def _without_trips(scenario: Scenario) -> NDArray[np.bool_]:
    """The cells ``[K]`` that have the identity row at every step."""
    stays = np.diagonal(scenario.trips, axis1=-2, axis2=-1).reshape(-1, scenario.cells**2)
    return np.asarray(stays.min(0) == 1.0)


def _array(values: Tensor | ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values, dtype=np.float64)


def _multiples(distribution: Tensor | ArrayLike) -> NDArray[np.float64]:
    """``K * mu`` as ``[k, k]``, longitude first."""
    mass = _array(distribution)
    k = math.isqrt(mass.size)
    if mass.size == 0 or mass.shape not in ((k * k,), (k, k)):
        raise ValueError(f"a distribution must have shape [K] or [k, k] with K = k * k, got shape {mass.shape}")
    if not (np.isfinite(mass).all() and (mass >= 0).all()):
        raise ValueError(f"a distribution must be finite and non-negative, got values from {mass.min()} to {mass.max()}")
    return mass.reshape(k, k) * mass.size


def _draw_cells(axes: Axes, values: NDArray[np.float64], box: Box, norm: Normalize, cmap: str, title: str) -> AxesImage:
    """Values ``[k, k]``, longitude first; NaN shows the ground."""
    _prepare(axes, box, title)
    # Images have rows first: latitude, and the first row at the bottom.
    return axes.imshow(
        values.T, origin="lower", extent=box, norm=norm, cmap=cmap, interpolation="nearest", aspect=axes.get_aspect()
    )


def _draw_points(axes: Axes, positions: Tensor | ArrayLike, box: Box, title: str) -> None:
    where = _array(positions)
    if where.ndim != 2 or where.shape[1] != 2:
        raise ValueError(f"points must have shape [m, 2], got shape {where.shape}")
    west, east, south, north = box
    _prepare(axes, box, title)
    # Fewer taxis, larger points: the ink stays about the same.
    area = min(max(4000.0 / max(len(where), 1), 0.6), 12.0)
    lon, lat = west + where[:, 0] * (east - west), south + where[:, 1] * (north - south)
    axes.scatter(lon, lat, s=area, c="#31688e", alpha=0.7, linewidths=0)


def _prepare(axes: Axes, box: Box, title: str) -> None:
    west, east, south, north = validated_box(box)
    axes.set_facecolor(GROUND)
    axes.set_xlim(west, east)
    axes.set_ylim(south, north)
    # A degree of longitude is shorter than one of latitude by the cosine of the latitude.
    axes.set_aspect(1.0 / math.cos(math.radians((south + north) / 2)))
    axes.set_xticks(*_degrees(west, east, "EW"))
    axes.set_yticks(*_degrees(south, north, "NS"))
    axes.tick_params(labelsize="small")
    axes.set_title(title, fontsize="medium")


def _degrees(low: float, high: float, letters: str) -> tuple[list[float], list[str]]:
    """Round positions within the range, and their labels such as ``114.05°E``."""
    steps = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
    decimals = max(0, -math.floor(math.log10(steps[1] - steps[0]) + 1e-6))
    ticks = [float(tick) for tick in steps if low <= tick <= high]
    return ticks, [f"{abs(tick):.{decimals}f}°{letters[tick < 0] if tick else ''}" for tick in ticks]


def _draw_arrows(axes: Axes, scenario: Scenario, east: NDArray[np.float64], north: NDArray[np.float64]) -> None:
    """Mean displacements ``[K]`` in kilometres as arrows from a subset of the cells; the axis label gives their scale."""
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
    # The longest arrow spans about one and a half gaps between arrows.
    axes.quiver(
        lon, lat, u[moving] * shrink, v[moving] * shrink, scale=longest * len(i) / 1.5, scale_units="width",
        width=0.0045, headwidth=3.5, color="white", edgecolor="black", linewidth=0.4,
    )  # fmt: skip
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
    if scenario.demand.ndim == 2 or scenario.trips.ndim == 3:
        steps = len(scenario.demand if scenario.demand.ndim == 2 else scenario.trips)
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
