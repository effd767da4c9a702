"""GPS traces to trips: where a trip starts and ends, what is left out and counted, and every way a file can be wrong."""

from __future__ import annotations

import datetime as dt
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mf_taxi_env import scenario_from_trips
from mf_taxi_env.scenarios.traces import describe, trips_from_traces

pl = pytest.importorskip("polars")

HEADER = "taxi,time,lon,lat,occupied"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a CSV file of lines."""

    def write(*lines: str, header: str = HEADER, name: str = "traces.csv") -> Path:
        path = tmp_path / name
        data = "".join(f"{line}\n" for line in (header, *lines)).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


def trace(taxi: str, flags: str, start: str = "2020-01-20 19:00:00", minutes: float = 1.0) -> list[str]:
    """One row per minute, each a thousandth of a degree further east."""
    first = dt.datetime.fromisoformat(start)
    return [
        f"{taxi},{first + n * dt.timedelta(minutes=minutes)},{10 + n / 1000:.3f},45.5,{flag}"
        for n, flag in enumerate(flags)
        if flag != "-"
    ]


def found(path: Path, **settings: Any) -> tuple[list[tuple[str, float, float]], dict[str, int]]:
    """Taxi, pick-up and drop-off minute after 19:00 of each trip, and the counts."""
    out = path.parent / "trips.parquet"
    facts = trips_from_traces(path, out, **settings)
    start = dt.datetime.fromisoformat("2020-01-20 19:00:00")
    rows = [
        (taxi, *[(time - start).total_seconds() / 60 for time in times])
        for taxi, *times in pl.read_parquet(out).select("taxi", "pickup_time", "dropoff_time").iter_rows()
    ]
    return rows, facts


def by_loop(rows: list[tuple[str, dt.datetime, int]], max_gap: float) -> list[tuple[str, dt.datetime, dt.datetime]]:
    """Trips by the definition, one row after the other."""
    trips = []
    for taxi in sorted({row[0] for row in rows}):
        start, last = None, None
        for _, time, flag in sorted(row for row in rows if row[0] == taxi):
            if last is None or (time - last[0]).total_seconds() > max_gap:
                start = None
            elif flag and not last[1]:
                start = time
            elif not flag and start is not None:
                trips.append((taxi, start, time))
                start = None
            last = (time, flag)
    return trips


def test_a_trip_is_from_the_first_occupied_row_to_the_next_free_one(write: Write, tmp_path: Path) -> None:
    """Times and places of both ends, taxi by taxi."""
    rows, facts = found(write(*trace("a", "0011100"), *trace("b", "0101")))
    assert rows == [("a", 2, 5), ("b", 1, 2)]
    assert facts == {"rows": 11, "bad_rows": 0, "taxis": 2, "gaps": 0, "trips": 2, "pickups_only": 1, "dropoffs_only": 0}
    trip = pl.read_parquet(tmp_path / "trips.parquet").row(0, named=True)
    assert (trip["pickup_lon"], trip["pickup_lat"], trip["dropoff_lon"]) == (10.002, 45.5, 10.005)


def test_trips_already_under_way_and_unfinished_are_left_out(write: Write) -> None:
    """Where a record starts or ends occupied, one end is not known; the next taxi's rows do not stand in for it."""
    rows, facts = found(write(*trace("a", "1101"), *trace("b", "0110"), *trace("c", "110")))
    assert rows == [("b", 1, 3)]
    assert (facts["pickups_only"], facts["dropoffs_only"], facts["trips"]) == (1, 2, 1)


def test_a_gap_breaks_a_trip(write: Write) -> None:
    """A record that is silent for longer than the limit may have missed a drop-off and another pick-up."""
    path = write(*trace("a", "01---10"), *trace("b", "01--10"))
    rows, facts = found(path, max_gap=180.0)
    assert rows == [("b", 1, 5)]
    assert (facts["gaps"], facts["pickups_only"], facts["dropoffs_only"]) == (1, 1, 1)
    assert len(found(path, max_gap=240.0)[0]) == 2


def test_a_turn_across_a_gap_is_no_trip_end(write: Write) -> None:
    """Free before the gap and occupied after it: nobody saw the pick-up."""
    rows, facts = found(write(*trace("a", "00---110"), *trace("b", "010")), max_gap=120.0)
    assert rows == [("b", 1, 2)]
    assert (facts["pickups_only"], facts["dropoffs_only"]) == (0, 1)


def test_random_traces_against_an_explicit_loop(write: Write) -> None:
    """Shuffled rows of many taxis with gaps: the trips of a row-by-row reading."""
    rng = np.random.default_rng(0)
    start = dt.datetime.fromisoformat("2020-01-20 19:00:00")
    rows = []
    for taxi in range(20):
        steps = np.cumsum(rng.choice([20, 60, 700], size=60, p=[0.6, 0.35, 0.05]))
        rows += [(f"t{taxi}", start + dt.timedelta(seconds=int(s)), int(rng.random() < 0.5)) for s in steps]
    order = rng.permutation(len(rows))
    path = write(*[f"{rows[n][0]},{rows[n][1]},10.5,45.5,{rows[n][2]}" for n in order])
    out = path.with_name("trips.parquet")
    facts = trips_from_traces(path, out)
    expected = by_loop(rows, 600.0)
    assert pl.read_parquet(out).select("taxi", "pickup_time", "dropoff_time").rows() == expected
    assert 0 < facts["trips"] == len(expected)
    assert facts["gaps"] > 10


def test_formats_agree_and_feed_the_scenario(write: Write, tmp_path: Path) -> None:
    """CSV, gzipped CSV and Parquet with booleans in, CSV and Parquet out: one city."""
    lines = [*trace("1", "00111000"), *trace("2", "0101100", "2020-01-20 20:00:00")]
    path = write(*lines)
    frame = pl.read_csv(path, try_parse_dates=True).with_columns(pl.col("occupied").cast(pl.Boolean))
    frame.write_parquet(tmp_path / "traces.parquet")
    cities = []
    for n, source in enumerate((path, write(*lines, name="traces.csv.gz"), tmp_path / "traces.parquet")):
        for suffix in (".csv", ".parquet"):
            out = tmp_path / f"{n}{suffix}"
            assert trips_from_traces(source, out)["trips"] == 3
            box = (10.0, 10.01, 45.45, 45.55)
            cities.append(scenario_from_trips(out, box=box, cells=4, smoothing=1, window=("19:00", "19:30"), name="x"))
    assert cities[0].provenance["trips"] == 1
    assert len({city.digest for city in cities}) == 1


@pytest.mark.parametrize("flags", ["0110", "FTTF", "ftTf"])
def test_flags_are_numbers_or_words(write: Write, flags: str) -> None:
    """0 and 1, false and true in any case."""
    words = {"0": "0", "1": "1", "F": "False", "T": "TRUE", "f": "false", "t": "true"}
    lines = [line.rsplit(",", 1)[0] + "," + words[flag] for line, flag in zip(trace("a", "0110"), flags, strict=True)]
    assert len(found(write(*lines))[0]) == 1


def test_times_of_day_alone_are_one_day(write: Write, tmp_path: Path) -> None:
    """As in the open samples of Shenzhen: the trip file's times of day are right."""
    lines = [line.replace("2020-01-20 ", "") for line in trace("a", "0110")]
    trips_from_traces(write(*lines), tmp_path / "trips.parquet")
    assert pl.read_parquet(tmp_path / "trips.parquet")["pickup_time"].dt.time().to_list() == [dt.time(19, 1)]


def test_columns_are_mapped(write: Write) -> None:
    """A file with its own names."""
    header = "VehicleNum,Time,Lng,Lat,OpenStatus"
    columns = dict(zip(("taxi", "time", "lon", "lat", "occupied"), header.split(","), strict=True))
    assert len(found(write(*trace("a", "0110"), header=header), columns=columns)[0]) == 1


def test_bad_rows_are_refused_or_dropped(write: Write) -> None:
    """Counted by column under the file's names; dropped rows do not end a trip."""
    good = trace("a", "01110")
    bad = ["a,yesterday,10.5,45.5,0", "a,2020-01-20 19:02:10,200,45.5,0", "a,2020-01-20 19:02:20,10.5,x,0", ",,,,"]
    path = write(*good, *bad, "a,2020-01-20 19:02:30,10.5,45.5,2")
    with pytest.raises(ValueError, match=r"traces\.csv: 5 of 10 rows .*2 in column 'lon'.*bad_rows='drop'"):
        found(path)
    assert not path.with_name("trips.parquet").exists()
    rows, facts = found(path, bad_rows="drop")
    assert rows == [("a", 1, 4)]
    assert facts["bad_rows"] == 5


def test_a_file_without_trips_raises(write: Write, tmp_path: Path) -> None:
    """What there was instead is told, and no file is written."""
    for lines in (trace("a", "0000"), trace("a", "1111"), []):
        with pytest.raises(ValueError, match=r"traces\.csv: no trip in \d rows"):
            trips_from_traces(write(*lines), tmp_path / "trips.csv")
    assert not (tmp_path / "trips.csv").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"out": "trips.txt"}, r"out must be .*'trips.txt'"),
        ({"max_gap": 0.0}, "max_gap .*0.0"),
        ({"max_gap": float("nan")}, "max_gap .*nan"),
        ({"bad_rows": "ignore"}, "bad_rows .*'ignore'"),
        ({"columns": {"vehicle": "taxi"}}, r"unknown names \['vehicle'\]"),
        ({"columns": {"taxi": "vehicle"}}, r"no column 'vehicle' \(for taxi\)"),
    ],
)
def test_bad_arguments_raise(write: Write, settings: dict[str, Any], message: str) -> None:
    """Named, with the value given."""
    path = write(*trace("a", "0110"))
    with pytest.raises(ValueError, match=message):
        trips_from_traces(path, **{"out": path.with_name("trips.csv"), **settings})


def test_files_that_are_none_raise(write: Write, tmp_path: Path) -> None:
    """Missing, foreign, and with numbers where times should be."""
    with pytest.raises(FileNotFoundError, match=r"no trace file at .*none\.csv"):
        trips_from_traces(tmp_path / "none.csv", tmp_path / "trips.csv")
    with pytest.raises(ValueError, match=r"traces must be a \.csv"):
        trips_from_traces(write(*trace("a", "010"), name="traces.txt"), tmp_path / "trips.csv")
    frame = pl.read_csv(write(*trace("a", "0110"))).with_columns(time=pl.int_range(pl.len()))
    frame.write_parquet(tmp_path / "traces.parquet")
    with pytest.raises(ValueError, match=r"traces\.parquet: column 'time' must hold times or text, not Int64"):
        trips_from_traces(tmp_path / "traces.parquet", tmp_path / "trips.csv")


def test_the_description_accounts_for_every_count(write: Write) -> None:
    """Every number of the report is in the text."""
    _, facts = found(write(*trace("a", "1101100"), *trace("b", "011")))
    text = describe(facts)
    assert all(f"{value:,}" in text for value in facts.values())


@pytest.mark.parametrize("zone", ["Z", "+08:00", "-0500", " +08", " UTC", "GMT"])
@pytest.mark.parametrize("day", ["2020-01-20T", "2020-01-20 ", ""])
def test_a_zone_is_local_time_as_written(write: Write, tmp_path: Path, day: str, zone: str) -> None:
    """19:01 in Shenzhen is an evening, whatever the clock says in Greenwich."""
    lines = [f"a,{day}19:{n:02d}:00{zone},10.5,45.5,{flag}" for n, flag in enumerate("0110")]
    trips_from_traces(write(*lines), tmp_path / "trips.parquet")
    assert pl.read_parquet(tmp_path / "trips.parquet")["pickup_time"].dt.time().to_list() == [dt.time(19, 1)]


def test_a_date_alone_is_no_time(write: Write) -> None:
    """Counted as unreadable, as the message promises, rather than taken for midnight."""
    path = write(*trace("a", "0110"), "a,2020-01-20,10.5,45.5,0")
    with pytest.raises(ValueError, match=r"1 of 5 rows .*1 in column 'time'.*a time has a time of day"):
        found(path)
    assert found(path, bad_rows="drop")[1]["bad_rows"] == 1
