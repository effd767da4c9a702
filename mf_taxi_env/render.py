"""Maps: distributions on a city, taxis as points, and how a figure is written. Needs the extra ``cli`` (matplotlib).

A distribution is drawn as multiples of a uniform fleet, ``K * mu``: 1 is a cell's fair share on every grid, so that pictures of
different grids compare. Nothing touches pyplot: figures are plain objects, safe without a display and in threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mf_taxi_env.atomic import replacing
from mf_taxi_env.scenarios.city import box_km
from mf_taxi_env.scenarios.scenario import Box, validated_box

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
#: A study area this many times wider than high is drawn with its colour bars below.
WIDE = 1.5
#: Under points and where there is nothing to colour.
GROUND = "0.93"


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
    return draw_cells(axes, values, box, norm or common_scale([distribution]).norm, cmap, title)


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
    bar = 1.0 if width > WIDE * height else 0.0  # where the colour bar lies below
    figure = new_figure((columns * (side * width + 0.6) + 1.0, rows * (side * height + 0.6) + (0.3 if title else 0.0) + bar))
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
    colour_bar(figure, image, list(grid.flat), scale.label, scale.extend)
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


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
    with replacing(target) as temporary:
        figure.savefig(temporary, format=target.suffix[1:].lower(), dpi=150)
    return target


def new_figure(size: tuple[float, float], layout: Literal["constrained", "compressed"] = "compressed") -> Figure:
    figure = Figure(figsize=size, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def colour_bar(figure: Figure, image: AxesImage, axes: Sequence[Axes], label: str, extend: str) -> None:
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


def draw_cells(axes: Axes, values: NDArray[np.float64], box: Box, norm: Normalize, cmap: str, title: str) -> AxesImage:
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
