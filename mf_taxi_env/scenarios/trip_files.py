"""Trip files: scanned lazily, checked column by column, counted per origin and destination (polars)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mf_taxi_env.scenarios.row_files import as_number, check_time_type, is_degree, scan, unreadable, with_times_of_day
from mf_taxi_env.scenarios.scenario import Box

if TYPE_CHECKING:
    import polars as pl

COORDINATES = ("pickup_lon", "pickup_lat", "dropoff_lon", "dropoff_lat")
#: Every name that ``columns`` may map to a column of the file.
COLUMNS = (*COORDINATES, "pickup_time", "trips")

Window = tuple[str, str]
Index: TypeAlias = NDArray[np.integer]
#: Nanoseconds.
DAY = 24 * 60 * 60 * 10**9


class TripCounts(NamedTuple):
    """How many trips go from one place to another in a slice of the window."""

    step: Index  #: slice [n], ascending
    origin: Index  #: index of the place where they start [n]
    destination: Index  #: index of the place where they end [n]
    trips: NDArray[np.float64]  #: their number [n]
    origins: NDArray[np.complex128]  #: places, longitude + latitude * i
    destinations: NDArray[np.complex128]


def count_trips(
    path: Path,
    box: Box,
    cells: int,
    window: Window | None,
    columns: Mapping[str, str],
    source_cell: tuple[float, float] | None,
    bad_rows: str,
    steps: int,
) -> tuple[TripCounts, dict[str, int]]:
    """Trips per distinct slice of the window, origin and destination, and the counts of rows left out."""
    frame = _selected(path, window, columns)
    import polars as pl

    half = (0.0, 0.0) if source_cell is None else (source_cell[0] / 2, source_cell[1] / 2)
    is_bad = {name: ~condition for name, condition in _readable(frame).items()}
    good = ~pl.any_horizontal(*is_bad.values())
    # A latitude beyond 90 degrees may be a longitude in the wrong place.
    sane = pl.all_horizontal(*_readable(frame, largest_latitude=180).values())
    in_window = pl.lit(True) if window is None else (_since(window) < _parsed(window)[1]).fill_null(False)
    from_box = _in_box("pickup_lon", "pickup_lat", box, half)
    starts = good & in_window & from_box
    ends = _in_box("dropoff_lon", "dropoff_lat", box, half)
    exchanged = {
        "pickup": sane & in_window & ~from_box & _in_box("pickup_lat", "pickup_lon", box, half),
        "dropoff": sane & in_window & from_box & ~ends & _in_box("dropoff_lat", "dropoff_lon", box, half),
    }
    audit = frame.select(
        pl.len().alias("rows"),
        *[flag.sum().alias(f"bad:{name}") for name, flag in is_bad.items()],
        (~good).sum().alias("bad_rows"),
        (good & ~in_window).sum().alias("rows_outside_window"),
        (good & in_window & ~from_box).sum().alias("rows_outside_box"),
        (starts & ~ends).sum().alias("rows_leaving"),
        # How many rows would start, or end, in the box only if longitude and latitude changed places, and are bad only as they
        # do not.
        *[flag.sum().alias(f"swapped:{end}") for end, flag in exchanged.items()],
        *[(flag & ~good).sum().alias(f"bad_as_swapped:{end}") for end, flag in exchanged.items()],
    )
    step = pl.lit(0) if window is None else _since(window) * steps // _parsed(window)[1]
    inside = frame.filter(starts).with_columns(step=step.cast(pl.Int64))
    # A point is as good as its cell, and a short key takes a fraction of the memory of five columns.
    keys = ("step", *COORDINATES) if source_cell else ("key",)
    if source_cell is None:
        inside = inside.select("trips", key=_pair_key(box, cells, steps))
    counts = inside.group_by(keys).agg(pl.col("trips").sum()).sort(keys)
    try:
        audited, counted = pl.collect_all([audit, counts], engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(path, error) from error

    facts: dict[str, int] = audited.row(0, named=True)
    bad = {name.removeprefix("bad:"): facts.pop(name) for name in list(facts) if name.startswith("bad:")}
    swapped = {end: (facts.pop(f"swapped:{end}"), facts.pop(f"bad_as_swapped:{end}")) for end in exchanged}
    _check(path, facts, bad, swapped, box, window, columns, keep_going=bad_rows == "drop")
    trips = counted["trips"].to_numpy()
    if source_cell is None:
        step_of, origin, destination = _split(counted["key"].to_numpy(), cells * cells)
        centres = _centres(box, cells)
        return TripCounts(step_of, origin, destination, trips, centres, centres), facts
    placed = []
    for end in ("pickup", "dropoff"):
        lon, lat = (counted[f"{end}_{axis}"].to_numpy() for axis in ("lon", "lat"))
        placed.append(np.unique(lon + 1j * lat, return_inverse=True))
    (origins, origin), (destinations, destination) = placed
    return TripCounts(counted["step"].to_numpy(), origin, destination, trips, origins, destinations), facts


def slice_name(window: Window, steps: int, step: int) -> str:
    """Which times of day one of ``steps`` equal slices of the window covers, in words."""
    start, length = _parsed(window)
    minutes = [(start + length * edge // steps) // (60 * 10**9) % (24 * 60) for edge in (step, step + 1)]
    return " to ".join(f"{minute // 60:02d}:{minute % 60:02d}" for minute in minutes)


def window_minutes(window: Window) -> float:
    """Length of the window in minutes.

    Raises:
        ValueError: If it is none.
    """
    return _parsed(window)[1] / (60 * 10**9)


def _selected(path: Path, window: Window | None, columns: Mapping[str, str]) -> pl.LazyFrame:
    """The columns we need under our names, coordinates and counts as numbers (null where unreadable)."""

    def needed(names: Collection[str]) -> list[str]:
        counted = "trips" in columns or "trips" in names
        return [*COORDINATES, *["pickup_time"] * (window is not None), *["trips"] * counted]

    frame = scan(path, "trip", COLUMNS, needed, columns)  # says how to install polars
    import polars as pl

    schema = frame.collect_schema()
    numbers = [as_number(name, schema[name]) for name in COORDINATES]
    numbers.append(as_number("trips", schema["trips"]) if "trips" in schema else pl.lit(1.0).alias("trips"))
    if window:
        check_time_type(path, columns.get("pickup_time", "pickup_time"), schema["pickup_time"])
        time, kind = pl.col("pickup_time"), schema["pickup_time"]
        if kind == pl.String:
            frame = with_times_of_day(frame, "pickup_time")
        numbers.append(time if kind in (pl.String, pl.Time) else time.dt.time())
    return frame.select(numbers)


def _readable(frame: pl.LazyFrame, largest_latitude: int = 90) -> dict[str, pl.Expr]:
    """For each column, the condition that its value makes sense; never null."""
    import polars as pl

    conditions = {name: is_degree(name, largest_latitude if name.endswith("lat") else 180) for name in COORDINATES}
    conditions["trips"] = (pl.col("trips").is_finite() & (pl.col("trips") >= 0)).fill_null(False)
    if "pickup_time" in frame.collect_schema():
        conditions["pickup_time"] = pl.col("pickup_time").is_not_null()
    return conditions


def _in_box(lon: str, lat: str, box: Box, half: tuple[float, float]) -> pl.Expr:
    import polars as pl

    west, east, south, north = box

    def within(column: str, low: float, high: float, half: float) -> pl.Expr:
        value = pl.col(column)
        # A source cell counts as inside as soon as it overlaps the box; a point on the edge does, too.
        return (value + half > low) & (value - half < high) if half else value.is_between(low, high)

    return within(lon, west, east, half[0]) & within(lat, south, north, half[1])


def _parsed(window: Window) -> tuple[int, int]:
    """Start and length of the window in nanoseconds."""
    try:
        start, end = window
        # datetime knows no end of the day.
        first, last = _nanoseconds(start), DAY if end in ("24:00", "24:00:00") else _nanoseconds(end)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"window must be two times of day such as ('19:00', '22:00'), the second up to '24:00', got {window!r}"
        ) from error
    if first == last:
        raise ValueError(f"window must not be empty, got {window!r}; the whole day is ('00:00', '24:00')")
    return first, (last - first) % DAY or DAY


def _nanoseconds(text: str) -> int:
    time = dt.time.fromisoformat(text)
    return ((time.hour * 60 + time.minute) * 60 + time.second) * 10**9 + time.microsecond * 1000


def _since(window: Window) -> pl.Expr:
    """Nanoseconds from the window's start to the pick-up, on the same day or the next."""
    import polars as pl

    return (pl.col("pickup_time").cast(pl.Int64) - _parsed(window)[0]) % DAY


def _pair_key(box: Box, cells: int, steps: int) -> pl.Expr:
    """Slice, origin cell and destination cell as one number; all destinations outside the box are cell ``K``."""
    import polars as pl

    west, east, south, north = box

    def index(column: str, low: float, high: float) -> pl.Expr:
        value = pl.col(column)
        # The last cell of an axis includes its upper edge.
        return pl.when(value == high).then(cells - 1).otherwise(((value - low) / (high - low) * cells).floor())

    origin = index("pickup_lon", west, east) * cells + index("pickup_lat", south, north)
    x, y = index("dropoff_lon", west, east), index("dropoff_lat", south, north)
    inside = x.is_between(0, cells - 1) & y.is_between(0, cells - 1)
    size = cells * cells
    pair = (pl.col("step") * size + origin) * (size + 1) + pl.when(inside).then(x * cells + y).otherwise(size)
    return pair.cast(pl.UInt32 if steps * size * (size + 1) < 2**32 else pl.UInt64)


def _split(key: NDArray[np.unsignedinteger], size: int) -> tuple[Index, Index, Index]:
    """Slice, origin and destination of each key."""
    rest, destination = np.divmod(key, size + 1)
    step, origin = np.divmod(rest, size)
    return step, origin, destination


def _centres(box: Box, cells: int) -> NDArray[np.complex128]:
    """The centre of each cell, and a place east of the box."""
    west, east, south, north = box
    cell = np.arange(cells * cells + 1)
    centres: NDArray[np.complex128] = (
        west + (cell // cells + 0.5) * ((east - west) / cells) + 1j * (south + (cell % cells + 0.5) * ((north - south) / cells))
    )
    return centres


def _check(
    path: Path,
    facts: Mapping[str, int],
    bad: Mapping[str, int],
    swapped: Mapping[str, tuple[int, int]],
    box: Box,
    window: Window | None,
    columns: Mapping[str, str],
    *,
    keep_going: bool,
) -> None:
    rows = facts["rows"]
    if rows == 0:
        raise ValueError(f"{path} has no rows")
    left = rows - facts["bad_rows"] - facts["rows_outside_window"] - facts["rows_outside_box"]
    staying = left - facts["rows_leaving"]
    for end, what, usable in (("pickup", "pick-up", left), ("dropoff", "drop-off", staying)):
        would, bad_as_swapped = swapped[end]
        # Other bad rows come first: what they hide may be the true cause.
        if usable == 0 and would and (keep_going or facts["bad_rows"] == bad_as_swapped):
            raise ValueError(
                f"{path}: longitude and latitude look swapped: no {what} lies in the box {box}, and {would} of {rows} would "
                f"with {end}_lon and {end}_lat exchanged. Where the box is right, which is (west, east, south, north), correct "
                f"the file's columns with columns={{'{end}_lon': ..., '{end}_lat': ...}}"
            )
    if facts["bad_rows"] and not keep_going:
        named = ", ".join(f"{count} in column {columns.get(name, name)!r}" for name, count in bad.items() if count)
        raise ValueError(
            f"{path}: {facts['bad_rows']} of {rows} rows have unreadable or impossible values ({named}). Coordinates are "
            "finite degrees, counts at least 0, times end in a time of day such as 19:05:33 or 07:05:33 PM. Leave such rows "
            "out with bad_rows='drop'"
        )
    if staying:
        return
    if left:
        raise ValueError(f"{path}: none of the {left} trips that start in the box {box} ends in it: nobody would ride")
    read = f"{rows} rows read" + f", {facts['bad_rows']} of them unreadable" * bool(facts["bad_rows"])
    if window and facts["rows_outside_box"] == 0:
        raise ValueError(f"{path}: no trip starts in the window {window[0]} to {window[1]} ({read})")
    late = f", {facts['rows_outside_window']} outside the window {window[0]} to {window[1]}" if window else ""
    raise ValueError(f"{path}: no trip starts in the box {box} ({read}{late}, {facts['rows_outside_box']} outside the box)")
