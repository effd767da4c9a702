"""Learned trips doubt as much as the trips that were seen ask for, and no more: none are certified that the prior made up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mf_taxi_env import TaxiMDP
from safe_m3_agent import Config, SafeM3UCRL
from safe_m3_agent.certificate import Certificate, Certifier
from safe_m3_agent.confidence import student_quantile
from safe_m3_agent.hallucination import HallucinatedMDP
from safe_m3_agent.model.trip_calibration import FACTORS, TripCalibration
from safe_m3_agent.model.trip_model import TripConfig, TripModel, make_trip_model
from safe_m3_agent.transitions import Trips

#: A prior by which all cells are alike and distance does not matter.
SURE = TripConfig(attraction_scale=0.01, demand_scale=0.01, decay_scale=0.01)
#: A prior from which cities can be drawn that are neither.
FAIR = TripConfig(decay_scale=1.0)


def calibration() -> TripCalibration:
    """Of an agent with six steps and ``delta = 0.1``."""
    return TripCalibration(quantile=2.64, delta=0.1)


def drawn(world: TaxiMDP, n: int, seed: int, trips: Tensor) -> Trips:
    """Trips of passengers who start where the demand is."""
    generator = torch.Generator().manual_seed(seed)
    origins = torch.multinomial(world.demand(0), n, replacement=True, generator=generator)
    return Trips(origins, torch.multinomial(trips[origins], 1, generator=generator).squeeze(1))


def members(model: TripModel) -> Tensor:
    """The members' trips, ``[E, K, K]``, about the mode."""
    return model.probabilities(math.sqrt(model.members - 1) * torch.eye(model.members, dtype=model.probabilities().dtype))


def city_of_the_prior(world: TaxiMDP, seed: int) -> Tensor:
    """Trips that the fair prior holds for possible, ``[K, K]``."""
    return members(make_trip_model(FAIR, world, torch.Generator().manual_seed(1000 + seed)))[0]


def learned(world: TaxiMDP, n: int, seed: int, config: TripConfig, trips: Tensor, calibrated: bool = True) -> TripModel:
    """A model that has seen so many trips."""
    judge = calibration() if calibrated else None
    model = make_trip_model(config, world, torch.Generator().manual_seed(seed), judge)
    model.fit(drawn(world, n, seed, trips))
    return model


def off(world: TaxiMDP, model: TripModel, trips: Tensor) -> float:
    """Error of where passengers arrive, east and north, in standard deviations that the members give; the larger one."""
    where = torch.stack([world.demand(0) @ some @ world.centers for some in (trips, model.probabilities(), *members(model))])
    return float(((where[0] - where[1]) / where[2:].std(0)).abs().max())


# -- the factor -----------------------------------------------------------------------------------------------------------


def peak(at: float, height: float) -> Callable[[float], float]:
    """Evidence that falls by ``height`` nats from a factor to 1, quadratic in the factor's logarithm."""
    return lambda tau: -height * (math.log(tau / at) / math.log(at)) ** 2


def test_the_factor_is_the_widest_of_those_that_explain_the_trips() -> None:
    """Not the best: one that is as good and wider costs little, one too narrow may cost safety."""
    tau = calibration().factor(peak(FACTORS[8], 50.0))
    assert tau in (FACTORS[9], FACTORS[10])


def test_what_explains_trips_little_better_is_chance() -> None:
    """As long as the gain is below the level's, the prior stays as it is configured; then it does not."""
    for better, believed in ((0.7, True), (0.9, False)):
        evidence = {1.0: 0.0, 1.5: better, FACTORS[2]: -1.5}
        assert (calibration().factor(lambda tau, found=evidence: found.get(tau, -20.0)) == 1.0) == believed  # type: ignore[misc]


def test_a_prior_that_nothing_spoke_for_is_not_believed() -> None:
    """Where wide priors are as good, trips have not had their say; without any trip the widest is gone by."""
    assert calibration().factor(lambda tau: 0.0) == FACTORS[-1]
    assert calibration().factor(lambda tau: -1.0 * math.log(tau)) > 5.0
    assert calibration().factor(lambda tau: -2.0 * math.log(tau)) == 1.0


def test_no_more_priors_are_tried_than_needed() -> None:
    """A fit costs: once the evidence has fallen far nobody looks further."""
    asked: list[float] = []
    calibration().factor(lambda tau: asked.append(tau) or -10.0 * math.log(tau))  # type: ignore[func-returns-value]
    assert asked == list(FACTORS[:3])


def test_the_width_is_never_less_than_the_level_asks_for() -> None:
    """What a user set is the least width, and the level's quantile is, too."""
    assert calibration().width(0.01) == 2.64 and calibration().width(3.5) == 3.5


# -- of trips -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, FACTORS[3]])
def test_the_evidence_is_that_of_the_trips(make_world: Callable[..., TaxiMDP], tau: float) -> None:
    """Laplace's is the mean, over parameters drawn from the prior of that factor, of how probable they make the trips."""
    world = make_world(cells=3, dtype=torch.float64)
    config = TripConfig(attraction_scale=0.3, demand_scale=0.3, decay_scale=0.3)
    model = learned(world, 10, 0, config, torch.as_tensor(world.trips(0)), calibrated=False)
    model.tau = tau
    found = model._log_evidence(model._to_the_mode()[1])
    whitened = tau * torch.randn(20_000, len(model._mode), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameters = model._parameters(whitened)
    rows = (parameters[:, None, :9] + (parameters[:, 9:] @ model._distance.flatten(1)).view(-1, 9, 9)).log_softmax(-1)
    probable = rows[:, model.trips.origins, model.trips.destinations].sum(-1)
    assert found == pytest.approx(float(probable.logsumexp(0)) - math.log(20_000), abs=0.15)


def test_a_right_prior_is_left_as_it_is(make_world: Callable[..., TaxiMDP]) -> None:
    """Of cities drawn from the prior: in nearly all of 60 fits the factor is 1."""
    world = make_world(dtype=torch.float64)
    taus = []
    for seed in range(20):
        trips = city_of_the_prior(world, seed)
        taus += [learned(world, n, seed, FAIR, trips).tau for n in (50, 100, 200)]
    assert np.mean(np.asarray(taus) > 1.0) <= 0.15 and max(taus) < 4.0


def test_a_right_prior_that_is_left_changes_nothing(make_world: Callable[..., TaxiMDP]) -> None:
    """The posterior is that without calibration, to the last bit."""
    world = make_world()
    models = [learned(world, 100, 0, TripConfig(), torch.as_tensor(world.trips(0)), calibrated) for calibrated in (True, False)]
    assert models[0].tau == 1.0 and torch.equal(members(models[0]), members(models[1]))


@pytest.mark.parametrize("n", [12, 50])
def test_a_prior_that_is_sure_without_reason_is_found_out(make_world: Callable[..., TaxiMDP], n: int) -> None:
    """A dozen trips are enough: the factor is about the hundred that is missing, and the truth in the set where it was not."""
    world = make_world(dtype=torch.float64)
    scores, plain = [], []
    for seed in range(10):
        trips = city_of_the_prior(world, seed)
        model = learned(world, n, seed, SURE, trips)
        assert 20.0 < model.tau < 700.0
        scores.append(off(world, model, trips))
        plain.append(off(world, learned(world, n, seed, SURE, trips, calibrated=False), trips))
    radius = student_quantile(3.5, 20)
    assert np.mean(np.asarray(scores) < radius) >= 0.9
    assert np.mean(np.asarray(plain) < radius) <= 0.2


def test_the_factor_is_part_of_what_is_learned(make_world: Callable[..., TaxiMDP]) -> None:
    """A model that takes over the state of one with a wide prior goes on with it, bit for bit."""
    world = make_world()
    trips = torch.as_tensor(world.trips(0))
    first = learned(world, 60, 1, SURE, trips)
    second = make_trip_model(SURE, world, torch.Generator().manual_seed(9), calibration())
    second.load_state({name: value.clone() for name, value in first.state().items()})
    assert second.tau == first.tau > 1.0
    for model in (first, second):
        model.fit(drawn(world, 10, 5, trips))
    assert all(torch.equal(first.state()[name], value) for name, value in second.state().items())


# -- in the agent ---------------------------------------------------------------------------------------------------------


def test_the_agent_says_and_uses_the_width(world: TaxiMDP, tiny: Config) -> None:
    """The level's from the first episode on, with a known motion as well; what was set where calibration is not asked for."""
    settings = replace(tiny, learn_trips=True, trips=TripConfig(members=3, beta=0.01))
    for config in (settings, replace(settings, model="known")):
        agent = SafeM3UCRL(world, config)
        assert agent.trips is not None and agent.trips.beta == agent.calibration.quantile == agent.trip_metrics["beta"]
        agent.learn(1)
        assert agent.trip_metrics["tau"] == agent.trips.tau
    for config in (
        replace(settings, calibrate=False),
        replace(settings, constrained=False),
        replace(settings, certified=False),
    ):
        agent = SafeM3UCRL(world, config)
        agent.learn(1)
        assert agent.trip_metrics["beta"] == 0.01 and agent.trip_metrics["tau"] == 1.0


def test_a_withdrawal_widens_the_set_of_trips(world: TaxiMDP, tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the truth has refuted a certificate, certificates go by trips of twice the level's width as well."""
    agent = SafeM3UCRL(world, replace(tiny, learn_trips=True, calibrate=False, trips=TripConfig(members=3, beta=0.01)))
    agent._trust.refuted = 1
    seen, screen = [], Certifier.screen

    def spy(self: Certifier, mdp: HallucinatedMDP, *arguments: Any) -> Certificate:
        seen.append(mdp.doubts[1][1])
        return screen(self, mdp, *arguments)

    monkeypatch.setattr(Certifier, "screen", spy)
    agent.learn(2)
    assert seen and seen == pytest.approx([2 * student_quantile(agent.calibration.quantile, 3)] * len(seen))
    assert agent.trip_metrics["beta"] == 2 * agent.calibration.quantile


@pytest.mark.filterwarnings("ignore:the policy certified for episode")
@pytest.mark.parametrize(("trips", "least"), [(TripConfig(beta=0.01), 1), (SURE, 3)])
def test_trips_that_are_made_up_are_not_executed(make_world: Callable[..., TaxiMDP], trips: TripConfig, least: int) -> None:
    """One taxi, a floor of 0.92: who trusts the mode, or such a prior, leaves the floor; with calibration nobody does."""
    world = make_world(floor=0.92, horizon=6)
    config = Config(learn_trips=True, model="known", trips=trips, anew=0.0)
    trusting = [SafeM3UCRL(world, replace(config, calibrate=False), seed=seed).learn(3) for seed in range(3)]
    assert sum(history.violations for history in trusting) >= least
    assert [SafeM3UCRL(world, config, seed=seed).learn(3).violations for seed in range(3)] == [0, 0, 0]


def test_a_sure_prior_ends_with_a_certificate(make_world: Callable[..., TaxiMDP]) -> None:
    """Doubt that trips have dispelled is gone: ten taxis later the fleet moves, and safely."""
    world = make_world(floor=0.92, horizon=6)
    config = Config(learn_trips=True, model="known", trips=SURE, representative_agents=10, anew=0.0)
    history = SafeM3UCRL(world, config, seed=0).learn(4)
    assert any(history.column("certified")) and history[-1].score > 0.1
    assert history.violations == 0
