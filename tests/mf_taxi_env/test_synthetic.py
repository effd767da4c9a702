"""Generated cities: of the entropy asked for, the same for the same seed, and different for another."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mf_taxi_env import TaxiMDP, list_scenarios, load_scenario
from mf_taxi_env.scenarios.synthetic import scenario_family, synthetic_scenario, tempered


@given(cells=st.integers(2, 30), seed=st.integers(0, 10**6), entropy=st.floats(0.3, 1.0))
@settings(max_examples=40, deadline=None)
def test_the_entropy_is_met_on_any_grid(cells: int, seed: int, entropy: float) -> None:
    """The share of log K that was asked for, to 1e-3 at worst, whatever the seed."""
    city = synthetic_scenario(cells, seed, entropy=entropy)
    p = city.demand[city.demand > 0]
    assert -(p * np.log(p)).sum() / math.log(cells**2) == pytest.approx(entropy, abs=1e-3)
    assert city.cells == cells


def test_the_defaults_are_the_papers() -> None:
    """Entropy of demand 0.67 and floor 0.85, on 25 x 25 cells; a uniform fleet is safe, and KL to it is 0.33 log K."""
    city = load_scenario("synthetic")
    assert (city.cells, city.entropy_floor, city.name) == (25, 0.85, "synthetic")
    assert city.demand_entropy == pytest.approx(0.67, abs=1e-6)
    assert city.trips.min() > 0
    mdp = TaxiMDP(city)
    assert float(mdp.margins(mdp.initial()).min()) > 0


def test_a_seed_is_a_city() -> None:
    """The name tells the seed; the same one gives the same bits, another another city."""
    seventh = load_scenario("synthetic:7", 10)
    assert seventh.name == "synthetic:7"
    assert seventh.digest == synthetic_scenario(10, 7).digest
    assert len({load_scenario(name, 10).digest for name in ("synthetic", "synthetic:0", "synthetic:1", "synthetic:7")}) == 3
    assert {"shenzhen", "synthetic"} <= set(list_scenarios())


@pytest.mark.parametrize("name", ["synthetic:", "synthetic:-1", "synthetic:x", "synthetic:1.5", "shenzhen:7"])
def test_seeds_that_are_none_are_unknown(name: str) -> None:
    """A typo is answered with what there is."""
    with pytest.raises(ValueError, match=r"unknown scenario .*synthetic:SEED"):
        load_scenario(name)


def test_a_seed_is_the_same_city_on_every_grid() -> None:
    """The coarse grid is the coarse view of the fine one, but for the tempering."""
    coarse, fine = synthetic_scenario(10, 3, entropy=0.7), synthetic_scenario(30, 3, entropy=0.7).resample(10)
    assert np.corrcoef(coarse.demand, fine.demand)[0, 1] > 0.9
    assert 0.5 * (np.abs(coarse.trips - fine.trips)).sum(1).max() < 0.2


def test_hotspots_attract_trips() -> None:
    """Trips end where trips start, rather than anywhere."""
    for seed in range(5):
        city = synthetic_scenario(15, seed)
        assert np.corrcoef(city.demand, city.demand @ city.trips)[0, 1] > 0.3


def test_the_family_is_reproducible_and_grows_at_its_end() -> None:
    """Different cities, each from a seed of its own that its name tells; a longer family begins with the shorter one."""
    family = list(scenario_family(4, seed=5, cells=6))
    assert len({city.digest for city in family}) == 4
    assert [city.digest for city in scenario_family(2, seed=5, cells=6)] == [city.digest for city in family[:2]]
    assert load_scenario(family[2].name, 6).digest == family[2].digest
    assert not {city.digest for city in scenario_family(4, seed=6, cells=6)} & {city.digest for city in family}
    assert list(scenario_family(0)) == []
    # Made one at a time: a thousand fine cities would not fit into memory.
    assert len(list(itertools.islice(scenario_family(10**6, cells=3, entropy=0.5, entropy_floor=0.4), 2))) == 2


def test_the_settings_reach_every_city() -> None:
    """Entropy, floor and hotspots of a family, and of a single city."""
    (city,) = scenario_family(1, cells=8, entropy=0.5, entropy_floor=0.4, hotspots=3)
    assert (city.demand_entropy, city.entropy_floor) == (pytest.approx(0.5), 0.4)
    assert "3 hotspots" in city.provenance["source"]
    assert synthetic_scenario(8, hotspots=2).digest != synthetic_scenario(8, hotspots=3).digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed .*-1"),
        ({"seed": 1.5}, "seed .*1.5"),
        ({"entropy": 0.0}, "entropy .*0.0"),
        ({"entropy": 1.1}, "entropy .*1.1"),
        ({"entropy": math.nan}, "entropy .*nan"),
        ({"entropy_floor": 2.0}, "entropy_floor .*2.0"),
        ({"hotspots": 0}, "hotspots .*0"),
        ({"cells": 0}, "cells .*0"),
    ],
)
def test_bad_arguments_raise(arguments: dict[str, object], message: str) -> None:
    """Named with the value given, for one city and for a family."""
    with pytest.raises(ValueError, match=message):
        synthetic_scenario(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        next(scenario_family(1, **arguments))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"n .*-1"):
        scenario_family(-1)


def test_tempering_keeps_the_order_of_cells() -> None:
    """A hotspot stays one; entropy one is uniform, entropy near zero a single cell."""
    mass = np.random.default_rng(0).dirichlet(np.ones(20))
    for entropy in (0.1, 0.5, 0.9):
        assert (np.argsort(tempered(mass, entropy)) == np.argsort(mass)).all()
    np.testing.assert_allclose(tempered(mass, 1.0), 0.05)
    assert tempered(mass, 1e-3).max() > 0.999


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"entropy": 3.0}, "entropy .*3.0"),
        ({"entropy_floor": 95}, "entropy_floor .*95"),
        ({"cells": 0}, "cells .*0"),
        ({"hotspots": True}, "hotspots .*True"),
        ({"seed": True}, "seed .*True"),
        ({"n": True}, "n .*True"),
    ],
)
def test_a_family_refuses_bad_arguments_at_the_call(arguments: dict[str, object], message: str) -> None:
    """Not where, much later, its first city is asked for."""
    with pytest.raises(ValueError, match=message):
        scenario_family(**{"n": 2, **arguments})  # type: ignore[arg-type]


def test_numpys_integers_make_the_same_city() -> None:
    """Seed, cells, hotspots and number from NumPy give the same bits and the same name."""
    one, two = np.int64(1), np.int64(2)
    city = synthetic_scenario(np.int64(5), two, hotspots=two)  # type: ignore[arg-type]
    assert (city.digest, city.name) == (synthetic_scenario(5, 2, hotspots=2).digest, "synthetic:2")
    (member,) = scenario_family(one, two, cells=np.int64(5))  # type: ignore[arg-type]
    assert member.digest == next(scenario_family(1, 2, cells=5)).digest
