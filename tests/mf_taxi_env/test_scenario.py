"""The scenario: validated, frozen, saved whole or not at all, and resampled without losing a trip."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from mf_taxi_env import Scenario, load_scenario
from mf_taxi_env.scenarios.trip_probabilities import rows_or_identity

Make = Callable[..., Scenario]

GOOD: dict[str, Any] = {
    "name": "toy",
    "demand": np.full(4, 0.25),
    "trips": np.eye(4),
    "box": (114.0, 114.1, 22.5, 22.6),
    "entropy_floor": 0.9,
}
HEADER: dict[str, Any] = {
    "format": "mf-taxi-scenario",
    "version": 1,
    "name": "toy",
    "box": [0, 1, 0, 1],
    "entropy_floor": 0.9,
    "provenance": {},
}


def write(path: Path, header: object, **arrays: object) -> Path:
    """A scenario file by hand."""
    arrays = {"demand": np.full(4, 0.25), "trips": np.eye(4), **arrays}
    np.savez(path, header=np.array(json.dumps(header)), **arrays)  # type: ignore[arg-type]
    return path


def assert_same(a: Scenario, b: Scenario) -> None:
    """Equal in every field, arrays up to the last bit or two."""
    assert (a.name, a.box, a.entropy_floor, dict(a.provenance)) == (b.name, b.box, b.entropy_floor, dict(b.provenance))
    np.testing.assert_allclose(a.demand, b.demand, rtol=1e-14)
    np.testing.assert_allclose(a.trips, b.trips, rtol=1e-14)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "", "''"),
        ("name", 3, "3"),
        ("demand", np.full(3, 1 / 3), "3, which is not a square"),
        ("demand", np.full(4, 0.3), "worst 1.2"),
        ("demand", np.array([0.5, 0.75, -0.25, 0.0]), "1 of 4"),
        ("demand", np.array([0.5, 0.5, math.nan, 0.0]), "1 of 4"),
        ("demand", np.array([math.inf, 0.5, math.nan, 0.0]), "2 of 4"),
        ("demand", np.array(1.0), r"shape \(\)"),
        ("demand", np.zeros(0), r"shape \(0,\)"),
        ("demand", "north", "numbers"),
        ("demand", np.full((2, 2, 2), 0.5), r"shape \(2, 2, 2\)"),
        ("trips", np.eye(9), r"\(4, 4\).*\(9, 9\)"),
        ("trips", np.eye(4)[:3], r"\(3, 4\)"),
        ("trips", np.diag([1.0, 1.0, 0.0, 1.0]), "1 of 4 sums .*worst 0"),
        ("trips", np.full(4, 0.25), r"shape \(4,\)"),
        ("box", (1, 2, 3), r"\(1, 2, 3\)"),
        ("box", None, "None"),
        ("box", ("a", 1, 0, 1), "'a'"),
        ("box", (114.1, 114.0, 22.5, 22.6), "west=114.1, east=114.0"),
        ("box", (114.0, 114.0, 22.5, 22.6), "west=114.0, east=114.0"),
        ("box", (114.0, 114.1, 22.6, 22.5), "south=22.6, north=22.5"),
        ("box", (22.5, 22.6, 114.0, 114.1), "south=114.0"),
        ("box", (math.nan, 1, 0, 1), "west=nan"),
        ("entropy_floor", 1.5, "1.5"),
        ("entropy_floor", -0.5, "-0.5"),
        ("entropy_floor", True, "True"),
        ("entropy_floor", math.nan, "nan"),
    ],
)
def test_bad_fields_raise(field: str, value: object, message: str) -> None:
    """Every malformed field is refused; the message names the field and what was given."""
    with pytest.raises(ValueError, match=rf"(?s)^{field}.*{message}"):
        Scenario(**{**GOOD, field: value})


def test_steps_of_demand_and_trips_must_agree() -> None:
    """Two steps of demand and three of trips do not make an evening."""
    with pytest.raises(ValueError, match="demand has 2 steps and trips 3"):
        Scenario(**{**GOOD, "demand": np.full((2, 4), 0.25), "trips": np.stack([np.eye(4)] * 3)})


def test_a_scenario_is_frozen_down_to_its_arrays() -> None:
    """Nobody changes the city under somebody else: fields, arrays and provenance are read-only, inputs are copied."""
    demand = np.full(4, 0.25)
    city = Scenario(**{**GOOD, "demand": demand}, provenance={"rows": 3})
    demand[0] = 7.0
    assert city.demand[0] == 0.25
    with pytest.raises(AttributeError):
        city.name = "other"  # type: ignore[misc]
    for array in (city.demand, city.trips):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0
    with pytest.raises(TypeError):
        city.provenance["rows"] = 4  # type: ignore[index]
    assert city.demand.dtype == city.trips.dtype == np.float64


def test_sums_within_rounding_are_normalised() -> None:
    """float32 data is accepted and made exact."""
    demand = np.random.default_rng(0).dirichlet(np.ones(4)).astype(np.float32)
    assert Scenario(**{**GOOD, "demand": demand * np.float32(1.00001)}).demand.sum() == pytest.approx(1.0, abs=1e-15)


def test_demand_entropy_is_a_share_of_the_maximum() -> None:
    """Uniform demand is 1, half of the cells log(K/2)/log(K), a single cell 0, a one-cell city 1; steps are averaged first."""
    assert Scenario(**GOOD).demand_entropy == pytest.approx(1.0)
    assert Scenario(**{**GOOD, "demand": [0.5, 0.5, 0, 0]}).demand_entropy == pytest.approx(0.5)
    assert Scenario(**{**GOOD, "demand": [1.0, 0, 0, 0]}).demand_entropy == 0.0
    assert Scenario(**{**GOOD, "demand": [1.0], "trips": [[1.0]]}).demand_entropy == 1.0
    assert Scenario(**{**GOOD, "demand": [[1.0, 0, 0, 0], [0, 1.0, 0, 0]]}).demand_entropy == pytest.approx(0.5)


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("way", ["file", "pickle", "deepcopy"])
def test_round_trips(make_scenario: Make, tmp_path: Path, way: str, steps: int | None) -> None:
    """Saving, pickling and copying give the same scenario, still read-only."""
    base = make_scenario(5, steps=steps)
    city = Scenario("Shenzhen äöü", base.demand, base.trips, (114.0, 114.1, 22.5, 22.6), 0.8, {"rows": 7, "note": "Räder"})
    if way == "file":
        other = Scenario.load(city.save(tmp_path / "city.npz"))
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(city))
    else:
        other = copy.deepcopy(city)
    assert_same(city, other)
    assert not other.demand.flags.writeable
    assert not other.trips.flags.writeable
    with pytest.raises(TypeError):
        other.provenance["rows"] = 1  # type: ignore[index]


def test_save_appends_the_suffix_and_says_where(tmp_path: Path) -> None:
    """A path without .npz gets it; the returned path is the file's, which load_scenario reads as well."""
    path = Scenario(**GOOD).save(tmp_path / "city.v1")
    assert path == tmp_path / "city.v1.npz"
    assert_same(load_scenario(path, cells=2), Scenario(**GOOD))
    assert load_scenario(str(path), cells=4).cells == 4


@pytest.mark.parametrize("existing", [True, False])
def test_a_failing_save_leaves_the_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool) -> None:
    """A full disk half-way through: the old file is intact and no temporary file is left."""
    path = tmp_path / "city.npz"
    if existing:
        Scenario(**GOOD).save(path)

    def full(file: Any, **_: object) -> None:
        file.write(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        Scenario(**{**GOOD, "name": "new"}).save(path)
    assert list(tmp_path.iterdir()) == ([path] if existing else [])
    if existing:
        assert Scenario.load(path).name == "toy"


def test_saving_again_replaces_the_file(tmp_path: Path) -> None:
    """The second save wins, and nothing but the file is left."""
    path = tmp_path / "city.npz"
    Scenario(**GOOD).save(path)
    Scenario(**{**GOOD, "name": "new"}).save(path)
    assert Scenario.load(path).name == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    """FileNotFoundError, not a story about formats."""
    with pytest.raises(FileNotFoundError):
        Scenario.load(tmp_path / "nowhere.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "version 3"),
        ({"version": None}, "version None"),
        ({"format": "other"}, "not a scenario"),
        ({"box": 5}, ""),
        ({"box": [0, 1]}, "box"),
        ({"entropy_floor": "high"}, ""),
        ({"entropy_floor": 7}, "entropy_floor"),
        ({"provenance": 3}, ""),
        ({"name": 3}, "name"),
    ],
)
def test_a_bad_header_raises_and_names_the_file(tmp_path: Path, change: dict[str, object], message: str) -> None:
    """Foreign, newer and mangled headers are refused with the file's name."""
    path = write(tmp_path / "odd.npz", {**HEADER, **change})
    with pytest.raises(ValueError, match=rf"(?s)odd\.npz.*{message}"):
        Scenario.load(path)


@pytest.mark.parametrize("key", ["name", "box", "entropy_floor", "provenance"])
def test_an_incomplete_header_raises(tmp_path: Path, key: str) -> None:
    """The message names the file and what is missing."""
    path = write(tmp_path / "odd.npz", {k: v for k, v in HEADER.items() if k != key})
    with pytest.raises(ValueError, match=rf"odd\.npz.*{key}"):
        Scenario.load(path)


@pytest.mark.parametrize("header", [[], 3, "text", None])
def test_a_header_that_is_no_mapping_raises(tmp_path: Path, header: object) -> None:
    """Any JSON may stand there; only ours is read."""
    with pytest.raises(ValueError, match=r"odd\.npz"):
        Scenario.load(write(tmp_path / "odd.npz", header))


def test_bad_arrays_in_a_file_raise_and_name_the_file(tmp_path: Path) -> None:
    """A file whose demand does not sum to one is refused by its name."""
    path = write(tmp_path / "odd.npz", HEADER, demand=np.full(4, 0.5))
    with pytest.raises(ValueError, match=r"(?s)odd\.npz.*demand"):
        Scenario.load(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"hello", b"\x80\x04N."])
def test_a_foreign_file_raises(tmp_path: Path, content: bytes) -> None:
    """Empty files, text, broken archives and pickles are not scenarios."""
    path = tmp_path / "odd.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"odd\.npz"):
        Scenario.load(path)


def test_foreign_arrays_raise(tmp_path: Path) -> None:
    """An .npz of something else, and a plain .npy under the wrong name."""
    np.savez(tmp_path / "odd.npz", weights=np.zeros(3))
    with pytest.raises(ValueError, match=r"odd\.npz"):
        Scenario.load(tmp_path / "odd.npz")
    np.save(tmp_path / "plain.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"plain\.npy"):
        Scenario.load(tmp_path / "plain.npy")


def test_loading_never_unpickles(tmp_path: Path) -> None:
    """An object array is refused, and the code in it does not run."""
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
            return Path.touch, (marker,)

    evil = np.array([Evil()], dtype=object)
    path = write(tmp_path / "odd.npz", HEADER, demand=evil)
    with pytest.raises(ValueError, match=r"odd\.npz"):
        Scenario.load(path)
    np.savez(path, header=evil, demand=np.full(4, 0.25), trips=np.eye(4))
    with pytest.raises(ValueError, match=r"odd\.npz"):
        Scenario.load(path)
    assert not marker.exists()


def test_a_damaged_file_raises_and_names_the_file(make_scenario: Make, tmp_path: Path) -> None:
    """Flipped bits and missing ends: ValueError with the file's name, or, where no data is hit, the same scenario."""
    city = make_scenario(5)
    raw = city.save(tmp_path / "city.npz").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "odd.npz"
    refused = 0
    for trial in range(200):
        data = bytearray(raw)
        if trial % 4 == 0:
            data = data[: rng.integers(len(data))]
        else:
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        message = ""
        try:
            assert_same(Scenario.load(path), city)
        except ValueError as error:
            message = str(error)
            refused += 1
        assert not message or "odd.npz" in message
    assert refused > 150


def test_rows_without_trips_become_the_identity() -> None:
    """A taxi in a cell without trips stays; other rows are normalised."""
    flow = np.array([[2.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    np.testing.assert_array_equal(rows_or_identity(flow), [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def overlap_loop(source: int, target: int) -> np.ndarray:
    """Area shares between two grids of the unit square, cell by cell."""
    share = np.zeros((source**2, target**2))
    for a in range(source**2):
        for b in range(target**2):
            sides = []
            for low_a, low_b in ((a // source, b // target), (a % source, b % target)):
                left, right = max(low_a / source, low_b / target), min((low_a + 1) / source, (low_b + 1) / target)
                sides.append(max(right - left, 0.0) * source)
            share[a, b] = sides[0] * sides[1]
    return share


@pytest.mark.parametrize(("source", "target"), [(4, 6), (6, 4), (3, 7), (5, 1), (1, 3)])
@pytest.mark.parametrize("steps", [None, 2])
def test_resample_spreads_by_area(make_scenario: Make, source: int, target: int, steps: int | None) -> None:
    """Demand and demand-weighted trips against an explicit loop over cell overlaps."""
    city = make_scenario(source, steps=steps)
    other = city.resample(target)
    assert other.cells == target
    assert other.trips.shape == (*city.trips.shape[:-2], target**2, target**2)
    share = overlap_loop(source, target)
    np.testing.assert_allclose(other.demand, city.demand @ share, atol=1e-12)
    flow = share.T @ (city.demand[..., :, None] * city.trips) @ share
    served = flow.sum(-1) > 1e-9
    assert served.any()
    np.testing.assert_allclose(other.trips[served], (flow / flow.sum(-1, keepdims=True).clip(1e-300))[served], atol=1e-5)


@given(source=st.integers(1, 7), target=st.integers(1, 7), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_resample_keeps_mass(make_scenario: Make, source: int, target: int, seed: int) -> None:
    """Demand and every row of trips still sum to one; the rest of the scenario is untouched."""
    city = make_scenario(source, seed)
    other = city.resample(target)
    assert other.demand.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(other.trips.sum(-1), 1.0, atol=1e-12)
    assert (other.name, other.box, other.entropy_floor) == (city.name, city.box, city.entropy_floor)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("steps", [None, 2])
def test_refining_and_coarsening_again_is_the_identity(make_scenario: Make, factor: int, steps: int | None) -> None:
    """A grid of a multiple loses nothing, cells without demand or trips included."""
    city = make_scenario(4, steps=steps)
    back = city.resample(4 * factor).resample(4)
    np.testing.assert_allclose(back.demand, city.demand, atol=1e-12)
    np.testing.assert_allclose(back.trips, city.trips, atol=1e-9)


def test_resampling_to_the_same_grid_returns_the_scenario(make_scenario: Make) -> None:
    """No work, no copies, no rounding."""
    city = make_scenario(4)
    assert city.resample(4) is city


@pytest.mark.parametrize("cells", [0, -2, 2.5, "4"])
def test_bad_resampling_raises(make_scenario: Make, cells: object) -> None:
    """A grid has a whole, positive number of cells."""
    with pytest.raises(ValueError, match=r"cells .*got"):
        make_scenario(4).resample(cells)  # type: ignore[arg-type]


def thin(city: Scenario, kind: str = "csr") -> Scenario:
    """The same city with sparse trips."""
    if city.trips.ndim == 3:
        trips: Any = tuple(sparse.csr_array(step) for step in city.trips)
    else:
        trips = {"csr": sparse.csr_array, "coo": sparse.coo_array, "matrix": sparse.csr_matrix}[kind](city.trips)
    return Scenario(city.name, city.demand, trips, city.box, city.entropy_floor, city.provenance)


def assert_same_trips(one: Scenario, other: Scenario, atol: float = 0.0) -> None:
    """Equal demand and trips, dense or sparse."""
    np.testing.assert_allclose(one.demand, other.demand, rtol=1e-14, atol=atol)
    assert len(one.trip_steps) == len(other.trip_steps)
    for a, b in zip(one.trip_steps, other.trip_steps, strict=True):
        a, b = (trips.toarray() if sparse.issparse(trips) else trips for trips in (a, b))
        np.testing.assert_allclose(a, b, rtol=1e-14, atol=atol)


@pytest.mark.parametrize("kind", ["csr", "coo", "matrix"])
def test_sparse_trips_of_any_format_are_accepted_and_frozen(make_scenario: Make, kind: str) -> None:
    """They come out as CSR in float64 with the same numbers, and nobody can write to them."""
    dense = make_scenario(4)
    city = thin(dense, kind)
    assert isinstance(city.trips, sparse.csr_array)
    assert city.cells == 4
    assert_same_trips(city, dense)
    for array in (city.trips.data, city.trips.indices, city.trips.indptr):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_sparse_trips_are_copied_and_made_exact() -> None:
    """The caller's matrix stays the caller's, duplicates add up, and rounding in the sums is repaired."""
    rows = [0, 0, 1, 2, 3]
    given = sparse.coo_array((np.array([0.25, 0.75, 1.0, 1.0, 1.00001], np.float32), (rows, [1, 1, 1, 2, 3])), shape=(4, 4))
    city = Scenario(**{**GOOD, "trips": given})
    assert isinstance(city.trips, sparse.csr_array)
    given.data[:] = 7.0
    np.testing.assert_allclose(city.trips.toarray(), np.eye(4)[[1, 1, 2, 3]], atol=1e-15)
    assert city.trips.nnz == 4


@pytest.mark.parametrize(
    ("trips", "message"),
    [
        (sparse.eye_array(9), r"\(4, 4\).*\(9, 9\)"),
        (sparse.diags_array([1.0, 1.0, 0.0, 1.0]), "1 of 4 sums .*worst 0"),
        (sparse.diags_array([1.0, 1.0, -1.0, 1.0]), "1 of 4 entries"),
        (sparse.diags_array([1.0, 1.0, math.nan, 1.0]), "1 of 4 entries"),
        ((sparse.eye_array(4), sparse.eye_array(9)), r"\(9, 9\)"),
        ((sparse.eye_array(4), np.eye(4)), "array of numbers"),
        ((), "shape"),
    ],
)
def test_bad_sparse_trips_raise(trips: object, message: str) -> None:
    """Sparse trips are held to the same rules as dense ones."""
    with pytest.raises(ValueError, match=rf"(?s)^trips.*{message}"):
        Scenario(**{**GOOD, "trips": trips})
    with pytest.raises(ValueError, match="demand has 3 steps and trips 2"):
        Scenario(**{**GOOD, "demand": np.full((3, 4), 0.25), "trips": (sparse.eye_array(4),) * 2})


@pytest.mark.parametrize("steps", [None, 1, 3])
@pytest.mark.parametrize("way", ["file", "pickle", "deepcopy"])
def test_sparse_round_trips(make_scenario: Make, tmp_path: Path, way: str, steps: int | None) -> None:
    """Saving, pickling and copying sparse trips changes no number, keeps one step apart from none, and they stay frozen."""
    city = thin(make_scenario(5, steps=steps))
    if way == "file":
        other = Scenario.load(city.save(tmp_path / "city.npz"))
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(city))
    else:
        other = copy.deepcopy(city)
    assert_same_trips(city, other)
    assert type(other.trips) is type(city.trips)
    assert not other.trip_steps[0].data.flags.writeable
    assert other.digest == city.digest


def test_the_file_version_says_who_can_read_it(make_scenario: Make, tmp_path: Path) -> None:
    """Dense files stay version 1, which older readers know; sparse ones are version 2."""

    def version(city: Scenario) -> int:
        with np.load(city.save(tmp_path / "city.npz")) as file:
            return int(json.loads(str(file["header"]))["version"])

    assert version(make_scenario(3)) == 1
    assert version(thin(make_scenario(3))) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"trips_columns": np.array([0, 1, 2, 7])},
        {"trips_columns": np.array([0, 1, 2, -1])},
        {"trips_offsets": np.array([0, 1, 2, 3, 99])},
        {"trips_offsets": np.array([0, 1, 2])},
        {"trips_values": np.ones(3)},
        {"trips_steps": np.array(2)},
        {"trips_steps": np.array([])},
    ],
)
def test_sparse_arrays_that_do_not_fit_raise(tmp_path: Path, change: dict[str, Any]) -> None:
    """An index beyond the grid in a file would read foreign memory: it is refused, with the file's name."""
    arrays = {
        "trips_values": np.ones(4),
        "trips_columns": np.arange(4),
        "trips_offsets": np.arange(5),
        "trips_steps": np.array(0),
    }
    for name, changed in (("good", {}), ("odd", change)):
        np.savez(
            tmp_path / f"{name}.npz", header=np.array(json.dumps(HEADER)), demand=np.full(4, 0.25), **{**arrays, **changed}
        )
    assert Scenario.load(tmp_path / "good.npz").trips.nnz == 4
    with pytest.raises(ValueError, match=r"odd\.npz"):
        Scenario.load(tmp_path / "odd.npz")


@pytest.mark.parametrize(("source", "target"), [(4, 6), (6, 4), (5, 1)])
@pytest.mark.parametrize("steps", [None, 2])
def test_sparse_trips_resample_as_dense_ones(make_scenario: Make, source: int, target: int, steps: int | None) -> None:
    """The same city on the same new grid, and still sparse."""
    dense = make_scenario(source, steps=steps)
    other = thin(dense).resample(target)
    assert all(isinstance(trips, sparse.csr_array) for trips in other.trip_steps)
    assert_same_trips(other, dense.resample(target), atol=1e-14)


def test_demand_per_step_resamples_constant_trips_per_step(make_scenario: Make) -> None:
    """Demand weighs the rows that a new cell mixes, so that its trips vary even where the old ones did not."""
    varying = make_scenario(4, steps=2)
    city = Scenario("mixed", varying.demand, varying.trips[0], varying.box)
    other = city.resample(2)
    for t in range(2):
        alone = Scenario("one", varying.demand[t], varying.trips[0], varying.box).resample(2)
        np.testing.assert_allclose(other.trips[t], alone.trips, atol=1e-14)


def test_the_digest_tells_cities_apart(make_scenario: Make) -> None:
    """Equal data, equal digest; another trip or another demand, another digest; dense and sparse each."""
    city = make_scenario(3)
    moved = Scenario(city.name, city.demand, city.trips[::-1], city.box)
    wanted = Scenario(city.name, city.demand[::-1], city.trips, city.box)
    digests = [one.digest for dense in (city, moved, wanted) for one in (dense, thin(dense))]
    assert len(set(digests)) == 6
    assert digests[0] == make_scenario(3).digest


def test_the_digest_does_not_depend_on_the_machine(make_scenario: Make) -> None:
    """Processors differ in the last bits of an exponential, and SciPy in the type of an index: the city is the same."""
    city = make_scenario(5)
    near = [np.nextafter(city.demand, edge) for edge in (0.0, 1.0)]
    moved = city.demand * np.where(np.arange(25) == 7, 1 + 1e-5, 1.0)
    others = [Scenario(city.name, demand, city.trips, city.box) for demand in (*near, moved)]
    assert [other.digest == city.digest for other in others] == [True, True, False]
    short, long = thin(city), thin(city)
    for name in ("indices", "indptr"):
        setattr(long.trips, name, getattr(long.trips, name).astype(np.int64))
    assert long.trips.indices.dtype != short.trips.indices.dtype and long.digest == short.digest


def test_frozen_arrays_are_shared_and_views_of_writable_ones_are_not() -> None:
    """A fine grid's trips are not copied without need; a read-only view of somebody's array is no promise."""
    trips = np.eye(4)
    view = trips[:]
    view.flags.writeable = False
    assert not np.shares_memory(Scenario(**{**GOOD, "trips": view}).trips, trips)
    city = Scenario(**GOOD)
    assert np.shares_memory(Scenario(**{**GOOD, "trips": city.trips}).trips, city.trips)


def test_numpys_scalars_are_saved(tmp_path: Path) -> None:
    """Counts and shares that NumPy computed become Python's own, in the scenario and in its file."""
    facts = {"rows": np.int64(3), "share": np.float32(0.5), "box": (np.float64(1.0), 2), "more": {"whole": np.True_}}
    city = Scenario(**{**GOOD, "entropy_floor": np.float32(0.5)}, provenance=facts)
    plain = {"rows": 3, "share": 0.5, "box": [1.0, 2], "more": {"whole": True}}
    assert dict(city.provenance) == plain
    assert type(city.provenance["rows"]) is int
    assert type(city.entropy_floor) is float
    assert_same(Scenario.load(city.save(tmp_path / "city.npz")), city)


@pytest.mark.parametrize("value", [{1, 2}, Path("x"), np.zeros(3), np.datetime64("2020-01-20")])
def test_provenance_that_no_file_can_hold_raises(value: object) -> None:
    """Told where the scenario is made, not where it is saved."""
    with pytest.raises(ValueError, match=r"provenance must be a mapping of names to text and numbers, got .*'odd'"):
        Scenario(**GOOD, provenance={"odd": value})


def test_cells_from_numpy_are_taken_and_bools_are_not() -> None:
    """A sweep over np.arange is as good as one over range; True is no grid of one cell."""
    city = Scenario(**GOOD)
    assert city.resample(np.int64(4)).cells == load_scenario("shenzhen", np.int64(4)).cells == 4  # type: ignore[arg-type]
    for make in (city.resample, lambda cells: load_scenario("shenzhen", cells)):
        with pytest.raises(ValueError, match="cells must be an integer >= 1, got True"):
            make(True)
