"""Swarm motion: the published numbers, the ergodic solution, and what any lifted mean-field MDP owes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mf_taxi_env import EntropyFloor, Grid, MeanFieldMDP, Scenario, TaxiMDP
from mf_taxi_env.information import entropy_fraction
from mf_taxi_env.motion import TorusMotion
from mf_taxi_env.safety import DistanceCap, KeepAway, RegionCapacity, RegionCoverage, SmoothedEntropyFloor, WeightedEntropyFloor
from mf_taxi_env.scoring import analytic_return, episode_score, possible_return, stay_return
from mf_taxi_env.swarm import SwarmMDP

DTYPE = torch.float64


def test_numbers_of_numpy_are_as_good_as_pythons() -> None:
    """A world that is made again from a file has Python's: one of float32 would be another world."""
    world, again = SwarmMDP(cells=10, dt=np.float32(0.01)), SwarmMDP(cells=10, dt=float(np.float32(0.01)))
    assert type(world.dt) is float and (world.dt, world.max_speed, world.reach) == (again.dt, again.max_speed, again.reach)


class Constant:
    """A policy that gives the same field at every step."""

    def __init__(self, actions: Tensor) -> None:
        self.actions = actions

    def field(self, mu: Tensor, t: int) -> Tensor:
        return self.actions


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Uniform numbers in [0, 1), repeatable."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def distribution(*shape: int, seed: int = 0) -> Tensor:
    """Random distributions."""
    weights = rand(*shape, seed=seed) + 0.01
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("dt", "density_term", "expected"),
    [(0.01, True, 194.09), (0.005, True, 264.74), (0.01, False, -222.51), (0.005, False, -149.56)],
)
def test_return_of_the_ergodic_policy_is_the_published_number(dt: float, density_term: bool, expected: float) -> None:
    """100 steps of a* from uniform, with the logarithm of the cell's mass and without it."""
    mdp = SwarmMDP(dt=dt, density_term=density_term, dtype=DTYPE)
    path = mdp.rollout(Constant(mdp.optimal_actions()))
    assert path.rewards.shape == (100,)
    assert path.returns.item() == pytest.approx(expected, abs=5e-3)


def test_reward_is_the_formula_of_one_particle_integrated_over_the_swarm() -> None:
    """An explicit loop over cells, for actions other than a*; only the distribution acted from enters."""
    mdp = SwarmMDP(cells=7, max_speed=5.0, dtype=DTYPE)
    mu, actions = distribution(7), 2 * rand(7, 1, seed=1) - 1
    expected = 0.0
    for c in range(7):
        x, v = (c + 0.5) / 7, 5.0 * float(actions[c, 0])
        r = 2 * math.pi**2 * (math.sin(2 * math.pi * x) - math.cos(2 * math.pi * x) ** 2) + 2 * math.sin(2 * math.pi * x)
        expected += float(mu[c]) * (r - v**2 / 2 - math.log(mu[c]))
    assert mdp.reward(mu, actions, mdp.transition(mu, actions)).item() == pytest.approx(expected, abs=1e-12)
    assert mdp.reward(mu, actions, mu.flip(0)).item() == pytest.approx(expected, abs=1e-12)


def test_stationary_reward_tends_to_the_analytic_value() -> None:
    """Per unit of time, in density form, a* earns ln I_0(2) as dt -> 0: the gap halves with dt, and extrapolates to zero."""
    limit = math.log(scipy.special.iv(0, 2))
    assert limit == pytest.approx(0.8240, abs=5e-5)
    earned = []
    for dt in (0.005, 0.0025, 0.00125):
        mdp = SwarmMDP(cells=400, dt=dt, dtype=DTYPE)
        actions = mdp.optimal_actions()
        kernel = mdp.transition(torch.eye(400, dtype=DTYPE), actions)
        # The stationary distribution: mu P = mu, with one redundant equation replaced by total mass one.
        system = kernel.mT - torch.eye(400, dtype=DTYPE)
        system[-1] = 1.0
        mu = torch.linalg.solve(system, torch.eye(400, dtype=DTYPE)[-1])
        assert 0.5 * float((mu - mdp.ergodic()).abs().sum()) < 6 * dt
        earned.append(mdp.reward(mu, actions, mu).item() - math.log(400))
    gaps = [limit - value for value in earned]
    assert gaps[1] / gaps[0] == pytest.approx(0.5, abs=0.02)
    assert gaps[2] / gaps[1] == pytest.approx(0.5, abs=0.02)
    assert 2 * earned[2] - earned[1] == pytest.approx(limit, abs=5e-3)


def test_ergodic_distribution_is_the_analytic_one() -> None:
    """exp(2 sin 2 pi x) / I_0(2) per unit of length, with 0.876 of the largest entropy on 100 cells."""
    mdp = SwarmMDP(dtype=DTYPE)
    x = mdp.centers[:, 0]
    expected = (2 * (2 * math.pi * x).sin()).exp() / (100 * scipy.special.iv(0, 2))
    torch.testing.assert_close(mdp.ergodic(), expected)
    assert entropy_fraction(mdp.ergodic()).item() == pytest.approx(0.876, abs=5e-4)


def test_worlds_name_the_distribution_that_they_want(make_scenario: Callable[..., Scenario]) -> None:
    """The swarm's is the ergodic one at every step, a city's is the demand of the step, and a world need not have one."""
    swarm, city = SwarmMDP(), TaxiMDP(make_scenario(3, steps=2))
    assert torch.equal(swarm.target(), swarm.ergodic()) and torch.equal(swarm.target(3), swarm.ergodic())
    assert torch.equal(city.target(), city.demand(0)) and torch.equal(city.target(1), city.demand(1))
    assert not torch.equal(city.target(0), city.target(1))
    assert MeanFieldMDP.target(swarm) is None


def test_ergodic_policy_breaks_a_tight_entropy_floor_and_meets_a_loose_one() -> None:
    """A floor of 0.95 binds, one of 0.5 does not: at mu* and on the way there."""
    mdp = SwarmMDP(constraints=(EntropyFloor(0.95), EntropyFloor(0.5)), dtype=DTYPE)
    tight, loose = mdp.rollout(Constant(mdp.optimal_actions())).margins.unbind(-1)
    assert tight[-1] < 0 and mdp.margins(mdp.ergodic())[0] < 0
    assert (loose > 0).all() and mdp.margins(mdp.ergodic())[1] > 0


def test_optimal_actions_are_in_units_of_the_speed_and_clipped() -> None:
    """2 pi cos(2 pi x) / max_speed where the swarm is fast enough, +-1 where it is not."""
    fast, slow = SwarmMDP(dtype=DTYPE), SwarmMDP(max_speed=3.0, dtype=DTYPE)
    assert fast.optimal_actions().shape == (100, 1)
    speed = 2 * math.pi * (2 * math.pi * fast.centers).cos()
    torch.testing.assert_close(7.0 * fast.optimal_actions(), speed)
    torch.testing.assert_close(3.0 * slow.optimal_actions(), speed.clamp(-3.0, 3.0))


def test_ergodic_policy_beats_others() -> None:
    """Its return exceeds that of staying put, of half and of opposite actions."""
    mdp = SwarmMDP(dt=0.005, dtype=DTYPE)
    scales = torch.tensor([1.0, 0.5, 0.0, -1.0], dtype=DTYPE).view(-1, 1, 1)
    returns = mdp.rollout(Constant(scales * mdp.optimal_actions())).returns
    assert returns.argmax() == 0


@pytest.mark.parametrize(
    ("constrained", "density_term", "expected"),
    [(False, None, True), (True, None, False), (True, True, True), (False, False, False)],
)
def test_density_term_gives_way_to_a_constraint_unless_asked_for(
    constrained: bool, density_term: bool | None, expected: bool
) -> None:
    """The uniform swarm at rest earns -pi^2, and log K more with the density term."""
    mdp = SwarmMDP(constraints=(EntropyFloor(0.5),) if constrained else (), density_term=density_term, dtype=DTYPE)
    mu = mdp.initial()
    reward = mdp.reward(mu, torch.zeros(100, 1, dtype=DTYPE), mu).item()
    assert reward == pytest.approx(-(math.pi**2) + (math.log(100) if expected else 0.0), abs=1e-9)


@given(
    cells=st.integers(1, 40),
    dt=st.floats(1e-4, 0.5),
    max_speed=st.floats(0.1, 20.0),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_mass_is_conserved(cells: int, dt: float, max_speed: float, dtype: torch.dtype, seed: int) -> None:
    """Whatever the grid, the step and the actions, a distribution stays one."""
    mdp = SwarmMDP(cells=cells, dt=dt, max_speed=max_speed, dtype=dtype)
    mu = distribution(2, cells, seed=seed).to(dtype)
    moved = mdp.transition(mu, (2 * rand(2, cells, 1, seed=seed + 1) - 1).to(dtype))
    assert bool((moved >= 0).all())
    tolerance = 3e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(moved.sum(-1), torch.ones(2, dtype=dtype), rtol=0, atol=tolerance)


def test_batch_is_the_loop_over_its_members() -> None:
    """Distributions and actions batch in leading dimensions, and broadcast against each other."""
    mdp = SwarmMDP(cells=9, dtype=DTYPE)
    mu, actions = distribution(3, 2, 9), 2 * rand(3, 2, 9, 1, seed=1) - 1
    moved, rewards = mdp.transition(mu, actions), mdp.reward(mu, actions, mu)
    shared = mdp.transition(mu, actions[0, 0])
    assert moved.shape == (3, 2, 9) and rewards.shape == (3, 2)
    for b in range(3):
        for c in range(2):
            torch.testing.assert_close(moved[b, c], mdp.transition(mu[b, c], actions[b, c]))
            torch.testing.assert_close(rewards[b, c], mdp.reward(mu[b, c], actions[b, c], mu[b, c]))
            torch.testing.assert_close(shared[b, c], mdp.transition(mu[b, c], actions[0, 0]))
    assert mdp.initial((3, 2)).shape == (3, 2, 9)


def test_single_precision_follows_double_precision() -> None:
    """100 steps in float32 earn the same to six digits, at the same distributions."""
    single, double = SwarmMDP(), SwarmMDP(dtype=DTYPE)
    short, long = (mdp.rollout(Constant(mdp.optimal_actions())) for mdp in (single, double))
    assert short.mu.dtype == torch.float32
    torch.testing.assert_close(short.mu.double(), long.mu, rtol=1e-4, atol=1e-6)
    assert short.returns.item() == pytest.approx(long.returns.item(), rel=1e-5)


def test_gradients_of_transition_and_reward() -> None:
    """gradcheck in the distribution and in the actions, for moves across the seam of the ring too."""
    mdp = SwarmMDP(cells=6, dt=0.1, dtype=DTYPE)
    mu, actions = distribution(6).requires_grad_(), (2 * rand(6, 1, seed=1) - 1).requires_grad_()

    def step(mu: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        moved = mdp.transition(mu, actions)
        return moved, mdp.reward(mu, actions, moved)

    assert torch.autograd.gradcheck(step, (mu, actions))


@pytest.mark.parametrize("turn", [1, 37, 99])
def test_the_ring_has_no_seam(turn: int) -> None:
    """Turning distribution and actions by some cells turns the next distribution by as many."""
    mdp = SwarmMDP(dtype=DTYPE)
    mu, actions = distribution(100), 2 * rand(100, 1, seed=1) - 1
    turned = mdp.transition(mu.roll(turn, -1), actions.roll(turn, -2))
    torch.testing.assert_close(turned, mdp.transition(mu, actions).roll(turn, -1), rtol=0, atol=1e-14)


def test_one_step_of_sampled_particles_follows_the_mean_field() -> None:
    """10^5 particles that start at cell centres land as the transition says (chi-square)."""
    mdp, m = SwarmMDP(dtype=DTYPE), 100_000
    mu, generator = distribution(100), torch.Generator().manual_seed(2)
    cells = torch.multinomial(mu, m, replacement=True, generator=generator)
    actions = 2 * rand(100, 1, seed=1) - 1
    destinations = mdp.motion(mdp.centers[cells], mu, actions[cells])
    counts = mdp.grid.histogram(mdp.noise.sample(destinations, generator)) * m
    expected = mdp.transition(mu, actions) * m
    assert scipy.stats.chisquare(counts.numpy(), expected.numpy() * m / expected.sum().item()).pvalue > 1e-4


def test_sampled_swarm_follows_the_mean_field_for_an_episode() -> None:
    """10^5 particles with continuous positions stay within sampling error of the lifted MDP for 20 steps of a*."""
    mdp, m = SwarmMDP(horizon=20, dtype=DTYPE), 100_000
    path = mdp.rollout(Constant(mdp.optimal_actions()))
    generator = torch.Generator().manual_seed(3)
    positions = torch.rand(m, 1, generator=generator, dtype=DTYPE)
    # Total variation of an empirical distribution of m draws over K cells is about sqrt(K / (2 pi m)) = 0.013.
    for mu, truth in zip(path.mu[:-1], path.mu[1:], strict=True):
        actions = mdp.optimal_actions()[mdp.grid.index(positions)]
        positions = mdp.noise.sample(mdp.motion(positions, mu, actions), generator)
        assert 0.5 * float((mdp.grid.histogram(positions) - truth).abs().sum()) < 0.018


def test_with_motion_keeps_the_noise_and_the_cost_of_speed() -> None:
    """A learned motion may replace the true one; the reward does not change with it."""
    mdp = SwarmMDP(dtype=DTYPE)
    slower = mdp.with_motion(TorusMotion(3.5, 0.01))
    mu, actions = distribution(100), 2 * rand(100, 1, seed=1) - 1
    torch.testing.assert_close(slower.transition(mu, actions), mdp.transition(mu, 0.5 * actions))
    assert torch.equal(slower.reward(mu, actions, mu), mdp.reward(mu, actions, mu))


def test_world_is_a_ring_with_the_noise_of_one_step() -> None:
    """What agents read off a particle world: a one-dimensional grid, one action per cell, noise of variance dt."""
    mdp = SwarmMDP(cells=20, horizon=5, dt=0.04)
    assert (mdp.grid, mdp.action_dim, mdp.horizon) == (Grid(20, 1), 1, 5)
    assert mdp.noise.std == pytest.approx(0.2)
    assert mdp.centers.shape == (20, 1)
    assert "dt=0.04" in repr(mdp)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("cells", 0),
        ("horizon", 0),
        ("dt", 0.0),
        ("dt", -0.01),
        ("dt", math.nan),
        ("max_speed", 0.0),
        ("max_speed", math.inf),
        ("density_term", "yes"),
        ("dtype", torch.int64),
    ],
)
def test_bad_arguments_raise(argument: str, value: object) -> None:
    """Each is refused by name and value."""
    with pytest.raises(ValueError, match=rf"{argument} .*got {value!r}"):
        SwarmMDP(**{argument: value})  # type: ignore[arg-type]


EVEN = [0.01] * 100


@pytest.mark.parametrize(
    "make",
    [
        lambda **fields: RegionCapacity([0], 0.5, size=100, **fields),
        lambda **fields: RegionCoverage([0], 0.5, lipschitz=100.0, **fields),
        lambda **fields: SmoothedEntropyFloor(0.5, 0.1, **fields),
        lambda **fields: DistanceCap(EVEN, 0.2, "tv", **fields),
        lambda **fields: KeepAway(EVEN, 0.2, "kl", **fields),
    ],
)
def test_constraints_for_a_square_are_refused_on_the_ring(make: Callable[..., Any]) -> None:
    """100 cells could be 10 x 10, so a constraint has to say that they are not; and then it is accepted."""
    square, line = make(), make(dimension=1)
    with pytest.raises(ValueError, match=rf"constraints .*dimension=1, got {type(square).__name__}\("):
        SwarmMDP(constraints=(EntropyFloor(0.5), square))
    mdp = SwarmMDP(constraints=(line,))
    assert mdp.margins(mdp.initial((2,))).shape == (2, 1)


@pytest.mark.parametrize("kind", [DistanceCap, KeepAway])
def test_transport_on_the_ring_goes_the_shorter_way(kind: Any) -> None:
    """An interval's Wasserstein-1 is refused; the ring's turns with the swarm."""
    pytest.importorskip("ot")
    with pytest.raises(ValueError, match=rf"constraints .*dimension=1, got {kind.__name__}\("):
        SwarmMDP(constraints=(kind(EVEN, 0.2),))
    with pytest.raises(ValueError, match=rf"constraints in 'w1' .*periodic=True, got {kind.__name__}\("):
        SwarmMDP(constraints=(kind(EVEN, 0.2, dimension=1),))
    mdp = SwarmMDP(constraints=(kind(EVEN, 0.2, dimension=1, periodic=True),), dtype=DTYPE)
    margins = mdp.margins(torch.stack([mdp.ergodic().roll(turn) for turn in (0, 37, 80)]))
    torch.testing.assert_close(margins, margins[:1].expand(3, 1))


def test_constraints_that_do_not_ask_where_cells_are_suit_the_ring() -> None:
    """Entropy floors, and a user's own constraint that names no dimension."""

    class Own:
        name = "own"
        lipschitz = 1.0

        def margin(self, mu: Tensor) -> Tensor:
            return mu[..., 0]

        def convex_margin(self, mu: Any) -> Any:
            return mu[0]

    constraints = (EntropyFloor(0.5), WeightedEntropyFloor([1.0] * 100, 0.5), Own())
    assert SwarmMDP(constraints=constraints).constraints == constraints


def test_score_is_the_share_of_the_analytic_return() -> None:
    """Staying put scores 0, the analytic control 1; a policy may exceed it, for steps and horizon are finite."""
    mdp = SwarmMDP(dtype=DTYPE)
    analytic, stay = mdp.rollout(Constant(mdp.optimal_actions())), mdp.rollout(Constant(torch.zeros(100, 1, dtype=DTYPE)))
    assert possible_return(mdp) == analytic_return(mdp) == pytest.approx(194.09, abs=0.005)
    assert stay_return(mdp) == float(stay.returns)
    assert episode_score(stay, mdp) == 0.0 and episode_score(analytic, mdp) == 1.0
    slower = mdp.rollout(Constant(0.8 * mdp.optimal_actions()))
    assert episode_score(slower, mdp) == pytest.approx((float(slower.returns) - float(stay.returns)) / 720.536, abs=1e-4)


@pytest.mark.parametrize("options", [{"density_term": False}, {"constraints": (EntropyFloor(0.1),)}])
def test_no_score_where_the_best_is_unknown(options: dict[str, Any]) -> None:
    """The analytic control is the best of the unconstrained swarm with its density term, and a yardstick of no other."""
    mdp = SwarmMDP(cells=10, horizon=3, **options)
    executed = mdp.rollout(Constant(mdp.optimal_actions()))
    assert math.isnan(possible_return(mdp)) and math.isnan(episode_score(executed, mdp))
