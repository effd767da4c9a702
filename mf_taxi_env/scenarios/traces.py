"""GPS traces of taxis with an occupied flag, turned into trips (polars)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mf_taxi_env.atomic import replacing
from mf_taxi_env.scenarios.row_files import as_number, check_time_type, is_degree, local_time_text, scan, unreadable

if TYPE_CHECKING:
    import polars as pl

#: Every name that ``columns`` may map to a column of the file.
COLUMNS = ("taxi", "time", "lon", "lat", "occupied")
#: Values of the occupied flag, as lower-case text.
OCCUPIED = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
#: Day given to rows whose time has none.
NO_DAY = "1970-01-01"


def trips_from_traces(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    columns: Mapping[str, str] | None = None,
    max_gap: float = 600.0,
    bad_rows: Literal["raise", "drop"] = "raise",
) -> dict[str, int]:
    """Find the trips in a file of GPS traces and write them to a file for :func:`~mf_taxi_env.scenario_from_trips`.

    Taxi by taxi and in order of time, a trip starts at the first occupied row after a free one, and ends at the next free row.
    Trips already under way when a taxi's record starts, or still when it ends, are left out; so are those that a gap in the
    record cuts, since where they started or ended is not known. Rows need not be in order.

    Args:
        source: CSV (``.csv``, ``.csv.gz``, ``.csv.zst``) or Parquet file, one row per position: taxi, time, longitude,
            latitude in degrees, and whether a passenger is in (0 and 1, or false and true). A time is a date with a time of
            day, or a time of day alone, all rows being of one day; in text the date is ISO 8601's (``2014-01-20``) or, in all
            rows alike, day first (``20/01/2014``). A zone (``Z``, ``UTC``, ``GMT``, ``+08:00``) is ignored: local time, as
            written.
        out: Trip file to write, ``.csv`` or ``.parquet``, whole or not at all: ``taxi``, ``pickup_time``, ``pickup_lon``,
            ``pickup_lat``, ``dropoff_time``, ``dropoff_lon``, ``dropoff_lat``.
        columns: Maps our names (``taxi``, ``time``, ``lon``, ``lat``, ``occupied``) to the file's, where they differ.
        max_gap: Seconds between two rows of a taxi beyond which the record counts as interrupted, above 0.
        bad_rows: ``"raise"`` refuses a file with unreadable or impossible values; ``"drop"`` leaves out such rows, counted.

    Returns:
        Counts: ``rows`` read, ``bad_rows``, ``taxis``, ``gaps``, ``trips`` written, ``pickups_only`` (pick-ups left
        out, as their drop-off was not seen) and ``dropoffs_only`` (the reverse; a gap within a trip makes one of each).

    Raises:
        FileNotFoundError: If there is no such file, or no folder for the output.
        ImportError: If polars is not installed.
        ValueError: If an argument is out of range, the file cannot be read, a column is missing, values are bad, or there is
            no trip in it.
    """
    path, target = Path(source), Path(out)
    if target.suffix not in (".csv", ".parquet"):
        raise ValueError(f"out must be a .csv or .parquet file, got {os.fspath(out)!r}")
    if not (max_gap > 0 and math.isfinite(max_gap)):
        raise ValueError(f"max_gap must be a finite number of seconds above 0, got {max_gap!r}")
    if bad_rows not in ("raise", "drop"):
        raise ValueError(f"bad_rows must be 'raise' or 'drop', got {bad_rows!r}")
    columns = columns or {}
    raw = scan(path, "trace", COLUMNS, lambda _: COLUMNS, columns)  # says how to install polars
    import polars as pl

    check_time_type(path, columns.get("time", "time"), raw.collect_schema()["time"])
    frame = _typed(raw)
    good = {name: pl.col(name).is_not_null() for name in COLUMNS} | {"lon": is_degree("lon", 180), "lat": is_degree("lat", 90)}
    audit = frame.select(
        pl.len().alias("rows"),
        *[(~condition).sum().alias(name) for name, condition in good.items()],
        (~pl.all_horizontal(*good.values())).sum().alias("bad_rows"),
    )
    try:
        audited, events = pl.collect_all([audit, _events(frame.filter(*good.values()), max_gap)], engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(path, error) from error
    facts: dict[str, int] = audited.row(0, named=True)
    bad = {name: facts.pop(name) for name in COLUMNS}
    if facts["bad_rows"] and bad_rows == "raise":
        named = ", ".join(f"{count} in column {columns.get(name, name)!r}" for name, count in bad.items() if count)
        raise ValueError(
            f"{path}: {facts['bad_rows']} of {facts['rows']} rows have unreadable or impossible values ({named}). Coordinates "
            "are finite degrees, occupied is 0 or 1, a time has a time of day. Leave such rows out with bad_rows='drop'"
        )
    trips, found = _paired(events)
    if not len(trips):
        raise ValueError(
            f"{path}: no trip in {facts['rows']} rows of {found['taxis']} taxis ({facts['bad_rows']} unreadable, "
            f"{found['gaps']} gaps beyond max_gap={max_gap:g} s): no taxi turns occupied and then free again"
        )
    with replacing(target) as temporary:
        if target.suffix == ".parquet":
            trips.write_parquet(temporary)
        else:
            trips.write_csv(temporary)
    return {**facts, **found}


def describe(facts: Mapping[str, int]) -> str:
    """One readable paragraph on what became of a trace file's rows."""
    return "\n".join(
        (
            f"{facts['rows']:>12,} rows of {facts['taxis']:,} taxis",
            f"{facts['bad_rows']:>12,} left out: unreadable values",
            f"{facts['gaps']:>12,} gaps in the record",
            f"{facts['pickups_only']:>12,} pick-ups left out: the drop-off not seen",
            f"{facts['dropoffs_only']:>12,} drop-offs left out: the pick-up not seen",
            f"{facts['trips']:>12,} trips",
        )
    )


def _typed(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Columns of their types, null where unreadable."""
    import polars as pl

    schema = frame.collect_schema()
    time, kind = pl.col("time"), schema["time"]
    if kind == pl.String:
        text = local_time_text("time")
        time = pl.coalesce(text.str.to_datetime(strict=False), (NO_DAY + " " + text).str.to_datetime(strict=False))
    elif kind == pl.Time:
        time = pl.lit(NO_DAY).str.to_date().dt.combine(time)
    flag = pl.col("occupied").cast(pl.String).str.strip_chars().str.to_lowercase()
    return frame.select(
        pl.col("taxi").cast(pl.String),
        # Local time as written: trips are chosen by time of day.
        time.dt.replace_time_zone(None).cast(pl.Datetime("us")),
        as_number("lon", schema["lon"]),
        as_number("lat", schema["lat"]),
        flag.replace_strict(OCCUPIED, default=None, return_dtype=pl.Boolean).alias("occupied"),
    )


def _events(frame: pl.LazyFrame, max_gap: float) -> pl.LazyFrame:
    """The rows that matter: where a taxi's record starts (again), and where its flag turns."""
    import polars as pl

    ordered = frame.sort("taxi", "time", maintain_order=True)
    new_taxi = (pl.col("taxi") != pl.col("taxi").shift()).fill_null(True)
    # One shift over the whole file serves all taxis: where the taxi changes, nothing is compared.
    gap = ~new_taxi & (pl.col("time") - pl.col("time").shift() > pl.duration(microseconds=round(max_gap * 1e6)))
    turned = ~new_taxi & ~gap & (pl.col("occupied") != pl.col("occupied").shift())
    marked = ordered.with_columns(new_taxi=new_taxi, gap=gap.fill_null(False), turned=turned.fill_null(False))
    return marked.filter(pl.col("new_taxi") | pl.col("gap") | pl.col("turned"))


def _paired(events: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Each pick-up with the drop-off that follows it, and what was found."""
    import polars as pl

    pickup, dropoff = pl.col("turned") & pl.col("occupied"), pl.col("turned") & ~pl.col("occupied")
    # Between a pick-up and its drop-off nothing happens; a gap, or another taxi, would be an event of its own.
    trip = pickup & dropoff.shift(-1, fill_value=False)
    trips = events.select(
        "taxi",
        *[pl.col(name).alias(f"pickup_{name}") for name in ("time", "lon", "lat")],
        *[pl.col(name).shift(-1).alias(f"dropoff_{name}") for name in ("time", "lon", "lat")],
        trip=trip,
    )
    counts = events.select(
        taxis=pl.col("new_taxi").sum(),
        gaps=pl.col("gap").sum(),
        trips=trip.sum(),
        pickups_only=pickup.sum() - trip.sum(),
        dropoffs_only=dropoff.sum() - trip.sum(),
    )
    return trips.filter("trip").drop("trip"), counts.row(0, named=True)
