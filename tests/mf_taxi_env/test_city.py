"""The parametric city: valid on every grid, strict about its file, and close to the real trips it was fitted to."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mf_taxi_env.scenarios import ParametricCity, Scenario, list_scenarios, load_scenario, scenario_from_trips
from mf_taxi_env.scenarios.city import Component, DistanceDecay, Mixture, box_km
from mf_taxi_env.taxi import TaxiMDP

DATA = Path(os.environ.get("MF_TAXI_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
TRIPS = DATA / "shenzhen_od_500m.csv.gz"

TOY = """\
name = "toy"
box = [114.0, 114.1, 22.5, 22.6]
entropy_floor = 0.9
provenance = "made up"

[decay]
power = 1.0
scale_km = 2.0
shape = 1.0

[demand]
uniform = 0.01
components = [[1.0, 0.5, 0.5, 0.2, 0.1, 45.0]]

[attraction]
uniform = 0.01
components = [[1.0, 0.3, 0.6, 0.1, 0.1, 0.0], [2, 0.7, 0.2, 0.2, 0.1, 90]]
"""


def staying_put(city: Scenario) -> tuple[float, float]:
    """Sum of KL over an evening without repositioning, and the final entropy as a share of ``log K``."""
    mdp = TaxiMDP(city, reward_timing="next", dtype=torch.float64)
    mu, stay, total = mdp.initial(), torch.zeros(mdp.grid.size, 2, dtype=torch.float64), 0.0
    for t in range(12):
        following = mdp.transition(mu, stay, t)
        total -= float(mdp.reward(mu, stay, following, t))
        mu = following
    return total, float(torch.special.entr(mu).sum()) / math.log(mdp.grid.size)


def mean_trip(city: Scenario) -> float:
    """Mean kilometres between the cells of a trip."""
    width, height = (side / city.cells for side in box_km(city.box))
    index = np.arange(city.demand.size)
    x, y = index // city.cells * width, index % city.cells * height
    return float((city.demand[:, None] * city.trips * np.hypot(x[:, None] - x, y[:, None] - y)).sum())


@pytest.mark.parametrize("cells", [1, 2, 3, 5, 10, 25, 33, 50])
def test_shenzhen_is_valid_on_any_grid(cells: int) -> None:
    """Every cell has some demand and every row of trips is a distribution, whatever the grid."""
    city = load_scenario("shenzhen", cells)
    assert city.cells == cells
    assert city.demand.shape == (cells**2,) and city.trips.shape == (cells**2, cells**2)
    np.testing.assert_allclose(city.demand.sum(), 1.0, atol=1e-12)
    np.testing.assert_allclose(city.trips.sum(-1), 1.0, atol=1e-12)
    assert city.demand.min() > 0 and city.trips.min() > 0


@pytest.mark.parametrize("cells", [5, 10, 25])
def test_grids_agree_with_each_other(cells: int) -> None:
    """A coarse grid is the coarse view of a fine one, not another city."""
    coarse, fine = load_scenario("shenzhen", cells), load_scenario("shenzhen", 50).resample(cells)
    assert 0.5 * np.abs(coarse.demand - fine.demand).sum() < 1e-3
    assert 0.5 * (coarse.demand[:, None] * np.abs(coarse.trips - fine.trips)).sum() < 0.08


def test_figures_vary_smoothly_with_the_grid() -> None:
    """No grid is an outlier: neighbouring sizes give neighbouring figures."""
    cities = [load_scenario("shenzhen", cells) for cells in range(20, 31)]
    entropy = np.array([city.demand_entropy for city in cities])
    kl, final = np.array([staying_put(city) for city in cities]).T
    assert np.abs(np.diff(entropy)).max() < 0.01
    assert np.abs(np.diff(kl)).max() < 0.6
    assert np.abs(np.diff(final)).max() < 0.01


def test_masses_match_the_analytic_integral() -> None:
    """The quadrature is exact enough: a single upright Gaussian against the error function."""
    mixture = Mixture((Component(3.0, 0.4, 0.8, 0.02, 0.1, 0.0),), uniform=0.1)

    def axis(mean: float, std: float) -> NDArray[np.float64]:
        cdf = np.array([math.erf((edge - mean) / (std * math.sqrt(2))) for edge in np.linspace(0, 1, 8)])
        masses: NDArray[np.float64] = np.diff(cdf) / (cdf[-1] - cdf[0])
        return masses

    expected = 0.9 * np.outer(axis(0.4, 0.02), axis(0.8, 0.1)).ravel() + 0.1 / 49
    np.testing.assert_allclose(mixture.cell_masses(7), expected, atol=1e-4)


def test_angle_turns_counter_clockwise() -> None:
    """A component at 45 degrees stretches from south-west to north-east, as the file's header promises."""
    mass = Mixture((Component(1.0, 0.5, 0.5, 0.3, 0.05, 45.0),)).cell_masses(4).reshape(4, 4)
    assert mass[0, 0] > 100 * mass[0, 3] and mass[3, 3] > 100 * mass[3, 0]


def test_decay_averages_over_both_cells() -> None:
    """Trips within a wide cell survive although its centre is at distance zero from itself."""
    decay, box = DistanceDecay(1.0, 1.0, 1.0), (114.0, 114.1, 22.5, 22.6)
    averages = decay.cell_averages(2, box)
    points = np.random.default_rng(0).random((200_000, 2, 2)) * np.array(box_km(box)) / 2
    r = np.hypot(*(points[:, 0] - points[:, 1]).T)
    np.testing.assert_allclose(averages[0, 0], (r * np.exp(-r)).mean(), rtol=0.01)


def test_same_numbers_every_time() -> None:
    """Loading twice gives bit-identical scenarios."""
    first, second = load_scenario("shenzhen", 10), load_scenario("shenzhen", 10)
    assert np.array_equal(first.demand, second.demand) and np.array_equal(first.trips, second.trips)


def test_shenzhen_is_listed_and_every_listed_city_loads() -> None:
    """The list is of names that work."""
    assert "shenzhen" in list_scenarios()
    for name in list_scenarios():
        assert load_scenario(name, 5).name == name


@pytest.mark.parametrize("name", ["atlantis", "", "Shenzhen", "../scenarios/shenzhen"])
def test_unknown_names_list_the_known_ones(name: str) -> None:
    """A typo is answered with what there is."""
    with pytest.raises(ValueError, match=r"unknown scenario .* known are .*'shenzhen'"):
        load_scenario(name)


@pytest.mark.parametrize("cells", [0, -1, 2.5, True, "25"])
def test_bad_cells_are_refused(cells: object) -> None:
    """The grid's size is checked where it enters."""
    with pytest.raises(ValueError, match="cells must be an integer >= 1"):
        load_scenario("shenzhen", cells)  # type: ignore[arg-type]


def test_files_are_loaded_and_resampled(tmp_path: Path) -> None:
    """Paths work in place of names, and a saved scenario arrives on the grid that was asked for."""
    path = load_scenario("shenzhen", 10).save(tmp_path / "city.npz")
    assert load_scenario(path, 10).cells == 10 and load_scenario(str(path), 5).cells == 5
    (tmp_path / "toy.toml").write_text(TOY)
    assert load_scenario(tmp_path / "toy.toml", 6).name == "toy"
    for missing in ("none.npz", "none.toml"):
        with pytest.raises(FileNotFoundError):
            load_scenario(tmp_path / missing)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "toy"', "name = ", "is not a TOML file"),
        ('name = "toy"', "", "key name is missing"),
        ('name = "toy"', "name = 3", "name must be a string, got 3"),
        ("[114.0, 114.1, 22.5, 22.6]", "[114.0, 114.1]", r"box = .* must be 4 numbers, got \[114.0, 114.1\]"),
        ("[114.0, 114.1, 22.5, 22.6]", "[114.1, 114.0, 22.5, 22.6]", "west=114.1, east=114.0"),
        ("entropy_floor = 0.9", "entropy_floor = 1.9", "entropy_floor must lie in .* got 1.9"),
        ("entropy_floor = 0.9", "entropy_flor = 0.9", "unknown key entropy_flor = 0.9"),
        ("scale_km = 2.0", "scale_km = 0.0", "decay.scale_km must be finite and above 0, got 0.0"),
        ("power = 1.0", 'power = "1"', "decay.power must be a number, got '1'"),
        ("power = 1.0", "power = 1.0\nkm = 1", "unknown key decay.km = 1"),
        ("[[1.0, 0.5, 0.5, 0.2, 0.1, 45.0]]", "[]", "demand.components must hold at least one"),
        ("[[1.0, 0.5, 0.5, 0.2, 0.1, 45.0]]", "[[1.0, 0.5]]", r"demand.components\[0\] .* must be 6 numbers"),
        ("1.0, 0.5, 0.5, 0.2", "-1.0, 0.5, 0.5, 0.2", r"demand.components\[0\]: weight must be finite and above 0, got -1.0"),
        ("[2, 0.7", "[2, 7", r"attraction.components\[1\]: x must be finite and in \[0, 1\], got 7.0"),
        ("0.2, 0.1, 45.0", "nan, 0.1, 45.0", r"std_along must be finite .* got nan"),
        ("[attraction]\nuniform = 0.01", "[attraction]\nuniform = 1.0", r"attraction.uniform must lie in \[0, 1\), got 1.0"),
        ("[decay]", "[decoy]", "unknown key decoy"),
    ],
)
def test_malformed_files_are_explained(tmp_path: Path, old: str, new: str, message: str) -> None:
    """A bad file is refused with its path, the key and the value."""
    assert old in TOY
    path = tmp_path / "bad.toml"
    path.write_text(TOY.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as caught:
        ParametricCity.load(path)
    assert str(path) in str(caught.value)


def test_import_is_light() -> None:
    """Scenarios load without polars, which only trip files need."""
    code = "import sys, mf_taxi_env.scenarios as s; s.load_scenario('shenzhen', 5); sys.exit('polars' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_shenzhen_ships_parameters_not_data() -> None:
    """The built-in stays a smooth description: few components, none narrower than half a cell of 25."""
    with as_file(files("mf_taxi_env.scenarios") / "shenzhen.toml") as path:
        city = ParametricCity.load(path)
    components = city.demand.components + city.attraction.components
    assert len(components) <= 100
    assert min(min(component.std_along, component.std_across) for component in components) >= 0.02


@pytest.mark.skipif(not TRIPS.is_file(), reason=f"no trip file {TRIPS.name}: set MF_TAXI_DATA to its folder")
def test_shenzhen_is_close_to_the_real_trips() -> None:
    """The stand-in behaves like the real city: its maps, its trips, and what they do to an idle fleet."""
    pytest.importorskip("polars")
    real = scenario_from_trips(TRIPS, box=(114.015, 114.14, 22.5, 22.625), source_cell=(0.0048726, 0.0044966))
    city = load_scenario("shenzhen", 25)
    assert city.box == real.box
    assert 0.5 * np.abs(city.demand - real.demand).sum() <= 0.07
    assert 0.5 * np.abs(city.demand @ city.trips - real.demand @ real.trips).sum() <= 0.08
    assert abs(city.demand_entropy - real.demand_entropy) <= 0.005
    assert mean_trip(city) == pytest.approx(mean_trip(real), rel=0.05)
    (kl, final), (real_kl, real_final) = staying_put(city), staying_put(real)
    assert abs(kl - real_kl) <= 0.3
    assert abs(final - real_final) <= 0.01


def test_cells_and_floor_from_numpy_are_taken(tmp_path: Path) -> None:
    """What NumPy computed is as good as Python's own; a floor that is no number is refused by name."""
    (tmp_path / "toy.toml").write_text(TOY)
    city = ParametricCity.load(tmp_path / "toy.toml")
    assert city.scenario(np.int64(3)).cells == 3  # type: ignore[arg-type]
    half = replace(city, entropy_floor=np.float32(0.5)).entropy_floor
    assert (half, type(half)) == (0.5, float)
    with pytest.raises(ValueError, match=r"entropy_floor must lie in \[0, 1\].*'high'"):
        replace(city, entropy_floor="high")  # type: ignore[arg-type]
