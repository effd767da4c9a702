"""The finite fleet: its law is the mean field's, its seed is its fate, and bad actions leave no trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from mf_taxi_env import FleetSimulator, Scenario, SwarmMDP, TaxiMDP, load_scenario
from mf_taxi_env.fleet import BLOCK
from mf_taxi_env.fleet_policy import POLICY_CHUNK

Make = Callable[..., Scenario]


class CellPolicy:
    """One action per cell, seen by cell or by position; counts how often it is asked."""

    def __init__(self, mdp: TaxiMDP, seed: int = 0, size: float = 0.3) -> None:
        self.mdp = mdp
        generator = torch.Generator().manual_seed(seed)
        self.actions = size * (2 * torch.rand(mdp.grid.size, 2, generator=generator, dtype=mdp.dtype) - 1)
        self.asked: list[tuple[str, int, int]] = []
        self.seen: list[Tensor] = []

    def field(self, mu: Tensor, t: int) -> Tensor:
        self.asked.append(("field", t, self.mdp.grid.size))
        self.seen.append(mu)
        return self.actions * (1 - 0.5 * mu.unsqueeze(-1)) / (1 + t)

    def __call__(self, positions: Tensor, mu: Tensor, t: int) -> Tensor:
        self.asked.append(("call", t, len(positions)))
        self.seen.append(mu)
        return (self.actions * (1 - 0.5 * mu.unsqueeze(-1)) / (1 + t))[self.mdp.grid.index(positions)]


def by_position(policy: CellPolicy) -> Callable[[Tensor, Tensor, int], Tensor]:
    """The same policy without its field."""
    return lambda positions, mu, t: policy(positions, mu, t)


def expected_error(mu: Tensor, taxis: int) -> float:
    """The mean total variation between ``mu`` and the histogram of ``taxis`` draws from it (normal approximation)."""
    p = mu.double()
    return float((0.5 * math.sqrt(2 / math.pi) * (p * (1 - p) / taxis).sqrt()).sum())


def total_variation(a: Tensor, b: Tensor) -> float:
    """Half of the absolute difference."""
    return float((a.double() - b.double()).abs().sum() / 2)


@pytest.fixture(scope="module")
def city() -> TaxiMDP:
    """The built-in city on the paper's grid."""
    return TaxiMDP(load_scenario("shenzhen"), horizon=3)


@pytest.fixture(scope="module")
def million(city: TaxiMDP) -> tuple[Any, Any]:
    """A rollout of a million taxis, and that of the mean field."""
    policy = CellPolicy(city)
    return FleetSimulator(city, 10**6, seed=1).rollout(policy), city.rollout(policy)


def test_a_million_taxis_follow_the_mean_field(city: TaxiMDP, million: tuple[Any, Any]) -> None:
    """Every distribution of the episode is within sampling error of the lifted MDP's, and not suspiciously closer."""
    fleet, field = million
    assert fleet.distributions.shape == (4, 625)
    for t in range(4):
        ratio = total_variation(fleet.distributions[t], field.mu[t]) / expected_error(field.mu[t], 10**6)
        assert 0.5 < ratio < 1.5


def test_one_step_follows_the_transition(make_scenario: Make) -> None:
    """From a fleet far from uniform, in a city with empty cells and congestion: the transition of its own distribution."""
    mdp = TaxiMDP(make_scenario(10, 3), motion="congested")
    fleet = FleetSimulator(mdp, 10**6, seed=5)
    policy = CellPolicy(mdp, size=1.0)
    for _ in range(2):
        before = fleet.distribution
        field = policy.field(mdp.shift(before), fleet.t)
        cells = mdp.grid.index(fleet.positions)
        shifted = fleet.serve()
        assert total_variation(shifted, mdp.shift(before)) < 1.5 * expected_error(mdp.shift(before), 10**6)
        assert not torch.equal(cells, mdp.grid.index(fleet.positions))
        after = fleet.step(field[mdp.grid.index(fleet.positions)])
        expected = mdp.transition(before, field)
        assert total_variation(after, expected) < 1.5 * expected_error(expected, 10**6)
    assert fleet.t == 2


def test_the_error_shrinks_with_the_root_of_the_fleet(city: TaxiMDP, million: tuple[Any, Any]) -> None:
    """From ten thousand to a million taxis, ten times closer."""
    fleet, field = million
    small = FleetSimulator(city, 10**4, seed=1).rollout(CellPolicy(city))
    for t in range(1, 4):
        ratio = total_variation(small.distributions[t], field.mu[t]) / total_variation(fleet.distributions[t], field.mu[t])
        assert 7 < ratio < 14


def test_occupancy_is_the_served_mass(city: TaxiMDP, million: tuple[Any, Any]) -> None:
    """The share of taxis with a passenger is the sum of min(mu, rho)."""
    fleet, field = million
    for t in range(3):
        expected = float(torch.minimum(field.mu[t], city.demand(t)).sum())
        assert float(fleet.occupied[t]) == pytest.approx(expected, abs=0.01)
        assert 0.1 < expected < 0.95


def test_trips_and_demand_of_the_step_are_used(make_scenario: Make) -> None:
    """Data per step: the fleet follows the mean field through the day."""
    mdp = TaxiMDP(make_scenario(6, 1, steps=3), horizon=4)
    policy = CellPolicy(mdp)
    fleet, field = FleetSimulator(mdp, 200_000, seed=2).rollout(policy), mdp.rollout(policy)
    for t in range(5):
        assert total_variation(fleet.distributions[t], field.mu[t]) < 1.6 * expected_error(field.mu[t], 200_000)


@pytest.mark.parametrize("steps", [None, 2])
def test_sparse_trips_carry_the_same_fleet(make_scenario: Make, steps: int | None) -> None:
    """The same seed draws the same destinations from sparse trips as from dense ones, at every step."""
    dense = make_scenario(6, 1, steps=steps)
    rng = np.random.default_rng(0)
    rows = []
    for trips in dense.trip_steps:
        thinned = trips * (rng.random(trips.shape) < 0.3) + 1e-3 * np.eye(36)
        rows.append(thinned / thinned.sum(-1, keepdims=True))
    thin = tuple(map(sparse.csr_array, rows)) if steps else sparse.csr_array(rows[0])
    paths = [
        FleetSimulator(mdp, 5_000, seed=3).rollout(CellPolicy(mdp))
        for mdp in (
            TaxiMDP(Scenario("city", dense.demand, trips, dense.box), horizon=3)
            for trips in (np.stack(rows) if steps else rows[0], thin)
        )
    ]
    torch.testing.assert_close(paths[0].positions, paths[1].positions)


def test_taxis_of_a_cell_without_trips_stay(make_scenario: Make) -> None:
    """An identity row keeps its taxis, a cell without demand serves nobody."""
    demand = np.zeros(9)
    demand[[0, 4]] = 0.5
    trips = np.eye(9)
    trips[4] = np.eye(9)[8]
    mdp = TaxiMDP(Scenario("toy", demand, trips, (0, 1, 0, 1)))
    fleet = FleetSimulator(mdp, 9_000, seed=0)
    before = fleet.distribution
    after = fleet.serve()
    expected = before.clone()
    expected[8] += before[4]
    expected[4] = 0
    torch.testing.assert_close(after, expected)
    assert float(fleet.occupied.float().mean()) == pytest.approx(float(before[0] + before[4]))


def test_passengers_are_dropped_anywhere_in_their_cell() -> None:
    """Destinations are uniform within the cell, not its centre: the fleet has continuous positions."""
    trips = np.zeros((4, 4))
    trips[:, 3] = 1.0
    mdp = TaxiMDP(Scenario("toy", np.full(4, 0.25), trips, (0, 1, 0, 1)))
    fleet = FleetSimulator(mdp, 20_000, seed=0)
    fleet.serve()
    dropped = fleet.positions[fleet.occupied]
    assert len(dropped) > 19_000
    assert bool(((dropped >= 0.5) & (dropped <= 1.0)).all())
    spread = torch.histc(dropped[:, 0], 5, 0.5, 1.0) / len(dropped)
    torch.testing.assert_close(spread, torch.full((5,), 0.2), atol=0.015, rtol=0)


def test_serving_happens_once_per_step(make_scenario: Make) -> None:
    """A second call changes nothing; the next step serves again."""
    mdp = TaxiMDP(make_scenario(4))
    fleet = FleetSimulator(mdp, 500, seed=0)
    fleet.serve()
    positions, occupied = fleet.positions.clone(), fleet.occupied.clone()
    fleet.serve()
    assert torch.equal(fleet.positions, positions)
    assert torch.equal(fleet.occupied, occupied)
    fleet.step(torch.zeros(500, 2))
    fleet.serve()
    assert not torch.equal(fleet.occupied, occupied)


def test_a_step_serves_where_nobody_did(make_scenario: Make) -> None:
    """serve() then step() is step() alone."""
    mdp = TaxiMDP(make_scenario(4))
    one, two = FleetSimulator(mdp, 500, seed=3), FleetSimulator(mdp, 500, seed=3)
    one.serve()
    assert torch.equal(one.step(torch.zeros(500, 2)), two.step(torch.zeros(500, 2)))
    assert torch.equal(one.positions, two.positions)


def test_a_position_of_one_is_in_the_last_cell(make_scenario: Make) -> None:
    """The corner of the city belongs to it, in the count and in the next step."""
    mdp = TaxiMDP(make_scenario(4))
    fleet = FleetSimulator(mdp, 10, seed=0)
    fleet.positions = torch.ones(10, 2)
    assert fleet.distribution.tolist() == [0.0] * 15 + [1.0]
    fleet.step(torch.zeros(10, 2))
    assert float(fleet.distribution.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("resolution", ["cell", "continuous"])
def test_the_same_seed_is_the_same_fleet(make_scenario: Make, resolution: Any) -> None:
    """Bit for bit, whatever happens to the global generator; another seed is another fleet; reset goes on drawing."""
    mdp = TaxiMDP(make_scenario(5), horizon=3)
    policy = by_position(CellPolicy(mdp))
    torch.manual_seed(0)
    first = FleetSimulator(mdp, 1000, seed=7, resolution=resolution)
    one = first.rollout(policy)
    torch.manual_seed(1)
    two = FleetSimulator(mdp, 1000, seed=7, resolution=resolution).rollout(policy)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.positions, FleetSimulator(mdp, 1000, seed=8, resolution=resolution).rollout(policy).positions)
    assert not torch.equal(one.positions, first.rollout(policy).positions)


def test_the_fleet_leaves_the_global_generator_alone(make_scenario: Make) -> None:
    """Nothing touches global seeds."""
    mdp = TaxiMDP(make_scenario(4), horizon=2)
    state = torch.get_rng_state()
    FleetSimulator(mdp, 100, seed=7).rollout(CellPolicy(mdp))
    assert torch.equal(torch.get_rng_state(), state)


def test_continuous_positions_stay_near_the_mean_field(city: TaxiMDP) -> None:
    """Acting from where a taxi is differs from the lifted MDP, by more than sampling but by less than a cell's blur."""
    fleet = FleetSimulator(city, 200_000, seed=1, resolution="continuous").rollout(CellPolicy(city, size=0.1))
    field = city.rollout(CellPolicy(city, size=0.1))
    for t in range(1, 4):
        distance = total_variation(fleet.distributions[t], field.mu[t])
        assert expected_error(field.mu[t], 200_000) < distance < 0.2


def test_continuous_taxis_depart_from_where_they_are() -> None:
    """A move of a tenth is a tenth, up to noise; at cell resolution it starts at the cell's centre."""
    trips = np.eye(4)
    mdp = TaxiMDP(Scenario("toy", np.full(4, 0.25), trips, (0, 1, 0, 1)), noise_std=1e-5)
    for resolution in ("cell", "continuous"):
        fleet = FleetSimulator(mdp, 200, seed=0, resolution=resolution)  # type: ignore[arg-type]
        fleet.serve()
        start = fleet.positions if resolution == "continuous" else mdp.centers[mdp.grid.index(fleet.positions)]
        expected = (start + torch.tensor([0.1, -0.2])).clamp(0, 1)
        fleet.step(torch.tensor([[0.1, -0.2]]).expand(200, 2))
        torch.testing.assert_close(fleet.positions, expected, atol=1e-4, rtol=0)


def test_a_field_is_asked_once_per_step_and_gives_the_same_actions(make_scenario: Make) -> None:
    """At cell resolution a policy with a field is not asked per taxi, and the fleet is bit for bit the same."""
    mdp = TaxiMDP(make_scenario(5), horizon=3)
    policy = CellPolicy(mdp)
    fast = FleetSimulator(mdp, 1000, seed=7).rollout(policy)
    assert policy.asked == [("field", t, 25) for t in range(3)]
    slow = FleetSimulator(mdp, 1000, seed=7).rollout(by_position(policy))
    assert policy.asked[3:] == [("call", t, 1000) for t in range(3)]
    for a, b in zip(fast, slow, strict=True):
        assert torch.equal(a, b)


def test_policies_see_the_distribution_after_trips(make_scenario: Make) -> None:
    """mu is the fleet after serving, its own positions those after serving, and continuous fleets ask by position."""
    mdp = TaxiMDP(make_scenario(5), horizon=2)
    policy = CellPolicy(mdp)
    path = FleetSimulator(mdp, 1000, seed=7, resolution="continuous").rollout(policy)
    assert [kind for kind, _, _ in policy.asked] == ["call", "call"]
    twin = FleetSimulator(mdp, 1000, seed=7, resolution="continuous")
    twin.reset()
    for t in range(2):
        assert torch.equal(policy.seen[t], twin.serve())
        assert not torch.equal(policy.seen[t], path.distributions[t])
        twin.step(policy(twin.positions, policy.seen[t], t))


def test_large_fleets_ask_in_blocks(make_scenario: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cover every taxi once and change nothing, not even what is drawn; a smaller fleet is asked whole."""
    mdp = TaxiMDP(make_scenario(4), horizon=2)
    policy = CellPolicy(mdp)
    whole = FleetSimulator(mdp, 1000, seed=7).rollout(by_position(policy))
    policy.asked.clear()
    monkeypatch.setitem(POLICY_CHUNK, "cpu", 300)  # for policies that offer more than a call
    FleetSimulator(mdp, 1000, seed=7).rollout(by_position(policy))
    assert [n for _, t, n in policy.asked if t == 0] == [1000]
    policy.asked.clear()
    monkeypatch.setitem(BLOCK, "cpu", 700)
    parts = FleetSimulator(mdp, 1000, seed=7).rollout(by_position(policy))
    assert [n for _, t, n in policy.asked if t == 0] == [700, 300]
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(whole.positions, parts.positions)


@pytest.mark.parametrize("resolution", ["cell", "continuous"])
def test_what_depends_on_the_distribution_is_computed_once_a_step(
    make_scenario: Make, monkeypatch: pytest.MonkeyPatch, resolution: Any
) -> None:
    """A policy that offers ``at`` is asked for it once per step, however many chunks follow, with the fleet after trips."""
    mdp = TaxiMDP(make_scenario(4), horizon=2)
    plain = CellPolicy(mdp)
    prepared: list[tuple[Tensor, int]] = []
    sizes: list[int] = []

    class Prepared:
        def at(self, mu: Tensor, t: int) -> Callable[[Tensor], Tensor]:
            prepared.append((mu, t))

            def act(positions: Tensor) -> Tensor:
                sizes.append(len(positions))
                return plain(positions, mu, t)

            return act

        def __call__(self, positions: Tensor, mu: Tensor, t: int) -> Tensor:
            raise AssertionError("at() is what should be asked")

    monkeypatch.setitem(POLICY_CHUNK, "cpu", 300)
    one = FleetSimulator(mdp, 1000, seed=7, resolution=resolution).rollout(Prepared())
    two = FleetSimulator(mdp, 1000, seed=7, resolution=resolution).rollout(by_position(plain))
    assert torch.equal(one.positions, two.positions)
    assert [t for _, t in prepared] == [0, 1] and sizes == 2 * [300, 300, 300, 100]
    assert all(torch.equal(mu, seen) for (mu, t), seen in zip(prepared, (plain.seen[0], plain.seen[4]), strict=True))


@pytest.mark.parametrize(("actions", "message"), [(torch.full((100, 2), 1.01), "lie in"), (torch.zeros(100), "shape")])
def test_a_policy_that_misbehaves_is_refused(make_scenario: Make, actions: Tensor, message: str) -> None:
    """What it returns is checked as the actions of a step are, and the fleet has not moved."""
    fleet = FleetSimulator(TaxiMDP(make_scenario(4)), 100, seed=7)
    with pytest.raises(ValueError, match=message):
        fleet.rollout(lambda positions, mu, t: actions)
    assert fleet.t == 0


def test_travelled_is_the_mean_move_in_kilometres() -> None:
    """A degree of latitude is 111 km, one of longitude half of that at 60 degrees north; moves are cut at the city's limits."""
    uniform = Scenario("toy", np.full(16, 1 / 16), np.eye(16), (10.0, 12.0, 59.5, 60.5))
    mdp = TaxiMDP(uniform, horizon=1)

    def travelled(dx: float, dy: float) -> float:
        move = torch.tensor([[dx, dy]])
        return float(FleetSimulator(mdp, 500, seed=0).rollout(lambda s, mu, t: move.expand(len(s), 2)).travelled_km[0])

    assert travelled(0.0, 0.1) == pytest.approx(11.1, rel=0.01)
    assert travelled(0.1, 0.0) == pytest.approx(11.1, rel=0.01)
    assert travelled(0.03, -0.04) == pytest.approx(5.55, rel=0.01)
    assert 0.2 * 111 < travelled(1.0, 0.0) < 0.8 * 111


def test_positions_may_be_set_however_they_lie_in_memory(make_scenario: Make) -> None:
    """Columns first, or a slice that starts at an odd number: the same fleet as from a plain tensor."""
    mdp = TaxiMDP(make_scenario(4))
    plain = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    odd = torch.cat([torch.zeros(1), plain.flatten()])[1:].view(500, 2)
    fleets = [FleetSimulator(mdp, 500, seed=0) for _ in range(3)]
    for fleet, points in zip(fleets, (plain, plain.mT.contiguous().mT, odd), strict=True):
        fleet.positions = points
        fleet.step(torch.full((500, 2), 0.1))
        fleet.serve()
        assert torch.equal(fleet.positions, fleets[0].positions) and torch.equal(fleet.occupied, fleets[0].occupied)


def test_positions_handed_out_are_not_overwritten(make_scenario: Make) -> None:
    """Who keeps where a taxi was and whether it was taken, such as an agent's data, keeps it: serving makes new tensors."""
    fleet = FleetSimulator(TaxiMDP(make_scenario(4)), 500, seed=0)
    for _ in range(2):
        held = fleet.positions, fleet.occupied
        before = [tensor.clone() for tensor in held]
        fleet.serve()
        for now, kept, was in zip((fleet.positions, fleet.occupied), held, before, strict=True):
            assert not torch.equal(now, was) and torch.equal(kept, was)
        fleet.step(torch.zeros(500, 2))


def test_a_rollout_keeps_its_final_positions(make_scenario: Make) -> None:
    """What was returned does not change when the fleet drives on."""
    mdp = TaxiMDP(make_scenario(4), horizon=2)
    fleet = FleetSimulator(mdp, 500, seed=0)
    path = fleet.rollout(CellPolicy(mdp))
    final = path.positions.clone()
    fleet.serve()
    assert torch.equal(path.positions, final)


def test_representative_taxis_live_in_the_given_distribution(make_scenario: Make) -> None:
    """They carry no mass: served and moved with the fleet's mu, they follow the McKean-Vlasov kernel of that mu."""
    mdp = TaxiMDP(make_scenario(5, 2), motion="congested")
    mu = torch.from_numpy(np.random.default_rng(0).dirichlet(np.full(25, 0.5))).float()
    taxis = FleetSimulator(mdp, 400_000, seed=0)
    start = taxis.distribution
    chance = (mdp.demand(0) / mu).clamp_max(1.0)
    served = start * chance
    shifted = served @ mdp.trips(0) + (start - served)
    after = taxis.serve(mu)
    assert total_variation(after, shifted) < 1.5 * expected_error(shifted, 400_000)
    assert float(taxis.occupied.float().mean()) == pytest.approx(float(served.sum()), abs=0.005)
    fleet_after = mdp.shift(mu)
    actions = CellPolicy(mdp, size=0.5).actions
    moved = taxis.step(actions[mdp.grid.index(taxis.positions)], fleet_after)
    goals = mdp.motion(mdp.centers, fleet_after, actions)
    expected = mdp.noise.push_forward(shifted, goals)
    assert total_variation(moved, expected) < 1.5 * expected_error(expected, 400_000)
    own = mdp.noise.push_forward(shifted, mdp.motion(mdp.centers, shifted, actions))
    assert total_variation(expected, own) > 3 * expected_error(expected, 400_000)


@pytest.mark.parametrize("taxis", [1, 4])
def test_a_few_representative_taxis_are_served_as_the_fleet_is(taxis: int) -> None:
    """Where demand covers the whole fleet every taxi is taken, even a single representative one."""
    mdp = TaxiMDP(Scenario("even", np.full(100, 0.01), np.eye(100), (0, 1, 0, 1)))
    fleet = FleetSimulator(mdp, taxis, seed=0)
    fleet.serve(mdp.initial())
    assert bool(fleet.occupied.all())


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (torch.zeros(99, 2), r"shape \(100, 2\), got \(99, 2\)"),
        (torch.zeros(2), r"shape \(100, 2\), got \(2,\)"),
        (torch.zeros(100, 3), r"shape \(100, 2\), got \(100, 3\)"),
        (torch.full((100, 2), 1.01), r"lie in \[-1, 1\]"),
        (torch.full((100, 2), -1.01), r"lie in \[-1, 1\]"),
        (torch.tensor([[math.nan, 0.0]] + [[0.0, 0.0]] * 99), "finite"),
        (torch.tensor([[0.0, 0.0]] * 99 + [[0.0, math.inf]]), "finite.*got inf at step 0"),
    ],
)
def test_bad_actions_raise_and_change_nothing(make_scenario: Make, actions: Tensor, message: str) -> None:
    """Positions, occupancy and clock stay as they were, and the fleet goes on as if nothing had been asked."""
    mdp = TaxiMDP(make_scenario(5))
    fleet, twin = FleetSimulator(mdp, 100, seed=0), FleetSimulator(mdp, 100, seed=0)
    before = fleet.positions.clone()
    with pytest.raises(ValueError, match=message):
        fleet.step(actions)
    assert torch.equal(fleet.positions, before)
    assert fleet.t == 0
    fleet.step(torch.zeros(100, 2))
    twin.step(torch.zeros(100, 2))
    assert torch.equal(fleet.positions, twin.positions)


def test_extreme_actions_are_allowed_and_keep_taxis_in_the_city(make_scenario: Make) -> None:
    """-1 and 1 are legal; nobody leaves [0, 1]."""
    fleet = FleetSimulator(TaxiMDP(make_scenario(5)), 10_000, seed=0)
    for sign in (1.0, -1.0):
        fleet.step(torch.full((10_000, 2), sign))
        assert bool(((fleet.positions >= 0) & (fleet.positions <= 1)).all())
        corner = 24 if sign > 0 else 0
        assert float(fleet.distribution[corner]) > 0.99


def test_reset_starts_again(make_scenario: Make) -> None:
    """Clock, occupancy and positions of a new episode; the returned distribution is the fleet's. A new fleet is at a start."""
    mdp = TaxiMDP(make_scenario(5))
    fleet = FleetSimulator(mdp, 1000, seed=0)
    new = fleet.positions
    fleet.reset()
    assert torch.equal(fleet.positions, new)
    fleet.step(torch.ones(1000, 2))
    start = fleet.reset()
    assert fleet.t == 0
    assert not fleet.occupied.any() and not torch.equal(fleet.positions, new)
    assert torch.equal(start, fleet.distribution)
    assert total_variation(start, mdp.initial()) < 2 * expected_error(mdp.initial(), 1000)


def test_sizes_may_be_numpys(make_scenario: Make) -> None:
    """A size out of an array is as good as one of Python's: the same fleet."""
    city = TaxiMDP(make_scenario(3))
    fleet, same = (FleetSimulator(city, size, seed=0) for size in (np.int64(10), 10))
    assert type(fleet.n_taxis) is int and torch.equal(fleet.positions, same.positions)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("n_taxis", 0), ("n_taxis", -5), ("n_taxis", 10.0), ("n_taxis", True), ("resolution", "fine"), ("device", "meta")],
)
def test_bad_arguments_raise(make_scenario: Make, argument: str, value: object) -> None:
    """The message names the argument and the value."""
    with pytest.raises(ValueError, match=rf"{argument} .*{value}"):
        FleetSimulator(TaxiMDP(make_scenario(3)), **{"n_taxis": 10, argument: value})  # type: ignore[arg-type]


# -- a world without trips ----------------------------------------------------------------------------------------------


def test_particles_of_a_swarm_follow_the_mean_field() -> None:
    """On the ring nobody is carried, particles cross the seam, and 10^5 of them stay within sampling error for an episode."""
    swarm = SwarmMDP(cells=20, horizon=15, dtype=torch.float64)
    field = swarm.optimal_actions()

    class Analytic:
        def field(self, mu: Tensor, t: int) -> Tensor:
            return field

        def __call__(self, positions: Tensor, mu: Tensor, t: int) -> Tensor:
            return field[swarm.grid.index(positions)]

    rollout, path = FleetSimulator(swarm, 100_000, seed=4).rollout(Analytic()), swarm.rollout(Analytic())
    for t in range(1, 16):
        assert total_variation(rollout.distributions[t], path.mu[t]) < 2 * expected_error(path.mu[t], 100_000)
    assert not rollout.occupied.any() and rollout.travelled_km.isnan().all()
    assert rollout.positions.shape == (100_000, 1)
    again = FleetSimulator(swarm, 100_000, seed=4).rollout(Analytic())
    assert torch.equal(again.positions, rollout.positions)


def test_representative_particles_move_in_the_given_distribution() -> None:
    """A world without trips serves nobody: positions stay, and a step may be told the distribution that it happens in."""
    swarm = SwarmMDP(cells=10)
    particles = FleetSimulator(swarm, 50, seed=1, resolution="continuous")
    before = particles.positions
    assert torch.equal(particles.serve(swarm.ergodic()), particles.distribution)
    assert torch.equal(particles.positions, before)
    particles.step(torch.zeros(50, 1), swarm.ergodic())
    moved = swarm.space.displacement(before, particles.positions)
    assert 0.05 < float(moved.std()) < 0.15  # the noise of a step, 0.1, and no drift


@pytest.mark.parametrize(
    "points",
    [torch.zeros(5, 2), torch.zeros(10, 1), torch.full((10, 2), math.nan), torch.full((10, 2), 1.1)],
    ids=["fewer", "one dimension", "no number", "outside"],
)
def test_positions_are_those_of_all_taxis(points: Tensor) -> None:
    """Fewer, or such as are nowhere, would make a distribution of something else."""
    fleet = FleetSimulator(TaxiMDP(load_scenario("shenzhen", cells=5)), 10, seed=0)
    with pytest.raises(ValueError, match=r"positions must have shape \(10, 2\) and lie in \[0, 1\]"):
        fleet.positions = points
    assert float(fleet.distribution.sum()) == pytest.approx(1.0)


class Named:
    """A policy whose attributes have the names of methods that are optional."""

    field = torch.zeros(25, 2)
    at = 3

    def __call__(self, positions: Tensor, mu: Tensor, t: int) -> Tensor:
        return 0.0 * positions


@pytest.mark.parametrize("resolution", ["cell", "continuous"])
def test_data_is_no_method(resolution: Any) -> None:
    """A policy is a callable; what else it calls ``field`` or ``at`` is its own affair."""
    fleet = FleetSimulator(TaxiMDP(load_scenario("shenzhen", cells=5), horizon=2), 10, seed=0, resolution=resolution)
    assert fleet.rollout(Named()).distributions.shape == (3, 25)
