"""Learned trips: what is believed of them is right, as sure as it claims, and taken into account by the certificate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mf_taxi_env import EntropyFloor, Scenario, SwarmMDP, TaxiMDP
from safe_m3_agent import Config, SafeM3UCRL
from safe_m3_agent.certificate import Certificate, CertificateConfig, Certifier, within
from safe_m3_agent.confidence import student_quantile
from safe_m3_agent.hallucination import HallucinatedMDP
from safe_m3_agent.model.dynamics_model import KnownModel
from safe_m3_agent.model.ensemble import EnsembleConfig, ProbabilisticEnsemble
from safe_m3_agent.model.trip_model import TripConfig, TripModel, make_trip_model
from safe_m3_agent.policy import FieldPolicy
from safe_m3_agent.transitions import Trips

Make = Callable[..., TaxiMDP]


def drawn(world: TaxiMDP, n: int, seed: int = 0, trips: Tensor | None = None) -> Trips:
    """Trips of passengers who start where the demand is."""
    generator = torch.Generator().manual_seed(seed)
    origins = torch.multinomial(world.demand(0), n + 1, replacement=True, generator=generator)[:n]
    matrix = world.trips(0) if trips is None else trips
    assert isinstance(matrix, Tensor)
    return Trips(origins, torch.multinomial(matrix[origins], 1, generator=generator).squeeze(1) if n else origins)


def learned(world: TaxiMDP, n: int, seed: int = 0, config: TripConfig | None = None) -> TripModel:
    """A model that has seen so many trips."""
    model = make_trip_model(config or TripConfig(), world, torch.Generator().manual_seed(seed))
    model.fit(drawn(world, n, seed))
    return model


def members(model: TripModel) -> Tensor:
    """The members' trips, ``[E, K, K]``, about the mode."""
    return model.probabilities(math.sqrt(model.members - 1) * torch.eye(model.members, dtype=model.probabilities().dtype))


def distance(world: TaxiMDP, trips: Tensor) -> float:
    """Total variation from the true trips, of rows weighted by demand."""
    return float(world.demand(0) @ (0.5 * (trips - world.trips(0)).abs().sum(-1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 200])
def test_rows_are_distributions(make_world: Make, dtype: torch.dtype, n: int) -> None:
    """However far an adversary goes, no probability is negative and every row sums to one, before data and after."""
    model = learned(make_world(dtype=dtype), n)
    far = 30.0 * torch.randn(2, 3, model.members, generator=torch.Generator().manual_seed(1), dtype=dtype)
    for trips, shape in ((model.probabilities(), (25, 25)), (model.probabilities(far), (2, 3, 25, 25))):
        assert trips.dtype == dtype and trips.shape == shape
        assert bool((trips >= 0).all())
        torch.testing.assert_close(trips.sum(-1), torch.ones(shape[:-1], dtype=dtype))
    nowhere = torch.zeros(1, model.members, dtype=dtype)
    torch.testing.assert_close(model.probabilities(nowhere)[0], model.probabilities())


@pytest.mark.parametrize("seed", [0, 1])
def test_more_trips_less_error_and_less_doubt(make_world: Make, seed: int) -> None:
    """Mode and members approach the city's trips, and each other."""
    world = make_world(cells=6)
    models = [learned(world, n, seed) for n in (0, 30, 300, 3000)]
    errors = [distance(world, model.probabilities()) for model in models]
    assert errors == sorted(errors, reverse=True) and errors[0] > 0.3 and errors[-1] < 0.06
    doubts = [model.metrics(world)["doubt"] for model in models]
    assert doubts == sorted(doubts, reverse=True) and doubts[0] > 0.2 and doubts[-1] < 0.05
    assert [model.metrics(world)["observed"] for model in models] == [0, 30, 300, 3000]


def test_arrivals_are_learned_where_no_gravity_rules(random_city: Callable[..., Scenario]) -> None:
    """Each row at random: single rows cannot be told, but how many arrive in each cell can, and that is what safety is of."""
    world = TaxiMDP(random_city(3), horizon=3, noise_std=0.1)
    model = learned(world, 20_000)
    assert distance(world, model.probabilities()) > 0.2
    assert model.metrics(world)["error"] < 0.03


def test_a_fit_is_the_posteriors_mode(make_world: Make) -> None:
    """Gradient and curvature are those of the posterior's logarithm, by automatic differentiation; at the mode it is flat."""
    world = make_world(cells=3)
    model = learned(world, 100)
    origins, destinations = model.trips

    def log_posterior(whitened: Tensor) -> Tensor:
        rows = model._logits_of(whitened).log_softmax(-1)
        return rows[origins, destinations].sum() - 0.5 * whitened.square().sum()

    assert float(torch.func.grad(log_posterior)(model._mode).abs().max()) < 1e-3
    model._mode = torch.randn(len(model._mode), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradient, factor = model._curvature()
    torch.testing.assert_close(gradient, torch.func.grad(log_posterior)(model._mode))
    torch.testing.assert_close(-factor @ factor.mT, torch.func.hessian(log_posterior)(model._mode))


def test_trips_in_portions_are_trips_at_once(make_world: Make) -> None:
    """Episode by episode the same posterior is reached as from all trips together."""
    world = make_world()
    trips = drawn(world, 90)
    once, portions = (make_trip_model(TripConfig(), world, torch.Generator().manual_seed(0)) for _ in range(2))
    once.fit(trips)
    for part in range(3):
        portions.fit(Trips(*(values[30 * part : 30 * part + 30] for values in trips)))
    assert torch.equal(once.trips.origins, portions.trips.origins)
    torch.testing.assert_close(portions.probabilities(), once.probabilities(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(members(portions), members(once), atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("n", [20, 400])
def test_doubt_is_as_large_as_errors_are(make_world: Make, n: int) -> None:
    """Of cities drawn from the prior: the standardised error of where passengers arrive is of order one, and in the set."""
    world = make_world(cells=5, dtype=torch.float64)
    scores = []
    for seed in range(40):
        # A member of the prior is a city; the other members know nothing of it.
        city = members(make_trip_model(TripConfig(decay_scale=1.0), world, torch.Generator().manual_seed(1000 + seed)))[0]
        model = make_trip_model(TripConfig(decay_scale=1.0), world, torch.Generator().manual_seed(seed))
        model.fit(drawn(world, n, seed, city))
        east = world.centers[:, 0]
        where = [float(world.demand(0) @ trips @ east) for trips in (city, model.probabilities(), *members(model))]
        scores.append((where[0] - where[1]) / np.std(where[2:], ddof=1))
    assert 0.6 < float(np.sqrt(np.mean(np.square(scores)))) < 1.5
    assert max(map(abs, scores)) < student_quantile(3.5, 20)


def test_state_is_all_that_is_learned(make_world: Make) -> None:
    """Another model that takes over the state believes the same, and goes on the same, bit for bit."""
    world = make_world()
    first = learned(world, 60, seed=1)
    second = make_trip_model(TripConfig(), world, torch.Generator().manual_seed(9))
    second.load_state({name: value.clone() for name, value in first.state().items()})
    for _ in range(2):
        assert torch.equal(members(first), members(second)) and torch.equal(first.probabilities(), second.probabilities())
        for model in (first, second):
            model.fit(drawn(world, 10, seed=5))


def test_worlds_without_such_trips_are_refused(make_scenario_steps: Scenario) -> None:
    """A swarm has no trips; trips that change during the day are not what is learned."""
    generator = torch.Generator()
    with pytest.raises(ValueError, match="needs a world with trips, a TaxiMDP, got a SwarmMDP"):
        make_trip_model(TripConfig(), SwarmMDP(cells=10), generator)
    with pytest.raises(ValueError, match="same at all steps, got a scenario with 2 of them"):
        make_trip_model(TripConfig(), TaxiMDP(make_scenario_steps), generator)


@pytest.fixture
def make_scenario_steps(random_city: Callable[..., Scenario]) -> Scenario:
    """A city whose trips change from the first step to the second."""
    cities = [random_city(seed) for seed in (0, 1)]
    return replace(cities[0], trips=np.stack([np.asarray(city.trips) for city in cities]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 1}, "trips.members must be an integer >= 2, got 1"),
        ({"members": 2.5}, "trips.members must be an integer >= 2, got 2.5"),
        ({"beta": -1.0}, "trips.beta must be a finite number >= 0, got -1.0"),
        ({"beta": math.nan}, "trips.beta must be a finite number >= 0, got nan"),
        ({"attraction_scale": 0.0}, "trips.attraction_scale must be a finite number > 0, got 0.0"),
        ({"decay_scale": math.inf}, "trips.decay_scale must be a finite number > 0, got inf"),
    ],
)
def test_settings_are_validated(options: dict[str, float], message: str) -> None:
    """The message names the setting, what was given and what is allowed."""
    with pytest.raises(ValueError, match=message):
        TripConfig(**options)  # type: ignore[arg-type]


# -- in the learned world -------------------------------------------------------------------------------------------------


def certify(mdp: HallucinatedMDP, policy: FieldPolicy, **options: int) -> Certificate:
    """A certificate without known adversaries."""
    none = mdp.initial().new_zeros(0, mdp.directions)
    return Certifier(CertificateConfig(**options)).certify(mdp, policy, none, torch.Generator().manual_seed(0))


def known_motion(world: TaxiMDP, trips: TripModel | None) -> HallucinatedMDP:
    """The world whose motion is known, so that trips are the only doubt."""
    return HallucinatedMDP(world, KnownModel(world.motion, world.noise.std), 3.5, trips)


def test_each_set_draws_back_its_own_part(make_world: Make) -> None:
    """Of a direction of motion and trips only the part that lies outside of its set is changed."""
    world = make_world()
    ensemble = ProbabilisticEnsemble(EnsembleConfig(members=3), world.grid, world.noise.std, torch.Generator().manual_seed(0))
    mdp = HallucinatedMDP(world, ensemble, 2.0, learned(world, 50, config=TripConfig(members=4, beta=1.5)))
    motion, trips = (radius for _, radius in mdp.doubts)
    z = torch.nn.functional.normalize(torch.randn(2, 7, generator=torch.Generator().manual_seed(0)), dim=-1) * 0.1
    far = z.clone()
    far[0, :3] *= 1e3
    far[1, 3:] *= 1e3
    kept = within(mdp, far)
    assert torch.equal(kept[0, 3:], z[0, 3:]) and torch.equal(kept[1, :3], z[1, :3])
    torch.testing.assert_close(kept[0, :3], motion * torch.nn.functional.normalize(z[0, :3], dim=-1))
    torch.testing.assert_close(kept[1, 3:], trips * torch.nn.functional.normalize(z[1, 3:], dim=-1))


def test_plausible_trips_are_a_batch_of_worlds(make_world: Make) -> None:
    """Directions of motion and trips together, side by side, are the same worlds one by one; zero is the nominal world."""
    world = make_world()
    ensemble = ProbabilisticEnsemble(EnsembleConfig(members=3), world.grid, world.noise.std, torch.Generator().manual_seed(0))
    mdp = HallucinatedMDP(world, ensemble, 2.0, learned(world, 50, config=TripConfig(members=4, beta=1.5)))
    assert (
        mdp.directions == 7 and mdp.doubts == [(3, student_quantile(2.0, 3)), (4, student_quantile(1.5, 4))] and not mdp.exact
    )
    z = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    z[1], z[2, :3] = 0.0, z[0, :3]
    policy, start = FieldPolicy(world), world.initial()
    with torch.no_grad():
        before, together = mdp.shift(start), mdp.plausible(z).rollout(policy)
        for i in range(3):
            torch.testing.assert_close(together.mu[i], mdp.plausible(z[i]).rollout(policy).mu)
        torch.testing.assert_close(together.mu[1], mdp.rollout(policy).mu)
    assert not torch.allclose(together.mu[0, 1], together.mu[2, 1], atol=1e-3)  # other trips, same motion
    assert torch.equal(mdp.shift(start), before)


def test_the_certificate_fears_plausible_trips(make_world: Make) -> None:
    """Safe by the likeliest trips and by the true ones, but not by all that thirty trips leave plausible: refused. The worst
    trips are in their confidence set, as bad as reported, and nothing like them is left after ten thousand trips."""
    world = make_world(cells=6, floor=0.9, horizon=6)
    stay = FieldPolicy(world)
    doubtful, sure = (known_motion(world, learned(world, n)) for n in (30, 10_000))
    with torch.no_grad():
        assert float(world.rollout(stay).worst_margin) > 0.05
        assert float(doubtful.rollout(stay).worst_margin) > 0
    refused = certify(doubtful, stay)
    assert not refused.certified and refused.margin < -0.05
    assert float(refused.z[1:].norm()) == pytest.approx(student_quantile(3.5, 20), rel=1e-5)
    with torch.no_grad():
        assert float(doubtful.plausible(refused.z).rollout(stay).worst_margin) == pytest.approx(refused.margin, abs=1e-5)
    assert certify(sure, stay).certified
    with torch.no_grad():
        assert float(sure.plausible(refused.z).rollout(stay).worst_margin) > 0


def test_the_worst_trips_are_worse_than_any_drawn(make_world: Make) -> None:
    """A thorough search finds no more than two hundred plausible trips from the boundary, and less than the nominal margin."""
    world = make_world(cells=6, floor=0.9, horizon=6)
    mdp, stay = known_motion(world, learned(world, 300)), FieldPolicy(world)
    z = torch.randn(200, mdp.directions, generator=torch.Generator().manual_seed(3))
    z[:, 1:] *= student_quantile(3.5, 20) / z[:, 1:].norm(dim=-1, keepdim=True)
    with torch.no_grad():
        margins = mdp.plausible(z).rollout(stay).worst_margin
        nominal = float(mdp.rollout(stay).worst_margin)
    found = certify(mdp, stay, restarts=6, steps=6).margin
    assert found <= float(margins.min()) + 1e-3 and found < nominal - 0.01


def test_with_true_trips_nothing_changes(make_world: Make) -> None:
    """A world whose trips are given is exact where its motion is, and its directions are the motion's alone."""
    world = make_world()
    mdp = known_motion(world, None)
    assert mdp.exact and mdp.directions == 1 and torch.equal(mdp.shift(world.initial()), world.shift(world.initial()))
    assert not known_motion(world, learned(world, 0)).exact


def test_trips_of_a_swarm_are_refused(make_world: Make) -> None:
    """Only a city carries passengers."""
    swarm = SwarmMDP(cells=10, constraints=[EntropyFloor(0.5)])
    with pytest.raises(ValueError, match="trips can be learned of a TaxiMDP, got a SwarmMDP"):
        HallucinatedMDP(swarm, KnownModel(swarm.motion, swarm.noise.std), 3.5, learned(make_world(), 0))


def test_nothing_learned_can_be_saved(make_world: Make, tiny: Config, tmp_path: Path) -> None:
    """A run that ends before its first episode does leaves a checkpoint, and goes on from it."""
    agent = SafeM3UCRL(make_world(), replace(tiny, learn_trips=True), seed=3)
    agent.save(tmp_path)
    assert SafeM3UCRL.load(tmp_path).learn(1) == agent.learn(1)
