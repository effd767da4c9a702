"""Trip files to scenarios: formats, areas, windows, and every way in which a file can be wrong."""

from __future__ import annotations

import datetime as dt
import gzip
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from mf_taxi_env import EntropyFloor, Scenario, TaxiMDP, certified_bound, scenario_from_trips
from mf_taxi_env.scenarios import trips as trips_module
from mf_taxi_env.scenarios.row_files import with_times_of_day
from mf_taxi_env.scenarios.trips import median_smoothed

pl = pytest.importorskip("polars")

BOX = (10.0, 11.0, 45.0, 46.0)
HEADER = "pickup_lon,pickup_lat,dropoff_lon,dropoff_lat"
GOOD = "10.5,45.5,10.5,45.5"
SHENZHEN = (114.015, 114.14, 22.5, 22.625)

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a CSV file of lines."""

    def write(*lines: str, header: str = HEADER, name: str = "trips.csv") -> Path:
        path = tmp_path / name
        data = "".join(f"{line}\n" for line in (header, *lines)).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


def build(path: Path, **settings: object) -> Scenario:
    """A scenario of the toy box, unsmoothed."""
    return scenario_from_trips(path, **{"box": BOX, "cells": 4, "smoothing": 1, **settings})  # type: ignore[arg-type]


def random_trips(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates ``[n, 4]`` in and around the box, and counts ``[n]``."""
    rng = np.random.default_rng(seed)
    degrees = np.stack([rng.uniform(low - 0.2, low + 1.2, count) for low in (10, 45, 10, 45)], 1).round(4)
    return degrees, rng.integers(0, 9, count)


def brute_force(
    degrees: np.ndarray, counts: np.ndarray, cells: int, width: float, height: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pick-ups ``[K]`` and flow ``[K, K]`` by explicit overlap of each source rectangle with each cell."""

    def shares(lon: float, lat: float) -> np.ndarray:
        result = np.zeros((cells, cells))
        for i in range(cells):
            for j in range(cells):
                left, right = max(lon - width / 2, 10 + i / cells), min(lon + width / 2, 10 + (i + 1) / cells)
                low, high = max(lat - height / 2, 45 + j / cells), min(lat + height / 2, 45 + (j + 1) / cells)
                result[i, j] = max(right - left, 0) * max(high - low, 0) / (width * height)
        return result.ravel()

    pickups, flow = np.zeros(cells**2), np.zeros((cells**2, cells**2))
    for (o_lon, o_lat, d_lon, d_lat), count in zip(degrees, counts, strict=True):
        origin = count * shares(o_lon, o_lat)
        pickups += origin
        flow += np.outer(origin, shares(d_lon, d_lat))
    return pickups, flow


def normalised(flow: np.ndarray) -> np.ndarray:
    """Rows that sum to one, the identity where there is nothing."""
    return np.stack([row / row.sum() if row.sum() > 0 else np.eye(len(row))[c] for c, row in enumerate(flow)])


def test_points_are_binned_and_counted(write: Write) -> None:
    """Longitude first, row = origin, column = destination, counts as weights, cells without trips the identity."""
    path = write("10.1,45.1,10.9,45.1,3", "10.1,45.1,10.1,45.9,1", "10.9,45.9,10.6,45.2,4", header=HEADER + ",trips")
    city = build(path, cells=2, entropy_floor=0.8, name="toy")
    np.testing.assert_allclose(city.demand, [0.5, 0, 0, 0.5])
    np.testing.assert_allclose(city.trips, [[0, 0.25, 0.75, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]])
    assert (city.name, city.box, city.entropy_floor) == ("toy", BOX, 0.8)
    assert build(path).name == "trips"


def test_points_against_an_explicit_loop(write: Write) -> None:
    """Random points in and around the box; drop-offs outside count as demand only."""
    degrees, counts = random_trips(300)
    lines = [",".join(map(repr, [*map(float, row), int(n)])) for row, n in zip(degrees, counts, strict=True)]
    city = build(write(*lines, header=HEADER + ",trips"), cells=5)
    pickups, flow = np.zeros(25), np.zeros((25, 25))
    for (o_lon, o_lat, d_lon, d_lat), count in zip(degrees, counts, strict=True):
        if 10 <= o_lon <= 11 and 45 <= o_lat <= 46:
            origin = int((o_lon - 10) * 5) * 5 + int((o_lat - 45) * 5)
            pickups[origin] += count
            if 10 <= d_lon <= 11 and 45 <= d_lat <= 46:
                flow[origin, int((d_lon - 10) * 5) * 5 + int((d_lat - 45) * 5)] += count
    np.testing.assert_allclose(city.demand, pickups / pickups.sum())
    np.testing.assert_allclose(city.trips, normalised(flow))
    assert city.provenance["trips"] == pickups.sum()
    assert city.provenance["trips_inside"] == flow.sum()


def test_formats_agree(write: Write, tmp_path: Path) -> None:
    """CSV, gzipped CSV and Parquet of the same trips are the same scenario, times and counts included."""
    degrees, counts = random_trips(200)
    start = dt.datetime.fromisoformat("2020-01-20 18:00")
    times = [start + dt.timedelta(minutes=2 * n) for n in range(200)]
    lines = [
        ",".join([*map(repr, map(float, row)), str(count), str(time)])
        for row, count, time in zip(degrees, counts, times, strict=True)
    ]
    header = HEADER + ",trips,pickup_time"
    frame = pl.DataFrame({name: degrees[:, i] for i, name in enumerate(HEADER.split(","))})
    frame = frame.with_columns(trips=pl.Series(counts), pickup_time=pl.Series(times))
    frame.write_parquet(tmp_path / "trips.parquet")
    cities = [
        build(path, window=("19:00", "22:00"), smoothing=3)
        for path in (
            write(*lines, header=header),
            write(*lines, header=header, name="trips.csv.gz"),
            tmp_path / "trips.parquet",
        )
    ]
    for other in cities[1:]:
        np.testing.assert_array_equal(other.demand, cities[0].demand)
        np.testing.assert_array_equal(other.trips, cities[0].trips)
        assert {**other.provenance, "file": ""} == {**cities[0].provenance, "file": ""}
    assert cities[0].provenance["rows_outside_window"] == 200 - 90


def test_columns_are_mapped(write: Write) -> None:
    """A file with its own names gives the same city as ours; the count column may be mapped as well."""
    ours = build(write("10.1,45.1,10.9,45.1,3", "10.9,45.9,10.1,45.1,1", header=HEADER + ",trips"))
    columns = {"pickup_lon": "olon", "pickup_lat": "olat", "dropoff_lon": "dlon", "dropoff_lat": "dlat", "trips": "n"}
    path = write("3,45.1,10.1,10.9,45.1", "1,45.9,10.9,10.1,45.1", header="n,olat,olon,dlon,dlat", name="theirs.csv")
    theirs = build(path, columns=columns)
    np.testing.assert_array_equal(theirs.demand, ours.demand)
    np.testing.assert_array_equal(theirs.trips, ours.trips)
    assert ours.demand.max() == 0.75


@pytest.mark.parametrize("cells", [3, 7])
@pytest.mark.parametrize("source_cell", [(0.3, 0.25), (0.05, 0.9)])
def test_source_cells_are_spread_by_overlap(write: Write, cells: int, source_cell: tuple[float, float]) -> None:
    """Rectangles in, across and outside of the box's edge, wider and narrower than a cell, against explicit overlaps."""
    degrees, counts = random_trips(40)
    lines = [",".join(map(repr, [*map(float, row), int(n)])) for row, n in zip(degrees, counts, strict=True)]
    city = build(write(*lines, header=HEADER + ",trips"), cells=cells, source_cell=source_cell)
    pickups, flow = brute_force(degrees, counts, cells, *source_cell)
    np.testing.assert_allclose(city.demand, pickups / pickups.sum(), atol=1e-12)
    np.testing.assert_allclose(city.trips, normalised(flow), atol=1e-9)


def test_a_boundless_source_cell_is_refused(write: Write) -> None:
    """A width that is no number of degrees is an error by name, not an overflow somewhere below."""
    with pytest.raises(ValueError, match=r"source_cell.*inf"):
        build(write(GOOD), source_cell=(0.1, math.inf))


@pytest.mark.parametrize("side", [1, 3, 5])
def test_median_smoothing_against_an_explicit_loop(side: int) -> None:
    """A median over side x side cells, the edge repeated like a mirror; a side of 1 changes nothing."""
    k = 6
    mass = np.random.default_rng(0).random((k, k))

    def mirror(i: int) -> int:
        return -1 - i if i < 0 else 2 * k - 1 - i if i >= k else i

    reach = range(-(side // 2), side // 2 + 1)
    expected = [
        [np.median([mass[mirror(i + a), mirror(j + b)] for a in reach for b in reach]) for j in range(k)] for i in range(k)
    ]
    np.testing.assert_array_equal(median_smoothed(mass.ravel(), side), np.ravel(expected))


def test_smoothing_touches_demand_only(write: Write) -> None:
    """Trip probabilities are raw counts; the demand is the normalised median of the pick-ups."""
    degrees, _ = random_trips(500)
    path = write(*[",".join(map(repr, map(float, row))) for row in degrees])
    raw, smooth = build(path), build(path, smoothing=3)
    np.testing.assert_array_equal(raw.trips, smooth.trips)
    expected = median_smoothed(raw.demand, 3)
    np.testing.assert_allclose(smooth.demand, expected / expected.sum(), atol=1e-12)


@pytest.mark.parametrize(
    ("lon", "lat", "cell"),
    [
        (11.0, 45.5, 14),
        (10.5, 46.0, 11),
        (11.0, 46.0, 15),
        (10.0, 45.0, 0),
        (10.25, 45.0, 4),
        (10.999999999999998, 45.99999999999999, 15),
    ],
)
def test_points_on_the_boxs_edges_are_inside(write: Write, lon: float, lat: float, cell: int) -> None:
    """The east and north edges belong to the last cell; inner edges to the upper one."""
    city = build(write(f"{lon!r},{lat!r},{lon!r},{lat!r}"))
    assert city.demand[cell] == 1.0
    assert city.provenance["trips_inside"] == 1.0


@pytest.mark.parametrize(
    ("window", "hours"),
    [
        (("19:00", "22:00"), [19, 20, 21]),
        (("22:00", "01:00"), [22, 23, 0]),
        (("00:00", "01:00"), [0]),
        (("23:00", "00:00"), [23]),
    ],
)
def test_windows_are_half_open_and_may_pass_midnight(write: Write, window: tuple[str, str], hours: Sequence[int]) -> None:
    """The first second of the window counts, the first after it does not, and 22:00 to 01:00 is the night."""
    lines = [f"{GOOD},2020-01-20 {h:02d}:{ms}" for h in range(24) for ms in ("00:00", "30:00", "59:59")]
    city = build(write(*lines, header=HEADER + ",pickup_time"), window=window)
    assert city.provenance["trips"] == 3 * len(hours)
    assert city.provenance["rows_outside_window"] == 72 - 3 * len(hours)
    edges = [f"{GOOD},2020-01-20 {window[0]}:00", f"{GOOD},2020-01-20 {window[1]}:00"]
    assert build(write(*edges, header=HEADER + ",pickup_time"), window=window).provenance["trips"] == 1


@pytest.mark.parametrize(("start", "end"), [("19:00", "24:00"), ("19:00", "24:00:00"), ("00:00", "24:00")])
def test_a_window_may_end_with_the_day(write: Write, start: str, end: str) -> None:
    """At 24:00, which makes the whole day a window that can be cut into steps."""
    hours = range(int(start[:2]), 24)
    path = write(*timed(*[(GOOD, f"{h:02d}:00:00") for h in range(24)]), header=HEADER + ",pickup_time")
    city = build(path, window=(start, end), steps=len(hours))
    assert len(city.demand) == len(hours)
    assert (city.provenance["trips"], city.provenance["rows_outside_window"]) == (len(hours), 24 - len(hours))


def test_rows_outside_the_box_are_counted(write: Write) -> None:
    """Elsewhere is no error: pick-ups outside are left out, drop-offs outside are demand without a trip."""
    city = build(write(GOOD, "9.0,45.5,10.5,45.5", "10.5,46.5,10.5,45.5", "10.5,45.5,12.0,45.5"))
    facts = city.provenance
    assert (facts["rows"], facts["rows_outside_box"], facts["rows_leaving"], facts["bad_rows"]) == (4, 2, 1, 0)
    assert (facts["trips"], facts["trips_inside"]) == (2.0, 1.0)
    assert facts["file"] == "trips.csv"


BAD = {
    "NaN coordinate": (["nan,45.5,10.5,45.5"], HEADER, "1 in column 'pickup_lon'"),
    "infinite coordinate": (["10.5,45.5,inf,45.5"], HEADER, "1 in column 'dropoff_lon'"),
    "unparsable coordinate": (["10.5,north,10.5,45.5", "10.5,,10.5,45.5"], HEADER, "2 in column 'pickup_lat'"),
    "impossible coordinate": (["10.5,45.5,10.5,95"], HEADER, "1 in column 'dropoff_lat'"),
    "negative count": (["10.5,45.5,10.5,45.5,-1"], HEADER + ",trips", "1 in column 'trips'"),
    "unreadable count": (["10.5,45.5,10.5,45.5,many"], HEADER + ",trips", "1 in column 'trips'"),
    "unreadable time": (["10.5,45.5,10.5,45.5,soon"], HEADER + ",pickup_time", "1 in column 'pickup_time'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_rows_raise_or_are_dropped_and_counted(write: Write, kind: str) -> None:
    """The message names the file, the columns and the numbers; bad_rows="drop" leaves the rows out and counts them."""
    lines, header, message = BAD[kind]
    extra = {"trips": ",2", "pickup_time": ",2020-01-20 19:30:00"}.get(header.split(",")[-1], "")
    path = write(GOOD + extra, *lines, GOOD + extra, header=header)
    window = ("19:00", "22:00") if "time" in kind else None
    total = len(lines) + 2
    with pytest.raises(ValueError, match=rf"trips\.csv: {len(lines)} of {total} rows .*{message}"):
        build(path, window=window)
    city = build(path, window=window, bad_rows="drop")
    assert (city.provenance["rows"], city.provenance["bad_rows"]) == (total, len(lines))
    assert city.provenance["trips"] == (4 if "count" in kind else 2)


def test_bad_rows_name_the_files_own_column(write: Write) -> None:
    """With a mapping, the message speaks of the column that the user can see."""
    path = write("x,45.5,10.5,45.5", GOOD, header="start_x,pickup_lat,dropoff_lon,dropoff_lat")
    with pytest.raises(ValueError, match=r"1 of 2 rows.*'start_x'"):
        build(path, columns={"pickup_lon": "start_x"})


def test_missing_columns_raise(write: Write) -> None:
    """The message names the file, what is missing, what there is, and the way out."""
    with pytest.raises(ValueError, match=r"trips\.csv has no column 'pickup_lon'.*\['lon', .*columns="):
        build(write(GOOD, header=HEADER.replace("pickup_lon", "lon")))
    with pytest.raises(ValueError, match=r"no column 'x' \(for pickup_lon\)"):
        build(write(GOOD), columns={"pickup_lon": "x"})
    with pytest.raises(ValueError, match=r"no column 'pickup_time'"):
        build(write(GOOD), window=("19:00", "22:00"))
    with pytest.raises(ValueError, match=r"no column 'count' \(for trips\)"):
        build(write(GOOD), columns={"trips": "count"})


def test_unknown_names_in_the_mapping_raise(write: Write) -> None:
    """A typo in columns is an error, not a column that is silently ignored."""
    with pytest.raises(ValueError, match=r"unknown names \['pickup_lng'\].*pickup_lon"):
        build(write(GOOD), columns={"pickup_lng": "pickup_lon"})


@pytest.mark.parametrize(("west", "south"), [(10.0, 45.0), (114.0, 22.5)])
def test_swapped_coordinates_are_recognised(write: Write, west: float, south: float) -> None:
    """Longitude and latitude exchanged: told so, whether the values are possible latitudes or not."""
    row = f"{south + 0.05},{west + 0.05},{south + 0.05},{west + 0.05}"
    with pytest.raises(ValueError, match=r"trips\.csv: longitude and latitude look swapped.*3 of 3"):
        build(write(row, row, row), box=(west, west + 0.1, south, south + 0.1))


@pytest.mark.parametrize(("west", "south"), [(10.0, 45.0), (114.0, 22.5)])
@pytest.mark.parametrize("bad_rows", ["raise", "drop"])
def test_swapped_drop_offs_are_recognised(write: Write, west: float, south: float, bad_rows: str) -> None:
    """Those alone, whether the values are possible latitudes or not."""
    row = f"{west + 0.05},{south + 0.05},{south + 0.05},{west + 0.05}"
    message = r"look swapped: no drop-off lies .*3 of 3 would with dropoff_lon and dropoff_lat exchanged.*'dropoff_lon': "
    with pytest.raises(ValueError, match=message):
        build(write(row, row, row), box=(west, west + 0.1, south, south + 0.1), bad_rows=bad_rows)


def test_a_city_in_which_nobody_rides_is_refused(write: Write) -> None:
    """All trips leave, over the whole window, in one of its slices, or by weight: named, instead of trips that stay put."""
    away = "10.5,45.5,12.0,47.0"
    with pytest.raises(ValueError, match=r"trips\.csv: none of the 2 trips that start in the box .* ends in it"):
        build(write(away, away))
    path = write(*timed((GOOD, "19:10:00"), (away, "20:40:00")), header=HEADER + ",pickup_time")
    with pytest.raises(ValueError, match=r"trips\.csv: no trip that starts in the box from 20:30 to 22:00 ends in it"):
        build(path, window=("19:00", "22:00"), steps=2)
    with pytest.raises(ValueError, match=r"trips\.csv: no trip that starts in the box ends in it"):
        build(write(away + ",3", GOOD + ",0", header=HEADER + ",trips"))


def test_nothing_in_the_box_raises(write: Write) -> None:
    """The message names the file, the box and the number of rows."""
    with pytest.raises(ValueError, match=r"trips\.csv: no trip starts in the box \(10\.0, .*2 rows read, 2 outside"):
        build(write("1,2,1,2", "3,4,10.5,45.5"))


def test_nothing_in_the_window_raises(write: Write) -> None:
    """The message names the file, the window and the number of rows."""
    path = write(f"{GOOD},2020-01-20 12:00:00", header=HEADER + ",pickup_time")
    with pytest.raises(ValueError, match=r"trips\.csv: no trip starts in the window 19:00 to 22:00 \(1 rows read\)"):
        build(path, window=("19:00", "22:00"))


def test_smoothing_that_leaves_no_demand_raises(write: Write) -> None:
    """A single trip is an outlier to a median: said so, instead of dividing by zero."""
    with pytest.raises(ValueError, match=r"trips\.csv: smoothing=3 leaves no demand on 4 x 4"):
        build(write(GOOD), smoothing=3)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("box", (11.0, 10.0, 45.0, 46.0), "west=11.0, east=10.0"),
        ("box", (10.0, 10.0, 45.0, 46.0), "west=10.0, east=10.0"),
        ("box", (10.0, 11.0, 46.0, 45.0), "south=46.0, north=45.0"),
        ("box", (10.0, 11.0), "four numbers"),
        ("cells", 0, "cells .*0"),
        ("cells", 2.5, "cells .*2.5"),
        ("smoothing", 2, "smoothing .*2"),
        ("smoothing", 0, "smoothing .*0"),
        ("smoothing", -1, "smoothing .*-1"),
        ("source_cell", (0.0, 0.1), r"source_cell .*\(0.0, 0.1\)"),
        ("source_cell", (0.1,), r"source_cell .*\(0.1,\)"),
        ("bad_rows", "ignore", "bad_rows .*'ignore'"),
        ("steps", 0, "steps .*0"),
        ("steps", 1.5, "steps .*1.5"),
        ("steps", 3, "steps=3 .*window"),
        ("window", ("19", "25:00"), r"window .*'25:00'"),
        ("window", ("19:00", "19:00"), r"window .*empty"),
        ("window", ("00:00", "00:00"), r"window .*empty.*\('00:00', '24:00'\)"),
        ("window", ("24:00", "01:00"), r"window .*two times"),
        ("window", ("19:00", "24:01"), r"window .*'24:01'"),
        ("window", ("19:00",), r"window .*two times"),
        ("entropy_floor", 1.5, "entropy_floor .*1.5"),
    ],
)
def test_bad_arguments_raise(write: Write, argument: str, value: object, message: str) -> None:
    """The message names the argument and the value."""
    path = write(f"{GOOD},2020-01-20 19:30:00", header=HEADER + ",pickup_time")
    with pytest.raises(ValueError, match=message):
        build(path, **{argument: value})


def broken(name: str) -> bytes:
    """The content of a file that cannot be read."""
    text = f"{HEADER}\n" + "".join(f"10.{i % 97:02d},45.5,10.5,45.5\n" for i in range(3000))
    packed = gzip.compress(text.encode())
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    return {
        "truncated.csv.gz": packed[: len(packed) // 2],
        "flipped.csv.gz": bytes(flipped),
        "checksum.csv.gz": packed[:-6] + bytes([packed[-6] ^ 0xFF]) + packed[-5:],
        "footer.parquet": b"PAR1 no parquet PAR1",
        "empty.parquet": b"",
        "empty.csv": b"",
        "empty.csv.gz": gzip.compress(b""),
        "header.csv": f"{HEADER}\n".encode(),
        "ragged.csv": f"{HEADER}\n{GOOD}\n{GOOD},7,8\n".encode(),
        "binary.csv": bytes(range(256)),
        "latin.csv": f"{HEADER},note\n{GOOD},\xe9\n".encode("latin-1"),
        "trips.txt": text.encode(),
        "trips.zip": text.encode(),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "truncated.csv.gz",
        "flipped.csv.gz",
        "checksum.csv.gz",
        "footer.parquet",
        "empty.parquet",
        "empty.csv",
        "empty.csv.gz",
        "header.csv",
        "ragged.csv",
        "binary.csv",
        "latin.csv",
        "trips.txt",
        "trips.zip",
    ],
)
def test_unreadable_files_raise_and_are_named(tmp_path: Path, name: str) -> None:
    """Damaged, empty and foreign files: ValueError with the file's name, never half of the trips."""
    (tmp_path / name).write_bytes(broken(name))
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        build(tmp_path / name)


def test_damaged_parquet_data_raises(tmp_path: Path) -> None:
    """A footer that is whole does not hide damaged pages."""
    path = tmp_path / "trips.parquet"
    pl.DataFrame({name: np.random.default_rng(0).random(1000) for name in HEADER.split(",")}).write_parquet(path)
    data = bytearray(path.read_bytes())
    data[16:400] = bytes(384)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"trips\.parquet cannot be read"):
        build(path)


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    """FileNotFoundError with the path."""
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        build(tmp_path / "nowhere.csv")


def test_times_that_are_no_times_raise(tmp_path: Path) -> None:
    """A Parquet column of integers is no time of day."""
    frame = pl.DataFrame({name: [10.5 if "lon" in name else 45.5] for name in HEADER.split(",")})
    frame.with_columns(pickup_time=pl.lit(5)).write_parquet(tmp_path / "trips.parquet")
    with pytest.raises(ValueError, match=r"trips\.parquet"):
        build(tmp_path / "trips.parquet", window=("19:00", "22:00"))


@pytest.fixture(scope="module")
def shenzhen(data_folder: Path) -> Scenario:
    """The paper's study area, from real trips."""
    return scenario_from_trips(data_folder / "shenzhen_od_500m.csv.gz", box=SHENZHEN, source_cell=(0.0048726, 0.0044966))


def test_real_demand_has_the_known_entropy(shenzhen: Scenario) -> None:
    """Entropy 0.874 of log K and KL 0.812 to the uniform distribution, at k = 25 and a 3 x 3 median."""
    assert shenzhen.cells == 25
    assert shenzhen.demand_entropy == pytest.approx(0.874, abs=0.003)
    assert (1 - shenzhen.demand_entropy) * math.log(625) == pytest.approx(0.812, abs=0.005)
    assert shenzhen.provenance["rows"] == 193_455
    assert shenzhen.provenance["trips_inside"] == pytest.approx(212_000, rel=0.02)


def test_staying_put_in_the_real_city(shenzhen: Scenario) -> None:
    """Twelve steps without repositioning sum to KL 7.97; entropy ends at 0.961 of its maximum: safe at 0.95, not 0.97."""
    mdp = TaxiMDP(shenzhen, reward_timing="next", dtype=torch.float64, constraints=(EntropyFloor(0.95), EntropyFloor(0.97)))

    class Stay:
        def field(self, mu: torch.Tensor, t: int) -> torch.Tensor:
            return torch.zeros_like(mdp.centers)

    path = mdp.rollout(Stay())
    assert float(path.returns) == pytest.approx(-7.97, abs=0.05)
    assert float(path.margins[-1, 0]) / math.log(625) + 0.95 == pytest.approx(0.961, abs=0.001)
    assert bool((path.margins[:, 0] > 0).all())
    assert float(path.margins[-1, 1]) < 0


def test_the_bound_of_the_real_city(shenzhen: Scenario) -> None:
    """No policy beats a KL of 0.1476 per step at a floor of 0.95, and the certificate is tight."""
    pytest.importorskip("cvxpy")
    bound = certified_bound(TaxiMDP(shenzhen, constraints=(EntropyFloor(0.95),)))
    assert bound.kl == pytest.approx(0.1476, abs=0.001)
    assert 0 <= bound.gap < 1e-3
    assert bound.mu.shape == (12, 625)


def test_single_trips_of_an_evening_build(data_folder: Path) -> None:
    """The file of single trips, 19:00 to 22:00: 1,764 of 10,619 rows are in the window."""
    city = scenario_from_trips(
        data_folder / "shenzhen_trips_2020-01-20.csv.gz", box=SHENZHEN, cells=10, window=("19:00", "22:00")
    )
    assert city.provenance["rows"] == 10_619
    assert city.provenance["rows"] - city.provenance["rows_outside_window"] == 1_764
    assert 0.5 < city.demand_entropy < 1.0


def test_a_source_cell_wider_than_the_box_is_refused(write: Write) -> None:
    """Metres in place of degrees would spread every row over the whole box, one cell at a time."""
    with pytest.raises(ValueError, match=r"source_cell.*500"):
        build(write(GOOD), source_cell=(500.0, 500.0))


@pytest.mark.parametrize("source_cell", [None, (0.3, 0.2)])
def test_fine_grids_have_sparse_trips_of_the_same_numbers(
    write: Write, monkeypatch: pytest.MonkeyPatch, source_cell: tuple[float, float] | None
) -> None:
    """Beyond 40 cells per axis trips are sparse: entry by entry what a dense build gives."""
    degrees, counts = random_trips(300)
    lines = [",".join(map(repr, [*map(float, row), int(n)])) for row, n in zip(degrees, counts, strict=True)]
    path = write(*lines, header=HEADER + ",trips")
    settings = {"cells": 41, "source_cell": source_cell}
    thin = build(path, **settings)
    assert isinstance(thin.trips, sparse.csr_array)
    assert isinstance(build(path, **{**settings, "cells": 40}).trips, np.ndarray)
    monkeypatch.setattr(trips_module, "DENSE_CELLS", 41)
    dense = build(path, **settings)
    assert isinstance(dense.trips, np.ndarray)
    np.testing.assert_allclose(thin.trips.toarray(), dense.trips, rtol=1e-14)
    np.testing.assert_array_equal(thin.demand, dense.demand)
    assert dict(thin.provenance) == dict(dense.provenance)


def timed(*rows: tuple[str, str]) -> list[str]:
    """Lines of trips with a time each."""
    return [f"{places},2020-01-20 {time}" for places, time in rows]


@pytest.mark.parametrize("cells", [2, 42])
def test_steps_are_equal_slices_of_the_window(write: Write, cells: int) -> None:
    """Each pick-up counts in its slice, which starts inclusive and ends exclusive; a slice is what its own window gives."""
    path = write(
        *timed(
            ("10.1,45.1,10.9,45.1", "23:30:00"),
            ("10.1,45.1,10.9,45.9", "23:59:59.999"),
            ("10.9,45.1,10.1,45.1", "00:00:00"),
            ("10.1,45.9,10.1,45.1", "00:29:00"),
            ("10.1,45.9,10.1,45.9", "00:30:00"),
            ("10.1,45.1,10.1,45.1", "01:00:00"),
        ),
        header=HEADER + ",pickup_time",
    )
    city = build(path, cells=cells, window=("23:30", "01:00"), steps=3)
    assert city.demand.shape == (3, cells**2)
    assert len(city.trip_steps) == 3
    if cells == 2:
        np.testing.assert_allclose(city.demand, [[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 1, 0, 0]])
        np.testing.assert_allclose(city.trips[0], [[0, 0, 0.5, 0.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    for t, window in enumerate([("23:30", "00:00"), ("00:00", "00:30"), ("00:30", "01:00")]):
        alone = build(path, cells=cells, window=window)
        np.testing.assert_array_equal(city.demand[t], alone.demand)
        assert abs(city.trip_steps[t] - alone.trips).max() == 0
    assert (city.provenance["steps"], city.provenance["trips"], city.provenance["rows_outside_window"]) == (3, 5, 1)


def test_a_slice_without_trips_is_named(write: Write) -> None:
    """Which slice it is, by the times of day."""
    path = write(*timed((GOOD, "19:10:00"), (GOOD, "21:10:00")), header=HEADER + ",pickup_time")
    with pytest.raises(ValueError, match=r"trips\.csv: no trip starts in the box from 20:00 to 21:00"):
        build(path, window=("19:00", "22:00"), steps=3)
    with pytest.raises(ValueError, match=r"smoothing=3 leaves no demand on 4 x 4 cells from 19:00 to 20:30"):
        build(path, window=("19:00", "22:00"), steps=2, smoothing=3)


def test_steps_need_a_column_of_times(write: Write) -> None:
    """Without times there are no slices: the missing column is named."""
    with pytest.raises(ValueError, match="no column 'pickup_time'"):
        build(write(GOOD), window=("19:00", "22:00"), steps=2)


def test_a_real_evening_in_twelve_steps(data_folder: Path) -> None:
    """Twelve quarters of an hour of single trips, playable as a world: together they are the evening's trips."""
    path = data_folder / "shenzhen_trips_2020-01-20.csv.gz"
    settings = {"box": SHENZHEN, "cells": 5, "window": ("19:00", "22:00")}
    city = scenario_from_trips(path, steps=12, **settings)  # type: ignore[arg-type]
    assert city.demand.shape == (12, 25)
    assert city.trips.shape == (12, 25, 25)
    assert city.provenance["trips"] == scenario_from_trips(path, **settings).provenance["trips"]  # type: ignore[arg-type]
    mdp = TaxiMDP(city)
    mu = mdp.initial()
    shifted = [mdp.shift(mu, t) for t in range(12)]
    assert all(float(step.sum()) == pytest.approx(1.0, abs=1e-5) for step in shifted)
    assert not torch.allclose(shifted[0], shifted[11])


@pytest.mark.parametrize("zone", ["Z", "+08:00", "-0500", ".250Z"])
@pytest.mark.parametrize("between", ["T", " "])
def test_a_zone_is_local_time_as_written(write: Write, between: str, zone: str) -> None:
    """The window is of local times; the offset of a time moves no trip out of it, and mixed offsets are read."""
    times = ["2014-01-01{}18:59:59{}", "2014-01-01{}19:00:00{}", "2014-01-01{}21:59:59{}", "2014-01-01{}22:00:00{}"]
    lines = [f"{GOOD},{time.format(between, zone)}" for time in times] + [f"{GOOD},2014-01-01 20:00:00"]
    city = build(write(*lines, header=HEADER + ",pickup_time"), window=("19:00", "22:00"))
    assert (city.provenance["trips"], city.provenance["rows_outside_window"]) == (3, 2)


TIMES = {
    "19:05": ["19:05", "1/20/2014 19:05", "20/1/2014 19:05", "20.01.2014 19:05", "20200120T1905", "2014-01-20 19:05 GMT"],
    "19:05:33": ["19:05:33", "2009-06-15 19:05:33 UTC", "Mon Jan 20 2014 19:05:33", "20200120T190533", "19:05:33.000Z"],
    "19:05:33.250000001": ["2014-01-20T19:05:33.2500000019-05:00"],
    "19:05:00": ["01/20/2014 07:05:00 PM", "7:05pm", "2014-01-20 07:05 PM UTC", "07:05:00 pm +08:00"],
    "00:30": ["1/20/2014 12:30 AM", "0:30"],
    "12:30": ["1/20/2014 12:30 PM", "12:30:00"],
    "": [
        "2014-01-20",
        "Tue 20 Jan 2014",
        "24:00",
        "19:60",
        "19:05:60",
        "13:05 PM",
        "0:05 AM",
        "1905",
        "2014-01-20 19",
        "x19:05",
        "",
    ],
}


@pytest.mark.parametrize("expected", TIMES)
def test_times_of_day_are_read_whatever_the_date(write: Write, expected: str) -> None:
    """Month first or day first, in twelve hours or 24, mixed in one file: read alike, or counted as unreadable."""
    path = write(*[f'{GOOD},"{text}"' for text in [*TIMES[expected], "01:00"]], header=HEADER + ",pickup_time")
    times = with_times_of_day(pl.scan_csv(path, infer_schema=False), "pickup_time").collect()["pickup_time"].to_list()
    wanted = dt.time.fromisoformat(expected[:15]) if expected else None
    assert times == [*[wanted] * len(TIMES[expected]), dt.time(1)]
    city = build(path, window=("00:00", "24:00"), bad_rows="drop")
    assert city.provenance["bad_rows"] == (0 if expected else len(TIMES[""]))


def test_a_date_alone_is_no_time(write: Write, tmp_path: Path) -> None:
    """It is not midnight: counted as unreadable in text, refused as a column's type in Parquet."""
    path = write(f"{GOOD},2014-01-01 00:10:00", f"{GOOD},2014-01-02", header=HEADER + ",pickup_time")
    with pytest.raises(ValueError, match=r"1 of 2 rows .*1 in column 'pickup_time'.*times end in a time of day"):
        build(path, window=("00:00", "01:00"))
    assert build(path, window=("00:00", "01:00"), bad_rows="drop").provenance["trips"] == 1
    frame = pl.DataFrame({name: [10.5 if "lon" in name else 45.5] for name in HEADER.split(",")})
    frame.with_columns(pickup_time=pl.date(2014, 1, 1)).write_parquet(tmp_path / "trips.parquet")
    with pytest.raises(ValueError, match=r"trips\.parquet: column 'pickup_time' must hold times or text, not Date"):
        build(tmp_path / "trips.parquet", window=("00:00", "01:00"))


SYMMETRIC = (-1.0, 1.0, -1.0, 1.0)


@pytest.mark.parametrize(
    ("time", "settings", "message"),
    [
        ("soon", {}, "2 of 2 rows .*2 in column 'pickup_time'"),
        ("soon", {"bad_rows": "drop"}, "no trip starts in the window .*2 rows read, 2 of them unreadable"),
        ("2014-01-01 12:00:00", {}, r"no trip starts in the window 19:00 to 22:00 \(2 rows read\)"),
    ],
)
def test_coordinates_in_a_symmetric_box_do_not_look_swapped(
    write: Write, time: str, settings: dict[str, object], message: str
) -> None:
    """They lie in the box either way: the true cause is told."""
    path = write(*[f"0.1,0.2,0.3,0.4,{time}"] * 2, header=HEADER + ",pickup_time")
    with pytest.raises(ValueError, match=message):
        build(path, box=SYMMETRIC, window=("19:00", "22:00"), **settings)


def test_bad_rows_come_before_swapped_ones(write: Write) -> None:
    """What cannot be read is told first; once it is dropped, the exchange is."""
    path = write("22.55,114.05,22.55,114.05", "114.05,22.55,x,22.55")
    settings = {"box": (114.0, 114.1, 22.5, 22.6)}
    with pytest.raises(ValueError, match=r"2 of 2 rows .*1 in column 'dropoff_lon'"):
        build(path, **settings)
    with pytest.raises(ValueError, match=r"look swapped.*1 of 2 would"):
        build(path, bad_rows="drop", **settings)


@pytest.mark.parametrize("argument", ["cells", "steps", "smoothing"])
def test_whole_numbers_are_numpys_too_and_no_bools(write: Write, argument: str) -> None:
    """The same city from np.int64, and True is refused by name."""
    path = write(*timed((GOOD, "19:10:00")), header=HEADER + ",pickup_time")
    city = build(path, window=("19:00", "22:00"), **{argument: np.int64(1)})
    assert city.digest == build(path, window=("19:00", "22:00"), **{argument: 1}).digest
    city.save(path.with_suffix(".npz"))
    with pytest.raises(ValueError, match=f"{argument} must be an .*integer >= 1.*, got True"):
        build(path, window=("19:00", "22:00"), **{argument: True})


def test_a_bad_floor_is_refused_before_the_file_is_read(tmp_path: Path) -> None:
    """A file of gigabytes is not streamed for nothing: here there is none at all."""
    with pytest.raises(ValueError, match=r"entropy_floor .*95"):
        build(tmp_path / "none.csv", entropy_floor=95)


def test_a_path_is_no_pattern(write: Write) -> None:
    """Brackets, stars and question marks in names are themselves; another file that they would match is left alone."""
    write(GOOD, GOOD, name="trips1.csv")
    assert build(write(GOOD, name="trips[1].csv")).provenance["rows"] == 1


def test_blanks_around_numbers_are_no_error(write: Write) -> None:
    """As some programs write them, after every comma."""
    assert build(write("10.5, 45.5 , 10.5,45.5, 3 ", header=HEADER + ",trips")).provenance["trips"] == 3.0


def test_other_separators_are_named(write: Write) -> None:
    """Semicolons, as Excel writes them where decimals have commas: no advice on names would help."""
    with pytest.raises(ValueError, match=r"columns must be separated by commas.*'pickup_lon;pickup_lat"):
        build(write("10,5;45,5;10,5;45,5", header=HEADER.replace(",", ";")))


def test_a_mapping_that_is_not_needed_has_to_fit_as_well(write: Write) -> None:
    """A misspelt column is told, not passed over because there is no window."""
    with pytest.raises(ValueError, match=r"no column 'tpep' \(for pickup_time\)"):
        build(write(GOOD), columns={"pickup_time": "tpep"})


def test_what_left_no_trip_is_told(write: Write) -> None:
    """The window, where that is why; counts of zero, where those are; and the box beside columns that look swapped."""
    rows = [f"{GOOD},2020-01-20 12:00:00"] * 9 + ["9.5,45.5,10.5,45.5,2020-01-20 19:30:00"]
    path = write(*rows, header=HEADER + ",pickup_time")
    with pytest.raises(ValueError, match=r"10 rows read, 9 outside the window 19:00 to 22:00, 1 outside the box"):
        build(path, window=("19:00", "22:00"))
    with pytest.raises(ValueError, match=r"no trip starts in the box: the counts of all rows that do are 0"):
        build(write(GOOD + ",0", header=HEADER + ",trips"))
    with pytest.raises(ValueError, match=r"Where the box is right, which is \(west, east, south, north\)"):
        build(write("45.5,10.5,45.5,10.5"))


def test_source_cells_that_only_touch_the_box_are_outside(write: Write) -> None:
    """They bring nothing; a point on the edge is in."""
    rows = ("10.5,45.5,10.5,45.5", "9.75,45.5,10.5,45.5", "10.5,46.25,10.5,45.5")
    facts = build(write(*rows), source_cell=(0.5, 0.5)).provenance
    assert (facts["rows_outside_box"], facts["trips"]) == (2, 1.0)
    assert build(write("11.0,46.0,10.5,45.5")).provenance["rows_outside_box"] == 0
