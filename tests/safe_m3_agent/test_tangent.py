"""The linearised motion: equal to the model on its trajectory, wrong to second order beside it, and known for what it is."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mf_taxi_env import CongestedMotion, EntropyFloor, Scenario, SwarmMDP, TaxiMDP
from mf_taxi_env.mdp import Field, Trajectory
from safe_m3_agent.certificate import CertificateConfig, Certifier
from safe_m3_agent.hallucination import HallucinatedField, HallucinatedMDP
from safe_m3_agent.model.dynamics_model import Belief, KnownModel
from safe_m3_agent.model.gaussian_process import GaussianProcess, GPConfig
from safe_m3_agent.model.trip_model import TripConfig, make_trip_model
from safe_m3_agent.planners.bptt import BPTTConfig, BPTTPlanner
from safe_m3_agent.policy import FieldPolicy, NetworkPolicy
from safe_m3_agent.tangent import applied
from safe_m3_agent.tightening import LipschitzConfig
from safe_m3_agent.transitions import Transitions

Roam = Callable[..., tuple[Transitions, Tensor]]


@pytest.fixture(scope="module")
def learned(make_world: Callable[..., TaxiMDP], roam: Roam) -> HallucinatedMDP:
    """A world in double precision, with a process that has seen eighty moves of a congested motion."""
    world, generator = make_world(dtype=torch.float64), torch.Generator().manual_seed(0)
    process = GaussianProcess(GPConfig(members=4, features=32), world.grid, world.noise.std, generator, dtype=torch.float64)
    seen, _ = roam(CongestedMotion(world.grid), 80, 0, grid=world.grid, noise_std=world.noise.std)
    process.fit(Transitions(*(part.double() if part.is_floating_point() else part for part in seen)), generator)
    return HallucinatedMDP(world, process, beta=2.0)


def wandering(mdp: HallucinatedMDP, scale: float = 0.3, seed: int = 1, steps: int = 1) -> FieldPolicy:
    """A policy with random actions."""
    policy = FieldPolicy(mdp, steps)
    with torch.no_grad():
        policy.logits += scale * torch.randn(
            policy.logits.shape, generator=torch.Generator().manual_seed(seed), dtype=mdp.dtype
        )
    return policy


def apart(a: Trajectory, b: Trajectory) -> float:
    """Largest difference of two trajectories, in anything."""
    return max(float((x - y).detach().abs().max()) for x, y in zip(a, b, strict=True) if x.numel())


def directions(mdp: HallucinatedMDP, n: int, scale: float = 1.0) -> Tensor:
    """Random directions of plausible motions."""
    generator = torch.Generator().manual_seed(3)
    return scale * torch.randn(n, mdp.directions, generator=generator, dtype=mdp.dtype)


@pytest.mark.parametrize("steps", [1, 3])
def test_on_its_trajectory_it_is_the_model(learned: HallucinatedMDP, steps: int) -> None:
    """There the whole episode is the model's: distributions, rewards, margins and doubt."""
    policy = wandering(learned, steps=steps)
    assert apart(learned.near(policy).rollout(policy), learned.rollout(policy)) < 1e-12


def test_for_a_policy_that_sees_the_distribution(learned: HallucinatedMDP) -> None:
    """The trajectory is the one that the policy's own answers lead to."""
    policy = NetworkPolicy(learned, (8, 8), torch.Generator().manual_seed(0))
    with torch.no_grad():
        policy.network(0).out.weight.normal_(generator=torch.Generator().manual_seed(1))
        assert apart(learned.near(policy).rollout(policy), learned.rollout(policy)) < 1e-12


def test_beside_it_the_error_is_of_second_order(learned: HallucinatedMDP) -> None:
    """A quarter of the distance gives much less than a quarter of the error, for mean, doubt and plausible motions."""
    policy = wandering(learned)
    near, z, away = learned.near(policy), directions(learned, 3, 0.1), wandering(learned, 1.0, seed=2).logits
    errors = []
    for distance in (0.4, 0.1):
        other = wandering(learned)
        with torch.no_grad():
            other.logits += distance * away
            hallucinated = HallucinatedField(other, torch.full((learned.grid.size, 2), 0.5 * distance, dtype=learned.dtype))
            plausible = apart(near.plausible(distance * z).rollout(other), learned.plausible(distance * z).rollout(other))
            errors.append((apart(near.rollout(hallucinated), learned.rollout(hallucinated)), plausible))
    for coarse, fine in zip(*errors, strict=True):
        assert 1e-6 < fine < 0.13 * coarse  # a sixteenth, and what the difference quotient is itself off by


def test_its_slope_is_the_models(learned: HallucinatedMDP) -> None:
    """The gradient that a planner follows: of returns, margins and doubt, in actions and hallucinated control."""
    policy = wandering(learned)
    slopes = []
    for world in (learned, learned.near(policy)):
        eta = torch.full((learned.grid.size, 2), 0.1, dtype=learned.dtype, requires_grad=True)
        trajectory = world.plausible(directions(learned, 2, 0.1)).rollout(HallucinatedField(policy, eta))
        total = trajectory.returns.sum() + trajectory.margins.sum() + trajectory.uncertainty.sum()
        slopes.append(torch.autograd.grad(total, [policy.logits, eta]))
    for exact, linear in zip(*slopes, strict=True):
        # At single cells, where some member is just stopped by the edge, they may differ.
        assert float((linear - exact).norm()) < 0.03 * float(exact.norm())


def test_a_world_serves_more_than_once(learned: HallucinatedMDP) -> None:
    """What it keeps of its motion is neither of another direction nor without the slope, or with a spent graph, in its own."""
    policy, other, z = wandering(learned), wandering(learned, seed=5), directions(learned, 2).requires_grad_()
    near = learned.near(policy)
    with torch.no_grad():
        near.rollout(policy)  # keeps the nominal motion
        world = near.plausible(z)
        found = world.rollout(policy).margins
    slopes = [torch.autograd.grad(world.rollout(policy).margins.sum(), z)[0] for _ in range(2)]
    assert torch.equal(slopes[0], slopes[1]) and bool(slopes[0].any())
    with torch.no_grad():
        again = learned.near(policy).plausible(z.detach()).rollout(policy).margins
        elsewhere, alone = (
            near.plausible(-z).rollout(policy).margins,
            learned.near(policy).plausible(-z).rollout(policy).margins,
        )
        nominal, renewed = learned.rollout(other), near.near(other).rollout(other)
    assert torch.equal(found, again) and torch.equal(elsewhere, alone) and not torch.allclose(found, elsewhere)
    assert apart(nominal, renewed) < 1e-12


def test_the_doubt_is_that_of_the_linearised_members(learned: HallucinatedMDP) -> None:
    """Beside the trajectory, too, the squares of the members' deviations sum to the epistemic variance."""
    policy, other = wandering(learned), wandering(learned, 0.5, seed=2)
    near, mu = learned.near(policy), learned.shift(learned.initial())
    [tangent, *_] = near._tangent or []
    away = tangent.away(learned.grid, mu, other.field(mu, 0).detach())
    each = torch.stack([tangent.among(z) - tangent.mean for z in torch.eye(learned.model.members, dtype=learned.dtype)])
    deviations = each[:, 0] + sum(each[:, i] * x for i, x in enumerate(away, start=1))
    torch.testing.assert_close(tangent.epistemic(away), deviations.square().sum(0).clamp_min(1e-12).sqrt().mT)


def test_every_part_is_right_to_first_order(learned: HallucinatedMDP) -> None:
    """Destinations, each member's deviation and the doubt beside the trajectory: errors fall with the distance squared."""
    policy, other = wandering(learned), wandering(learned, 1.0, seed=2)
    mu = learned.shift(learned.initial())
    [tangent, *_], errors = learned.near(policy)._tangent or [], []
    with torch.no_grad():
        actions = policy.field(mu, 0)
        for distance in (0.2, 0.05):
            beside, moved = actions + distance * (other.field(mu, 0) - actions), (1.0 - distance) * mu + distance * mu.flip(-1)
            belief = learned.model.predict(learned._world.centers, moved, beside)
            away = tangent.away(learned.grid, moved, beside)
            z = torch.eye(learned.model.members, dtype=learned.dtype)
            mean = applied(tangent.mean, away)
            pairs = (
                (mean, belief.mean),
                (applied(tangent.among(z), away) - mean, belief.deviations),
                (tangent.epistemic(away), belief.epistemic),
            )
            # Of the median cell: where the edge stops a member there is a kink.
            errors.append([float((linear - exact).abs().median()) for linear, exact in pairs])
    for coarse, fine in zip(*errors, strict=True):
        assert 1e-7 < fine < 0.13 * coarse


class Believed(KnownModel):
    """The true motion, of which a model that doubts nothing is not told that it is true."""

    exact = False
    members = 2

    def predict(self, positions: Tensor, mu: Tensor, actions: Tensor) -> Belief:
        belief = super().predict(positions, mu, actions)
        least = torch.full_like(actions, 1e-6)  # as of members that agree
        return belief._replace(epistemic=least, deviations=actions.new_zeros(2, *actions.shape))


def test_across_the_seam_of_a_ring() -> None:
    """Destinations on both sides of 0 are neighbours: slopes there are not those of a jump round the ring."""
    world = SwarmMDP(cells=20, horizon=2, dtype=torch.float64)
    learned = HallucinatedMDP(world, Believed(world.motion, world.noise.std), 1.0)
    a_move = float(world.motion(world.centers, world.initial(), torch.ones_like(world.centers))[0] - world.centers[0])
    for rest in (1e-4 * a_move, -1e-4 * a_move):  # just this side of 0 from the last cell, or from the first one
        policy = FieldPolicy(learned)
        with torch.no_grad():
            policy.logits += math.copysign(0.025 / a_move, rest) - rest / a_move
            policy.logits.copy_(policy.logits.atanh())
        tangents = learned.near(policy)._tangent or []
        for tangent in tangents:
            assert abs(float(tangent.mean[0, 0, -1 if rest > 0 else 0]) - 0.5) > 0.499  # a step of a quotient crosses 0
            torch.testing.assert_close(tangent.mean[1], torch.full_like(tangent.mean[1], a_move))
            assert float(tangent.mean[2].abs().max()) < 1e-9
        assert len(tangents) == 2 and apart(learned.near(policy).rollout(policy), learned.rollout(policy)) < 1e-12


def test_demand_that_changes_with_time(random_city: Callable[..., Scenario]) -> None:
    """Every step's motion is linearised about where that step's passengers leave the fleet."""
    city = random_city(0)
    demand = np.stack([city.demand, np.roll(city.demand, 7), np.roll(city.demand, 11)])
    city = Scenario(city.name, demand, city.trips, box=city.box, entropy_floor=0.5)
    world = TaxiMDP(city, horizon=3, noise_std=0.1, motion="congested", dtype=torch.float64)
    learned = HallucinatedMDP(world, Believed(world.motion, world.noise.std), 1.0)
    policy = wandering(learned, steps=3)
    near = learned.near(HallucinatedField(policy, torch.ones(learned.grid.size, 2, dtype=learned.dtype)))  # eta is left aside
    assert apart(near.rollout(policy), learned.rollout(policy)) < 1e-12


def test_what_is_known_is_not_linearised(world: TaxiMDP) -> None:
    """A known motion may look at the whole distribution, and costs nothing anyway."""
    for trips in (None, make_trip_model(TripConfig(members=3), world, torch.Generator().manual_seed(1))):
        known = HallucinatedMDP(world, KnownModel(world.motion, world.noise.std), 1.0, trips)
        assert known.near(wandering(known)) is known


def test_learned_trips_and_lemma_2_stay_what_they_were(world: TaxiMDP) -> None:
    """Only the motion is linearised: where that is linear the episode is the same, far from the trajectory, too."""
    trips = make_trip_model(TripConfig(members=3), world, torch.Generator().manual_seed(1))
    learned = HallucinatedMDP(world, Believed(world.motion, world.noise.std), 1.0, trips).with_lemma2(LipschitzConfig())
    policy, z = wandering(learned, 0.1), directions(learned, 2)
    with torch.no_grad():
        near, exact = learned.near(policy).plausible(z).rollout(policy), learned.plausible(z).rollout(policy)
    assert torch.equal(near.uncertainty, exact.uncertainty)
    torch.testing.assert_close(near.mu, exact.mu, atol=1e-5, rtol=1e-4)
    assert float((exact.mu[0] - exact.mu[1]).abs().max()) > 1e-3


def test_a_screen_is_of_the_model_itself(learned: HallucinatedMDP) -> None:
    """The search goes by the linearised motion; the margin that decides is the model's, of the worst motion found."""
    policy, none = wandering(learned, 0.5), torch.zeros(0, learned.directions, dtype=learned.dtype)
    found = Certifier(CertificateConfig()).screen(learned, policy, none, torch.Generator().manual_seed(0))
    with torch.no_grad():
        margin = float(learned.plausible(found.z).rollout(policy).worst_margin)
        nominal = float(learned.rollout(policy).worst_margin)
    assert found.margin == pytest.approx(margin, abs=1e-9) and margin < nominal


class Raised(EntropyFloor):
    """A floor that lies higher by so many nats."""

    by = 0.0

    def margin(self, mu: Tensor) -> Tensor:
        return super().margin(mu) - self.by


def test_a_certificate_owes_nothing_to_the_tangent(learned: HallucinatedMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """A linearised motion that points the wrong way lets an unsafe policy pass the screen, and gets it no certificate."""
    policy, none = wandering(learned, 0.5), torch.zeros(0, learned.directions, dtype=learned.dtype)
    tight, floor, near = copy.copy(learned), Raised(0.8), HallucinatedMDP.near
    with torch.no_grad():
        floor.by = float(learned.rollout(policy).worst_margin) - 0.1
    tight.constraints = (floor,)

    def misled(self: HallucinatedMDP, policy: Field) -> HallucinatedMDP:
        world = near(self, policy)
        world._tangent = [step._replace(deviations=-step.deviations) for step in world._tangent or []]
        return world

    monkeypatch.setattr(HallucinatedMDP, "near", misled)
    certifier, arguments = Certifier(CertificateConfig(restarts=1)), (tight, policy, none)
    certificate = certifier.certify(*arguments, torch.Generator().manual_seed(0))
    screened = certifier.screen(*arguments, torch.Generator().manual_seed(0))
    assert certificate.margin < 0 and certificate.margin < screened.margin


@pytest.mark.parametrize("renewal", [1, 4])
def test_plans_in_the_linearised_motion_are_as_good(learned: HallucinatedMDP, renewal: int) -> None:
    """Renewed at every step or every few, it leads a planner to what the model itself leads it to."""
    start, none = FieldPolicy(learned), torch.zeros(0, learned.directions, dtype=learned.dtype)
    returns = []
    for every in (0, renewal):
        plan = BPTTPlanner(BPTTConfig(epochs=12, learning_rate=0.05, renewal=every), 0.01).plan(
            learned, start, weight=0.01, adversaries=none, optimistic=False, generator=torch.Generator()
        )
        with torch.no_grad():
            returns.append(float(learned.rollout(plan.policy).returns))
    with torch.no_grad():
        gained = returns[0] - float(learned.rollout(start).returns)
    assert gained > 0.1 and returns[1] == pytest.approx(returns[0], abs=0.02 * gained)


@pytest.mark.parametrize(("renewal", "taken"), [(0, 0), (1, 12), (5, 3), (12, 1)])
def test_the_tangent_is_renewed(learned: HallucinatedMDP, monkeypatch: pytest.MonkeyPatch, renewal: int, taken: int) -> None:
    """Every so many steps, and never where plans are made in the model itself."""
    near, asked = HallucinatedMDP.near, []

    def counted(self: HallucinatedMDP, policy: Field) -> HallucinatedMDP:
        asked.append(policy)
        return near(self, policy)

    monkeypatch.setattr(HallucinatedMDP, "near", counted)
    none = torch.zeros(0, learned.directions, dtype=learned.dtype)
    BPTTPlanner(BPTTConfig(epochs=12, renewal=renewal), 0.01).plan(
        learned, FieldPolicy(learned), weight=0.01, adversaries=none, optimistic=True, generator=torch.Generator()
    )
    assert len(asked) == taken
