"""Trip records to a scenario: binned, spread by area, smoothed, normalised. Needs the extra ``trips`` (polars)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import sparse

from mf_taxi_env.checks import whole_number
from mf_taxi_env.scenarios.scenario import Box, Scenario, validated_box, validated_floor
from mf_taxi_env.scenarios.trip_files import Window, count_trips, slice_name, window_minutes
from mf_taxi_env.scenarios.trip_probabilities import rows_or_identity

#: Cells per axis up to which trips are kept dense: 20 MB, and a product faster than a sparse one.
DENSE_CELLS = 40


def scenario_from_trips(
    source: str | os.PathLike[str],
    *,
    box: Box,
    cells: int = 25,
    window: Window | None = None,
    steps: int = 1,
    smoothing: int = 3,
    columns: Mapping[str, str] | None = None,
    source_cell: tuple[float, float] | None = None,
    entropy_floor: float = 0.95,
    bad_rows: Literal["raise", "drop"] = "raise",
    name: str | None = None,
) -> Scenario:
    """Build a scenario from a file of trips.

    Demand is where trips in the box start, median-smoothed; trip probabilities count the trips that start and end in the box.
    Rows outside are no error: their number is kept in ``provenance``. The file is streamed, so it may be larger than memory.

    Args:
        source: CSV (``.csv``, ``.csv.gz``, ``.csv.zst``) or Parquet file, one row per trip or per counted pair of origin and
            destination.
        box: Study area ``(west, east, south, north)`` in degrees.
        cells: Cells per axis, ``k``.
        window: Local times of day ``("19:00", "22:00")`` of the pick-up, start inclusive and end exclusive; may pass midnight.
            ``("00:00", "24:00")`` is the whole day. A ``pickup_time`` in text ends in a time of day, after a date of any form
            or alone: ``19:05``, ``19:05:33.5``, ``07:05:33 PM``, ISO 8601's ``T190533``. A zone after it (``Z``, ``UTC``,
            ``GMT``, ``+08:00``) is ignored: times are taken to be local, as written.
        steps: Equal slices of the window by pick-up time. More than one gives demand ``[T, K]`` and trips of every slice, one
            slice per step of an episode, which then lasts as long as a slice; a cell without a trip in a slice has the
            identity row there.
        smoothing: Odd side of the median filter over the demand, in cells; 1 for none.
        columns: Maps our names (``pickup_lon``, ``pickup_lat``, ``dropoff_lon``, ``dropoff_lat``, ``pickup_time``, ``trips``)
            to the file's, where they differ. ``trips``, a count per row, is used where the file has it; one row is one trip
            otherwise.
        source_cell: ``(width, height)`` in degrees when the coordinates are centres of source cells. Each count is then spread
            over its source cell and divided among ours by overlapping area: binning the centres would leave stripes.
        entropy_floor: The scenario's default constraint, as a share of ``log K``.
        bad_rows: ``"raise"`` refuses a file with unreadable or impossible values; ``"drop"`` leaves out such rows, counted.
        name: Name of the scenario; default the file's.

    Returns:
        The scenario; its trips are sparse on more than 40 x 40 cells. ``provenance`` holds the file's name, the settings, and
        the counts of rows: ``rows`` read, ``bad_rows``, ``rows_outside_window``, ``rows_outside_box`` (pick-up outside),
        ``rows_leaving`` (drop-off outside), and ``trips`` that start in the box.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If polars is not installed.
        ValueError: If an argument is out of range, the file cannot be read, a column is missing, values are bad, or no trip
            starts in the box or none of those ends in it, in the whole window or in one of its slices.
    """
    path = Path(source)
    box = validated_box(box)
    # All of it before a file that may take minutes is read.
    entropy_floor = validated_floor(entropy_floor)
    cells, steps = whole_number("cells", cells, least=1), whole_number("steps", steps, least=1)
    smoothing = whole_number("smoothing", smoothing, least=1)
    if smoothing % 2 == 0:
        raise ValueError(f"smoothing must be an odd integer >= 1 (a median filter's side in cells), got {smoothing!r}")
    if steps > 1 and window is None:
        raise ValueError(
            f"steps={steps} cuts the window of pick-up times into slices: give a window such as ('19:00', '22:00')"
        )
    if source_cell is not None and not (len(source_cell) == 2 and all(0 < side < np.inf for side in source_cell)):
        raise ValueError(f"source_cell must be (width, height) in degrees, both positive and finite, got {source_cell!r}")
    if source_cell is not None and (source_cell[0] > box[1] - box[0] or source_cell[1] > box[3] - box[2]):
        raise ValueError(f"source_cell must be no larger than the box {box}, in degrees, got {source_cell!r}")
    if bad_rows not in ("raise", "drop"):
        raise ValueError(f"bad_rows must be 'raise' or 'drop', got {bad_rows!r}")

    counts, report = count_trips(path, box, cells, window, columns or {}, source_cell, bad_rows, steps)
    west, east, south, north = box
    width, height = source_cell or (0.0, 0.0)
    x_axis, y_axis = (west, east, width), (south, north, height)
    # Trips are counted between places and then spread: a place touches many cells, and a pair of places their product.
    o_share, d_share = (_shares(places, x_axis, y_axis, cells) for places in (counts.origins, counts.destinations))
    pickups, demand, trips, inside = 0.0, [], [], 0.0
    edges = np.searchsorted(counts.step, np.arange(steps + 1))
    for step in range(steps):
        now = slice(edges[step], edges[step + 1])
        shape = (o_share.shape[0], d_share.shape[0])
        between = sparse.csr_array((counts.trips[now], (counts.origin[now], counts.destination[now])), shape=shape)
        starts = o_share.T @ between.sum(1)
        flow = sparse.csr_array(o_share.T @ between) @ d_share
        when = slice_name(window, steps, step) if window and steps > 1 else None
        demand.append(_demand(path, starts, smoothing, when))
        pickups, inside = pickups + float(starts.sum()), inside + float(flow.sum())
        if flow.sum() <= 0:
            raise ValueError(f"{path}: no trip that starts in the box{f' from {when}' if when else ''} ends in it")
        trips.append(rows_or_identity(flow if cells > DENSE_CELLS else flow.toarray()))
    return Scenario(
        name=name or path.name.split(".")[0],
        demand=np.stack(demand) if steps > 1 else demand[0],
        trips=trips[0] if steps == 1 else tuple(trips) if cells > DENSE_CELLS else np.stack(trips),
        box=box,
        entropy_floor=entropy_floor,
        provenance={
            "file": path.name,
            **report,
            "trips": pickups,
            "trips_inside": inside,
            "smoothing": smoothing,
            "window": list(window) if window else None,
            "steps": steps,
            "source_cell": list(source_cell) if source_cell else None,
        },
    )


def slice_minutes(provenance: Mapping[str, Any]) -> float | None:
    """Minutes of a slice, where the window of a scenario of this provenance was cut into ``steps``; else ``None``."""
    window, steps = provenance.get("window"), provenance.get("steps")
    try:
        return window_minutes(window) / steps if window and steps and steps > 1 else None
    except (TypeError, ValueError):  # the user's own words
        return None


def median_smoothed(mass: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Median filter of mass ``[K]`` over ``side x side`` cells, mirrored at the city's edge (the edge cell is repeated)."""
    cells = round(mass.size**0.5)
    padded = np.pad(mass.reshape(cells, cells), side // 2, mode="symmetric")
    return np.median(sliding_window_view(padded, (side, side)), axis=(2, 3)).ravel()


def _demand(path: Path, starts: NDArray[np.float64], smoothing: int, when: str | None) -> NDArray[np.float64]:
    """Demand ``[K]`` from the trips that start in each cell."""
    if starts.sum() <= 0:
        why = f" from {when}: take fewer steps or a longer window" if when else ": the counts of all rows that do are 0"
        raise ValueError(f"{path}: no trip starts in the box{why}")
    demand = median_smoothed(starts, smoothing)
    if demand.sum() <= 0:
        cells, within = round(starts.size**0.5), f" from {when}" if when else ""
        raise ValueError(
            f"{path}: smoothing={smoothing} leaves no demand on {cells} x {cells} cells{within}: too few trips "
            f"({starts.sum():.0f}); smoothing=1 leaves them as counted"
        )
    demand /= demand.sum()
    return demand


def _shares(
    places: NDArray[np.complex128], x_axis: tuple[float, float, float], y_axis: tuple[float, float, float], cells: int
) -> sparse.csr_array:
    """The share of each place in our cells, ``[places, K]``."""
    rows = np.arange(places.size)
    entries = [
        (x_share * y_share, rows, x_index * cells + y_index)
        for x_index, x_share in _axis_shares(places.real, *x_axis, cells)
        for y_index, y_share in _axis_shares(places.imag, *y_axis, cells)
    ]
    value, row, cell = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    some = value > 0
    return sparse.csr_array((value[some], (row[some], cell[some])), shape=(places.size, cells * cells))


def _axis_shares(
    center: NDArray[np.float64], low: float, high: float, width: float, cells: int
) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    step = (high - low) / cells
    first = np.floor((center - width / 2 - low) / step).astype(np.int64)
    pairs = []
    for offset in range(int(np.ceil(width / step)) + 1):
        index = first + offset
        left = low + index * step
        if width:
            share = np.clip(np.minimum(center + width / 2, left + step) - np.maximum(center - width / 2, left), 0, None) / width
        else:
            share = np.ones_like(center)
        # What lies outside the box has no share; its index only has to be a legal one.
        share = np.where((index >= 0) & (index < cells), share, 0.0)
        pairs.append((index.clip(0, cells - 1), share))
    return pairs


def describe(provenance: Mapping[str, Any]) -> str:
    """One readable paragraph on what became of a trip file's rows."""
    lines = [
        f"{provenance['rows']:>12,} rows in {provenance['file']}",
        f"{provenance['bad_rows']:>12,} left out: unreadable values",
        f"{provenance['rows_outside_window']:>12,} left out: outside the time window",
        f"{provenance['rows_outside_box']:>12,} left out: pick-up outside the box",
        f"{provenance['rows_leaving']:>12,} of the rest end outside the box (they count as demand, not as trips)",
        f"{provenance['trips']:>12,.0f} trips make the demand, {provenance['trips_inside']:,.0f} the trip probabilities",
    ]
    return "\n".join(lines)
