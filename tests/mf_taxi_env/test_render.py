"""Pictures of a city: north is up, colours compare, files are whole or absent."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.typing import NDArray
from scipy import sparse

from mf_taxi_env.render import common_scale, draw_map, maps_sheet, save_figure
from mf_taxi_env.scenario_sheet import mean_trip, scenario_sheet, trip_lengths
from mf_taxi_env.scenarios import Scenario, load_scenario
from mf_taxi_env.scenarios.city import box_km

BOX = (114.0, 114.2, 22.5, 22.6)


def corner(i: int, j: int, k: int = 4) -> NDArray[np.float64]:
    """All mass in cell ``(i, j)``, ``[K]``."""
    mass = np.zeros(k * k)
    mass[i * k + j] = 1.0
    return mass


def axes() -> Axes:
    return Figure().subplots()


def images(figure: Figure) -> list[Any]:
    return [panel.images[0] for panel in figure.axes if panel.images]


def texts(figure: Figure) -> str:
    return " | ".join(text.get_text() for panel in figure.axes for text in panel.texts)


@pytest.mark.parametrize(("cell", "row", "column"), [((0, 0), 0, 0), ((3, 0), 0, 3), ((0, 3), 3, 0), ((3, 3), 3, 3)])
def test_north_is_up_and_east_is_right(cell: tuple[int, int], row: int, column: int) -> None:
    """A cell's mass appears where the cell lies: first index to the right, second upwards."""
    image = draw_map(axes(), corner(*cell), BOX)
    assert image.origin == "lower"
    assert tuple(image.get_extent()) == BOX
    shown = np.asarray(image.get_array())
    assert shown[row, column] == 16.0
    assert shown.sum() == 16.0


def test_pixels_of_the_south_west_cell_are_at_the_lower_left(tmp_path: Path) -> None:
    """Orientation holds in the file itself, not only in the data handed to matplotlib."""
    figure = Figure(figsize=(2, 2))
    panel = figure.add_axes((0, 0, 1, 1))
    draw_map(panel, corner(0, 0), (0.0, 1.0, -0.5, 0.5))
    panel.set_axis_off()
    save_figure(figure, tmp_path / "map.png")
    pixels = imread(tmp_path / "map.png")
    bright = pixels[..., :3].sum(-1)
    assert bright[-30, 30] > bright[30, 30] + 0.5
    assert bright[-30, 30] > bright[-30, -30] + 0.5


def test_axes_are_in_degrees_and_true_to_distances() -> None:
    """Limits are the box, tick labels carry degrees and hemisphere, and a kilometre is as long either way."""
    panel = axes()
    draw_map(panel, corner(0, 0), BOX, title="demand")
    assert panel.get_xlim() == BOX[:2]
    assert panel.get_ylim() == BOX[2:]
    assert "114.1°E" in [tick.get_text() for tick in panel.get_xticklabels()]
    assert "22.55°N" in [tick.get_text() for tick in panel.get_yticklabels()]
    assert panel.get_title() == "demand"
    width, height = box_km(BOX)
    assert panel.get_aspect() == pytest.approx((height / 0.1) / (width / 0.2))


def test_western_and_southern_degrees_are_labelled_so() -> None:
    """West and south are letters, not minus signs."""
    panel = axes()
    draw_map(panel, corner(0, 0), (-47.0, -46.0, -24.0, -23.0))
    assert "46.5°W" in [tick.get_text() for tick in panel.get_xticklabels()]
    assert "23.5°S" in [tick.get_text() for tick in panel.get_yticklabels()]


def test_square_tensor_and_flat_array_draw_the_same() -> None:
    """[k, k] and [K], tensors (also with gradients) and read-only arrays are all distributions."""
    mass = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)).softmax(-1).requires_grad_() / 5
    flat = mass.detach().numpy().ravel().copy()
    flat.flags.writeable = False
    one, two = draw_map(axes(), mass, BOX), draw_map(axes(), flat, BOX)
    np.testing.assert_array_equal(np.asarray(one.get_array()), np.asarray(two.get_array()))


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        (np.full(5, 0.2), r"shape \[K\] or \[k, k\].*\(5,\)"),
        (np.full((2, 8), 1 / 16), r"got shape \(2, 8\)"),
        (np.array([]), r"got shape \(0,\)"),
        (np.array([0.5, 0.7, -0.2, 0.0]), "non-negative.*-0.2"),
        (np.array([0.5, np.nan, 0.5, 0.0]), "finite"),
    ],
)
def test_malformed_distributions_are_named(distribution: NDArray[np.float64], message: str) -> None:
    """What is no distribution on a square grid is refused with its shape or values."""
    with pytest.raises(ValueError, match=message):
        draw_map(axes(), distribution, BOX)


def test_malformed_boxes_and_points_are_named() -> None:
    """A swapped box, points of another shape and empty panels are refused."""
    with pytest.raises(ValueError, match="west < east"):
        draw_map(axes(), corner(0, 0), (114.2, 114.0, 22.5, 22.6))
    with pytest.raises(ValueError, match=r"points must have shape \[m, 2\], got shape \(3,\)"):
        maps_sheet([("a", corner(0, 0))], BOX, points=("taxis", np.zeros(3)))
    with pytest.raises(ValueError, match="panels must hold at least one"):
        maps_sheet([], BOX)


def test_maps_share_one_colour_scale_and_one_bar() -> None:
    """The same colour means the same share of the fleet in every panel, in multiples of a uniform fleet."""
    figure = maps_sheet([("peak", corner(1, 1)), ("uniform", np.full(16, 1 / 16))], BOX, title="two")
    peak, uniform = images(figure)[:2]
    assert peak.norm is uniform.norm
    assert peak.norm.vmin == 0.0
    assert np.asarray(uniform.get_array()) == pytest.approx(1.0)
    bars = [panel for panel in figure.axes if "multiples of a uniform fleet" in panel.get_ylabel() + panel.get_xlabel()]
    assert len(bars) == 1


def test_taxis_are_points_in_degrees() -> None:
    """Positions in the unit square, longitude first, land at their degrees on axes like the maps'."""
    figure = maps_sheet([("fleet", corner(0, 0))], BOX, points=("2 taxis", torch.tensor([[0.0, 1.0], [0.5, 0.25]])))
    (panel,) = (panel for panel in figure.axes if panel.get_title() == "2 taxis")
    np.testing.assert_allclose(np.asarray(panel.collections[0].get_offsets()), [[114.0, 22.6], [114.1, 22.525]])
    assert panel.get_xlim() == BOX[:2]


def test_the_scale_says_where_it_is_clipped() -> None:
    """One huge peak does not drown the rest, and the label says that it lies above the scale."""
    mass = np.full(2500, 0.5 / 2500)
    mass[7] += 0.5
    scale = common_scale([mass])
    assert scale.norm.vmax == 2.0
    assert scale.extend == "max"
    assert "clipped at 2" in scale.label and "peak 1.25e+03" in scale.label
    gentle = common_scale([np.full(4, 0.25)])
    assert gentle.extend == "neither"
    assert "clipped" not in gentle.label
    with pytest.raises(ValueError, match="at least one"):
        common_scale([])


def test_trip_lengths_agree_with_the_distance_matrix() -> None:
    """The column-wise sums equal the plain ones over all pairs of cells."""
    city = load_scenario("shenzhen", cells=6)
    width, height = (side / 6 for side in box_km(city.box))
    x, y = (index.ravel() for index in np.meshgrid(np.arange(6) * width, np.arange(6) * height, indexing="ij"))
    dx, dy = x[None, :] - x[:, None], y[None, :] - y[:, None]
    length, east, north = trip_lengths(city)
    np.testing.assert_allclose(length, (city.trips * np.hypot(dx, dy)).sum(1))
    np.testing.assert_allclose(east, (city.trips * dx).sum(1), atol=1e-12)
    np.testing.assert_allclose(north, (city.trips * dy).sum(1), atol=1e-12)
    assert mean_trip(city) == pytest.approx(float(city.demand @ length))


def test_cells_without_trips_do_not_count_and_are_marked() -> None:
    """An identity row stands for no trips: it shortens no mean, and the sheet greys it out."""
    trips = np.zeros((4, 4))
    trips[[0, 1, 2], [1, 0, 0]] = 1.0
    trips[3, 3] = 1.0
    city = Scenario("toy", np.full(4, 0.25), trips, box=BOX)
    width, height = (side / 2 for side in box_km(BOX))
    assert mean_trip(city) == pytest.approx((2 * height + width) / 3)
    figure = scenario_sheet(city)
    assert "grey: no trips" in " ".join(panel.get_title() for panel in figure.axes)
    shown = images(figure)[2].get_array()
    assert np.isnan(np.ma.filled(shown, np.nan)).sum() == 1


def test_scenario_sheet_tells_the_key_figures() -> None:
    """Name, grid, entropy, floor and the counts of provenance are on the sheet; text is never read as formulas."""
    city = load_scenario("shenzhen", cells=10)
    named = Scenario(
        "a $b$ city", city.demand, city.trips, city.box, 0.9, {"file": "x_$1$.csv", "rows": 1234567, "smoothing": 3}
    )
    figure = scenario_sheet(named)
    words = texts(figure)
    for part in ("10 x 10 cells", f"{city.demand_entropy:.1%}", "90.0%", "x_$1$.csv", "1,234,567", "median of 3 x 3 cells"):
        assert part in words
    assert figure.get_suptitle() == "a $b$ city"
    demand, ends = images(figure)[:2]
    assert demand.norm is ends.norm
    np.testing.assert_allclose(np.asarray(demand.get_array()).T.ravel(), 100 * city.demand)
    np.testing.assert_allclose(np.asarray(ends.get_array()).T.ravel(), 100 * city.demand @ city.trips)


@pytest.mark.parametrize("moving", ["demand", "trips", "both"])
def test_time_varying_scenarios_show_their_mean(moving: str, tmp_path: Path) -> None:
    """Demand and trips per step are drawn as the mean over steps, and the sheet says how many."""
    demand = np.stack([corner(0, 0), corner(3, 3)])
    trips = np.stack([np.eye(16), np.roll(np.eye(16), 1, axis=1)])
    city = Scenario("t", demand if moving != "trips" else demand[0], trips if moving != "demand" else trips[0], box=BOX)
    figure = scenario_sheet(city)
    assert "2 steps" in texts(figure)
    expected = demand.mean(0) if moving != "trips" else demand[0]
    start, ends = (np.asarray(image.get_array()).T.ravel() / 16 for image in images(figure)[:2])
    np.testing.assert_allclose(start, expected)
    flows = {"demand": demand.mean(0), "trips": (demand[0] + corner(0, 1)) / 2, "both": (corner(0, 0) + corner(0, 0)) / 2}
    np.testing.assert_allclose(ends, flows[moving])
    assert save_figure(figure, tmp_path / "t.png").stat().st_size > 10_000


@pytest.mark.parametrize("box", [(0.0, 1.0, 0.0, 1.0), (10.0, 11.0, 50.0, 50.1), (10.0, 10.1, 50.0, 50.3)])
@pytest.mark.parametrize("cells", [1, 2])
@pytest.mark.filterwarnings("error")
def test_tiny_grids_and_odd_boxes_draw_without_warnings(
    box: tuple[float, float, float, float], cells: int, tmp_path: Path
) -> None:
    """The smallest grids, wide boxes and tall boxes make a sheet, too."""
    size = cells**2
    city = Scenario("odd", np.full(size, 1 / size), np.full((size, size), 1 / size), box=box)
    save_figure(scenario_sheet(city), tmp_path / "odd.png")


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml"), (".PNG", b"\x89PNG")]
)
def test_the_suffix_sets_the_format(suffix: str, start: bytes, tmp_path: Path) -> None:
    """The three formats are written as what their suffix says."""
    path = save_figure(maps_sheet([("a", corner(0, 0))], BOX), tmp_path / f"map{suffix}")
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    """The message names the path and the formats, and nothing is written."""
    with pytest.raises(ValueError, match=r"\.png, \.pdf, \.svg, got .*map\.bmp"):
        save_figure(Figure(), tmp_path / "map.bmp")
    assert not list(tmp_path.iterdir())


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When writing breaks off half-way, the old picture stays and no temporary file is left."""
    target = tmp_path / "map.png"
    target.write_bytes(b"old")

    def broken(self: Figure, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        save_figure(Figure(), target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_pyplot_is_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing needs no display and no global state: it works where pyplot cannot be imported."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.delitem(sys.modules, "mf_taxi_env.render")
    fresh = importlib.import_module("mf_taxi_env.render")
    fresh.save_figure(fresh.maps_sheet([("a", corner(0, 0))], BOX), tmp_path / "map.png")


def test_every_map_has_its_title() -> None:
    """More panels than a row holds wrap around; unused places stay empty."""
    figure = maps_sheet([(f"map {n}", corner(0, 0)) for n in range(5)], BOX, columns=3)
    assert sorted(panel.get_title() for panel in figure.axes if panel.get_title()) == [f"map {n}" for n in range(5)]


@pytest.mark.parametrize("thin", [False, True])
def test_the_mean_trip_does_not_depend_on_the_steps(thin: bool) -> None:
    """The same trips in one slice or in twelve: a cell without trips in a slice adds no trip of 0 km there."""
    rng = np.random.default_rng(0)
    # Twenty trips a slice, none within its cell.
    origin = rng.integers(0, 16, (12, 20))
    destination = (origin + rng.integers(1, 16, (12, 20))) % 16
    flow = np.zeros((12, 16, 16))
    np.add.at(flow, (np.arange(12)[:, None], origin, destination), 1.0)

    def rows(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        totals = counts.sum(-1, keepdims=True)
        return np.where(totals > 0, counts / np.maximum(totals, 1.0), np.eye(16))

    trips: Any = tuple(map(sparse.csr_array, rows(flow))) if thin else rows(flow)
    whole = Scenario("whole", flow.sum((0, 2)) / 240, rows(flow.sum(0)), BOX)
    parts = Scenario("parts", flow.sum(2) / 20, trips, BOX)
    assert (np.asarray(rows(flow)[:, range(16), range(16)]) == 1.0).any()
    width, height = (side / 4 for side in box_km(BOX))
    km = np.hypot((destination // 4 - origin // 4) * width, (destination % 4 - origin % 4) * height)
    assert mean_trip(whole) == pytest.approx(km.mean())
    assert mean_trip(parts) == pytest.approx(km.mean())
    np.testing.assert_allclose(trip_lengths(parts), trip_lengths(whole), atol=1e-9)


def test_trips_count_by_the_demand_of_their_step() -> None:
    """A cell that is busy when its trips are long has long trips; one without demand still has the mean of its own."""
    far, near = np.eye(4), np.eye(4)
    far[0], near[0] = [0, 0, 1, 0], [0, 1, 0, 0]
    far[1] = near[1] = [1, 0, 0, 0]
    demand = np.array([[0.75, 0, 0.25, 0], [0.25, 0, 0.75, 0]])
    city = Scenario("toy", demand, np.stack([far, near]), BOX)
    width, height = (side / 2 for side in box_km(BOX))
    np.testing.assert_allclose(trip_lengths(city)[0], [0.75 * width + 0.25 * height, height, 0, 0])
    assert mean_trip(city) == pytest.approx(0.75 * width + 0.25 * height)
