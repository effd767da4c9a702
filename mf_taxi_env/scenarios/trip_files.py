"""Trip files: scanned lazily, checked column by column, counted per origin and destination (polars)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mf_taxi_env.scenarios.scenario import Box

if TYPE_CHECKING:
    import polars as pl

COORDINATES = ("pickup_lon", "pickup_lat", "dropoff_lon", "dropoff_lat")
#: Every name that ``columns`` may map to a column of the file.
COLUMNS = (*COORDINATES, "pickup_time", "trips")

Window = tuple[str, str]


def count_trips(
    path: Path,
    box: Box,
    cells: int,
    window: Window | None,
    columns: Mapping[str, str],
    source_cell: tuple[float, float] | None,
    bad_rows: str,
) -> tuple[dict[str, NDArray[np.float64]], dict[str, int]]:
    """Trips per distinct origin and destination, as columns, and the counts of rows that were left out."""
    try:
        import polars as pl
    except ImportError as error:
        raise ImportError("Reading trip files needs polars: pip install 'safe-m3-taxi[trips]'") from error

    frame = _selected(path, window, columns)
    half = (0.0, 0.0) if source_cell is None else (source_cell[0] / 2, source_cell[1] / 2)
    is_bad = {name: ~condition.fill_null(False) for name, condition in _readable(frame).items()}
    good = ~pl.any_horizontal(*is_bad.values())
    in_window = pl.lit(True) if window is None else _in_window(window)
    starts = good & in_window & _in_box("pickup_lon", "pickup_lat", box, half)
    ends = _in_box("dropoff_lon", "dropoff_lat", box, half)
    audit = frame.select(
        pl.len().alias("rows"),
        *[flag.sum().alias(f"bad:{name}") for name, flag in is_bad.items()],
        (~good).sum().alias("bad_rows"),
        (good & ~in_window).sum().alias("rows_outside_window"),
        (good & in_window & ~_in_box("pickup_lon", "pickup_lat", box, half)).sum().alias("rows_outside_box"),
        (starts & ~ends).sum().alias("rows_leaving"),
        # How many rows would start in the box if longitude and latitude changed places.
        (_in_box("pickup_lat", "pickup_lon", box, half).fill_null(False)).sum().alias("swapped"),
    )
    inside = frame.filter(starts)
    if source_cell is None:
        # A point is as good as its cell's centre, and there are at most K * (K + 1) pairs of those: memory stays bounded.
        west, east, south, north = box
        inside = inside.with_columns(
            *[_snapped(column, west, east, cells) for column in ("pickup_lon", "dropoff_lon")],
            *[_snapped(column, south, north, cells) for column in ("pickup_lat", "dropoff_lat")],
        )
    counts = inside.group_by(COORDINATES).agg(pl.col("trips").sum())
    try:
        audited, counted = pl.collect_all([audit, counts.sort(COORDINATES)], engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {_first_line(error)}") from error

    facts: dict[str, int] = audited.row(0, named=True)
    bad = {name.removeprefix("bad:"): facts.pop(name) for name in list(facts) if name.startswith("bad:")}
    swapped = facts.pop("swapped")
    _check(path, facts, bad, swapped, box, window, columns, keep_going=bad_rows == "drop")
    return {name: counted[name].to_numpy().astype(np.float64) for name in (*COORDINATES, "trips")}, facts


def _selected(path: Path, window: Window | None, columns: Mapping[str, str]) -> pl.LazyFrame:
    """The columns we need under our names, coordinates and counts as numbers (null where unreadable)."""
    import polars as pl

    unknown = set(columns) - set(COLUMNS)
    if unknown:
        raise ValueError(f"columns maps unknown names {sorted(unknown)}; allowed are {list(COLUMNS)}")
    if not path.is_file():
        raise FileNotFoundError(f"no trip file at {path}")
    kind = path.name.lower()
    try:
        if kind.endswith((".parquet", ".pq")):
            frame = pl.scan_parquet(path)
        elif kind.endswith((".csv", ".csv.gz", ".csv.zst")):
            # As text: a single malformed number must be counted and named, not abort the reader.
            frame = pl.scan_csv(path, infer_schema=False)
        else:
            raise ValueError(f"{path}: trips must be a .csv, .csv.gz, .csv.zst or .parquet file")
        schema = frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {_first_line(error)}") from error

    needed = [*COORDINATES, *(["pickup_time"] if window else [])]
    if "trips" in columns or "trips" in schema:
        needed.append("trips")
    actual = {name: columns.get(name, name) for name in needed}
    missing = [f"{column!r} (for {name})" for name, column in actual.items() if column not in schema]
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(missing)}; it has {schema.names()}. "
            "Map our names to the file's with columns={...}"
        )
    numbers = [pl.col(actual[name]).cast(pl.Float64, strict=False).alias(name) for name in COORDINATES]
    if "trips" in actual:
        numbers.append(pl.col(actual["trips"]).cast(pl.Float64, strict=False).alias("trips"))
    else:
        numbers.append(pl.lit(1.0).alias("trips"))
    if window:
        time = pl.col(actual["pickup_time"])
        if schema[actual["pickup_time"]] == pl.String:
            time = time.str.to_datetime(strict=False)
        numbers.append(time.dt.time().alias("pickup_time"))
    return frame.select(numbers)


def _readable(frame: pl.LazyFrame) -> dict[str, pl.Expr]:
    """For each column, the condition that its value makes sense."""
    import polars as pl

    limits = {"pickup_lon": 180.0, "pickup_lat": 90.0, "dropoff_lon": 180.0, "dropoff_lat": 90.0}
    conditions = {name: pl.col(name).is_finite() & (pl.col(name).abs() <= limit) for name, limit in limits.items()}
    conditions["trips"] = pl.col("trips").is_finite() & (pl.col("trips") >= 0)
    if "pickup_time" in frame.collect_schema():
        conditions["pickup_time"] = pl.col("pickup_time").is_not_null()
    return conditions


def _in_box(lon: str, lat: str, box: Box, half: tuple[float, float]) -> pl.Expr:
    import polars as pl

    west, east, south, north = box
    # A source cell counts as inside as soon as it overlaps the box.
    horizontal = (pl.col(lon) + half[0] >= west) & (pl.col(lon) - half[0] <= east)
    return horizontal & (pl.col(lat) + half[1] >= south) & (pl.col(lat) - half[1] <= north)


def _in_window(window: Window) -> pl.Expr:
    import polars as pl

    try:
        start, end = (dt.time.fromisoformat(text) for text in window)
    except (TypeError, ValueError) as error:
        raise ValueError(f"window must be two times of day such as ('19:00', '22:00'), got {window!r}") from error
    time = pl.col("pickup_time")
    if start == end:
        raise ValueError(f"window must not be empty, got {window!r}")
    inside = (time >= start) & (time < end) if start < end else (time >= start) | (time < end)
    return inside.fill_null(False)


def _snapped(column: str, low: float, high: float, cells: int) -> pl.Expr:
    """The centre of the point's cell; points beyond the box snap to centres beyond it, one on either side."""
    import polars as pl

    value = pl.col(column)
    index = ((value - low) / (high - low) * cells).floor().clip(-1, cells)
    index = pl.when(value == high).then(cells - 1).otherwise(index)
    return (low + (index + 0.5) * ((high - low) / cells)).alias(column)


def _check(
    path: Path,
    facts: Mapping[str, int],
    bad: Mapping[str, int],
    swapped: int,
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
    if left == 0 and swapped:
        raise ValueError(
            f"{path}: longitude and latitude look swapped: no pick-up lies in the box {box}, and {swapped} of {rows} would "
            "with pickup_lon and pickup_lat exchanged. Correct it with columns={'pickup_lon': ..., 'pickup_lat': ...}"
        )
    if facts["bad_rows"] and not keep_going:
        named = ", ".join(f"{count} in column {columns.get(name, name)!r}" for name, count in bad.items() if count)
        raise ValueError(
            f"{path}: {facts['bad_rows']} of {rows} rows have unreadable or impossible values ({named}). Coordinates are "
            "finite degrees, counts at least 0, times dates with a time of day. Leave such rows out with bad_rows='drop'"
        )
    if left:
        return
    if window and facts["rows_outside_box"] == 0:
        raise ValueError(f"{path}: no trip starts in the window {window[0]} to {window[1]} ({rows} rows read)")
    raise ValueError(f"{path}: no trip starts in the box {box} ({rows} rows read, {facts['rows_outside_box']} outside it)")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
