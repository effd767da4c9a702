"""Pictures of a city: distributions as maps, a scenario on one sheet, taxis as points. Needs the extra ``cli`` (matplotlib).

A distribution is drawn as multiples of a uniform fleet, ``K * mu``: 1 is a cell's fair share on every grid, so that pictures of
different grids compare. Nothing touches pyplot: figures are plain objects, safe without a display and in threads.
"""

from __future__ import annotations

import math
import os
import textwrap
import threading
from collections.abc import Mapping, Sequence
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
#: Most arrows per axis.
ARROWS = 13
GREY = "0.85"
TEXT_WIDTH = 46


class Scale(NamedTuple):
    """A colour scale for maps that are to be compared, see :func:`common_scale`."""

    norm: Normalize
    """Maps multiples of a uniform fleet to colours."""
    label: str
    """Unit, kind of scale, and where it is clipped."""
    extend: Literal["neither", "max"]
    """For the colour bar: ``"max"`` where cells lie above the scale."""


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
    peak, top = float(values.max()), float(np.percentile(values, PERCENTILE))
    label, clipped = f"{UNIT}, square-root scale", peak > PEAK_RATIO * top > 0
    if clipped:
        label += f"\nclipped at the {PERCENTILE:g}th percentile; peak {peak:.3g}"
    # A uniform fleet belongs in the middle of the colours, not at their end.
    return Scale(PowerNorm(0.5, 0.0, max(top if clipped else peak, 2.0)), label, "max" if clipped else "neither")


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
    figure.colorbar(image, ax=grid, label=scale.label, extend=scale.extend, aspect=25, pad=0.02)
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
    figure = _figure((10.5, 10.5 * min(max(height / width, 0.5), 2.0) * 0.78 + 1.6))
    (demand_axes, ends_axes), (trips_axes, text_axes) = figure.subplots(2, 2)
    scale = common_scale([demand, ends])
    draw_map(demand_axes, demand, box, norm=scale.norm, title="Demand: where trips start")
    image = draw_map(ends_axes, ends, box, norm=scale.norm, title="Where these trips end")
    ends_axes.tick_params(labelleft=False)
    figure.colorbar(image, ax=[demand_axes, ends_axes], label=scale.label, extend=scale.extend, aspect=22, pad=0.02)

    no_trips = np.diagonal(scenario.trips, axis1=-2, axis2=-1).reshape(-1, size).min(0) == 1.0
    shown = np.where(no_trips, np.nan, length).reshape(scenario.cells, scenario.cells)
    limit = float(np.nanmax(shown)) if not no_trips.all() else 1.0
    heading = "Trips from each cell: length and mean way" + (" (grey: none)" if no_trips.any() else "")
    image = _draw_cells(trips_axes, shown, box, Normalize(0.0, limit or 1.0), "cividis", heading)
    figure.colorbar(image, ax=trips_axes, label="mean trip length [km]", aspect=22, pad=0.02)
    _draw_arrows(trips_axes, scenario, np.where(no_trips, np.nan, east), np.where(no_trips, np.nan, north))
    weight = np.where(no_trips, 0.0, demand)
    _write_facts(text_axes, _facts(scenario, float(weight @ length / max(weight.sum(), 1e-12))))
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
    target = check_format(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        figure.savefig(temporary, format=target.suffix[1:].lower(), dpi=150)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def check_format(path: str | os.PathLike[str]) -> Path:
    """The path, if :func:`save_figure` can write its format.

    Raises:
        ValueError: If its suffix is none of ``.png``, ``.pdf`` and ``.svg``.
    """
    target = Path(path)
    if target.suffix.lower() not in FORMATS:
        raise ValueError(f"a picture's file must end in one of {', '.join(FORMATS)}, got {os.fspath(path)!r}")
    return target


def _figure(size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout="compressed")
    FigureCanvasAgg(figure)
    return figure


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
    return axes.imshow(values.T, origin="lower", extent=box, norm=norm, cmap=cmap, interpolation="nearest", aspect=axes.get_aspect())


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
    axes.set_facecolor("0.96")
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
    ticks = [float(tick) for tick in MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]
    decimals = max(0, -math.floor(math.log10((high - low) / 4)))
    return ticks, [f"{abs(tick):.{decimals}f}°{letters[tick < 0] if tick else ''}" for tick in ticks]


def _draw_arrows(axes: Axes, scenario: Scenario, east: NDArray[np.float64], north: NDArray[np.float64]) -> None:
    """Mean displacements ``[K]`` in kilometres as arrows from a subset of the cells, with a key."""
    k, (west, right, south, top) = scenario.cells, scenario.box
    step = math.ceil(k / ARROWS)
    chosen = np.arange((k - 1) % step // 2, k, step)
    x, y = west + (chosen + 0.5) / k * (right - west), south + (chosen + 0.5) / k * (top - south)
    u, v = (field.reshape(k, k)[np.ix_(chosen, chosen)].T for field in (east, north))
    longest = float(np.nan_to_num(np.hypot(u, v)).max())
    if longest == 0.0:
        return
    # The longest arrow is as long as two of the gaps between arrows.
    arrows = axes.quiver(
        *np.meshgrid(x, y), u, v, pivot="tail", units="width", width=0.005, scale=longest * len(chosen) / 2,
        scale_units="width", color="white", edgecolor="black", linewidth=0.4,
    )  # fmt: skip
    unit = float(f"{longest / 2:.1g}")
    axes.quiverkey(arrows, 0.88, -0.11, unit, f"{unit:g} km", labelpos="E", color="black", fontproperties={"size": "small"})


def _facts(scenario: Scenario, mean_trip: float) -> list[tuple[str, str]]:
    """What the sheet says in words: label and value."""
    k, (width, height) = scenario.cells, box_km(scenario.box)
    facts = [
        ("grid", f"{k} x {k} cells of {width / k:.2g} x {height / k:.2g} km"),
        ("area", f"{width:.1f} x {height:.1f} km"),
        ("demand entropy", f"{scenario.demand_entropy:.1%} of the maximum"),
        ("entropy floor", f"{scenario.entropy_floor:.1%} of the maximum"),
        ("mean trip", f"{mean_trip:.2f} km"),
    ]
    if scenario.demand.ndim == 2 or scenario.trips.ndim == 3:
        facts.append(("time", f"{max(len(scenario.demand), len(scenario.trips))} steps; their mean is shown"))
    return facts + _provenance_facts(scenario.provenance)


def _provenance_facts(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    labels = {
        "source": "source",
        "file": "file",
        "window": "window",
        "smoothing": "smoothing",
        "rows": "rows read",
        "bad_rows": "unreadable",
        "rows_outside_window": "outside window",
        "rows_outside_box": "start outside",
        "rows_leaving": "end outside",
        "trips": "trips, demand",
        "trips_inside": "trips, inside",
    }
    facts = []
    for key, label in labels.items():
        value = provenance.get(key)
        if value is None or value == "":
            continue
        if isinstance(value, (list, tuple)):
            text = " to ".join(map(str, value))
        elif isinstance(value, (int, float)):
            text = f"{value:,.0f}"
        else:
            text = str(value)
        facts.append((label, text))
    return facts


def _write_facts(axes: Axes, facts: Sequence[tuple[str, str]]) -> None:
    axes.set_axis_off()
    lines = [(label, textwrap.wrap(value, TEXT_WIDTH) or [""]) for label, value in facts]
    height = 1.0 / max(sum(len(wrapped) for _, wrapped in lines), 18)
    y = 1.0
    for label, wrapped in lines:
        axes.text(0.02, y, label, transform=axes.transAxes, va="top", fontsize="small", color="0.35")
        for text in wrapped:
            axes.text(0.30, y, text, transform=axes.transAxes, va="top", fontsize="small", parse_math=False)
            y -= height
