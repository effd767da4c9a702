"""What peers know of the motion: what representative taxis saw, counted as executed episodes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from baselines import FluidLP, GreedyTransport, Proportional, RollingLP, Stay
from baselines.aiming import AimedPolicy
from baselines.belief import BARRIERS, BelievedMotion, MotionStudy, with_least_barrier
from mf_taxi_env import CongestedMotion, EntropyFloor, Grid, TaxiMDP, load_scenario
from mf_taxi_env.bound import InfeasibleError, NoBoundError
from safe_m3_agent import Config
from safe_m3_agent.model.ensemble import EnsembleConfig

QUICK = Config(representative_agents=8, ensemble=EnsembleConfig(members=4, hidden=(4, 4), steps=20))


def town(floor: float = 0.8, **options: object) -> TaxiMDP:
    """A small Shenzhen."""
    given: dict[str, object] = {"constraints": [EntropyFloor(floor)], "horizon": 6, "noise_std": 0.03}
    return TaxiMDP(load_scenario("shenzhen", cells=5), **{**given, **options})  # type: ignore[arg-type]


def believed(study: MotionStudy) -> BelievedMotion:
    """What the study has learned so far."""
    return BelievedMotion(study.world().model)


def error(study: MotionStudy, mdp: TaxiMDP) -> float:
    """Mean distance between true and believed destinations, for random actions from all cells."""
    actions = 2 * torch.rand(25, 2, generator=torch.Generator().manual_seed(0)) - 1
    mu = mdp.shift(mdp.initial())
    there, truth = (motion(mdp.centers, mu, actions) for motion in (believed(study), mdp.motion))
    return float((there - truth).norm(dim=-1).mean())


def test_motion_is_learned_from_what_taxis_see() -> None:
    """More episodes, less error, of a motion that is not the default; what was believed before stays what it was."""
    mdp = town(motion=CongestedMotion(Grid(5), 0.5))
    study = MotionStudy(mdp, 0, QUICK)
    study.episode()
    first, belief = error(study, mdp), believed(study)
    actions = torch.full((25, 2), 0.3)
    before = belief(mdp.centers, mdp.initial(), actions)
    for _ in range(7):
        study.episode()
    torch.testing.assert_close(belief(mdp.centers, mdp.initial(), actions), before, rtol=0, atol=0)
    assert error(study, mdp) < min(0.5 * first, 0.05)


def test_steps_episodes_and_violations_are_counted() -> None:
    """Staying put is executed every time: where it violates a constraint, every episode does."""
    for floor, violated in ((0.8, 0), (0.999, 2)):
        mdp = town(floor)
        assert bool(mdp.rollout(Stay(mdp)).violations > 0) == bool(violated)
        study = MotionStudy(mdp, 0, QUICK)
        assert (study.env_steps, study.episodes, study.violated) == (0, 0, 0)
        study.episode()
        study.episode()
        assert (study.env_steps, study.episodes, study.violated) == (12, 2, violated)


def test_a_study_is_its_seed() -> None:
    """The same seed, the same belief; another seed, another."""
    mdp = town()
    beliefs = []
    for seed in (1, 1, 2):
        study = MotionStudy(mdp, seed, QUICK)
        study.episode()
        beliefs.append(believed(study)(mdp.centers, mdp.initial(), torch.full((25, 2), 0.2)))
    torch.testing.assert_close(beliefs[0], beliefs[1], rtol=0, atol=0)
    assert not torch.allclose(beliefs[0], beliefs[2])


def test_what_is_known_of_the_city_is_not_its_motion() -> None:
    """There is no way from there to the truth."""
    study = MotionStudy(town(), 0, QUICK)
    with pytest.raises(RuntimeError, match="the true motion is not known"):
        study.known.transition(study.known.initial(), torch.zeros(25, 2))


def test_a_belief_is_a_motion() -> None:
    """Batches of distributions and of actions, as of every motion; destinations in the city."""
    mdp = town()
    study = MotionStudy(mdp, 0, QUICK)
    study.episode()
    mu, actions = mdp.initial((2, 3)), torch.full((2, 3, 25, 2), 0.9)
    there: Tensor = believed(study)(mdp.centers, mu, actions)
    assert there.shape == (2, 3, 25, 2)
    assert bool(((there >= 0) & (there <= 1)).all())


@dataclass
class Leaning:
    """Moves everyone by less, the larger the barrier."""

    barrier: float

    def field(self, mu: Tensor, t: int) -> Tensor:
        return mu.new_full((*mu.shape, 2), 0.6 / (1.0 + 100.0 * self.barrier))


def test_the_least_barrier_that_is_safe_is_taken() -> None:
    """The first of the list whose episode keeps the constraints, as an exhaustive search finds it; none where none does."""
    mdp = town(0.6)
    safe = [float(mdp.rollout(Leaning(barrier)).worst_margin) >= 0 for barrier in BARRIERS]
    assert 0 < safe.index(True) < len(BARRIERS) - 1
    found = with_least_barrier(Leaning, mdp)
    assert found is not None and found.barrier == BARRIERS[safe.index(True)]
    assert with_least_barrier(Leaning, town(0.999)) is None
    anything = with_least_barrier(Leaning, TaxiMDP(mdp.scenario, constraints=[]))
    assert anything is not None and anything.barrier == 0.0


@dataclass
class Narrow:
    """Stays put at two barriers of the list, and moves everyone at all others."""

    barrier: float

    def field(self, mu: Tensor, t: int) -> Tensor:
        return mu.new_full((*mu.shape, 2), 0.0 if self.barrier in (BARRIERS[1], BARRIERS[2]) else 0.6)


def test_a_barrier_that_bisection_misses_is_found() -> None:
    """Margins need not grow with the barrier; the least that is safe is among those that are looked at then."""
    found = with_least_barrier(Narrow, town(0.6))
    assert found is not None and found.barrier == BARRIERS[1]


def test_doubt_asks_for_more_barrier() -> None:
    """In a learned world a policy has to keep the constraints in all plausible motions, not in the mean of them alone."""
    mdp = town(0.6)
    study = MotionStudy(mdp, 0, QUICK)
    for _ in range(3):
        study.episode()
    world = study.world()
    sure, unsure = with_least_barrier(Leaning, mdp), with_least_barrier(Leaning, world)
    assert sure is not None and unsure is not None and unsure.barrier > sure.barrier
    members, radius = world.doubts[0]
    z = torch.nn.functional.normalize(torch.randn(100, members, generator=torch.Generator().manual_seed(1)), dim=-1)
    with torch.no_grad():
        assert float(world.rollout(Leaning(sure.barrier)).worst_margin) >= 0  # in the mean it would do
        assert float(world.plausible(radius * z).rollout(unsure).worst_margin.min()) >= 0


def test_moves_of_full_size_are_judged() -> None:
    """Of size 1, as steering may ask for: in a learned world, too, that is an answer and no error."""
    study = MotionStudy(town(0.2), 0, QUICK)
    for _ in range(3):
        study.episode()

    class Cornered:
        def field(self, mu: Tensor, t: int) -> Tensor:
            actions = mu.new_zeros(*mu.shape, 2)
            actions[..., -1, :] = 1.0  # the last cell, where nobody can go further: as safe as staying put
            return actions

    assert isinstance(with_least_barrier(lambda barrier: Cornered(), study.world()), Cornered)


@pytest.mark.parametrize("make", [Proportional, GreedyTransport, FluidLP, RollingLP])
def test_a_barrier_makes_it_safe(make: type[AimedPolicy]) -> None:
    """On a city where aiming at the very edge of the constraints would violate them, as most would."""
    mdp = TaxiMDP(load_scenario("shenzhen", cells=6))
    policy = with_least_barrier(lambda barrier: make(mdp, mdp.motion, barrier=barrier), mdp)
    assert policy is not None
    assert float(mdp.rollout(policy).worst_margin) >= 0
    if make is not FluidLP:
        assert policy.barrier > 0


def test_a_barrier_without_an_optimum_is_passed_over() -> None:
    """Under some weights the solver may find nothing to aim at: the next ones are tried, and none is an answer, too."""

    def sometimes(barrier: float) -> Leaning:
        if barrier == BARRIERS[len(BARRIERS) // 2]:
            raise NoBoundError("the solver finds no bound")
        return Leaning(barrier)

    def never(barrier: float) -> Leaning:
        raise InfeasibleError("no distribution meets the constraints")

    def mistaken(barrier: float) -> Leaning:
        raise ValueError("a mistake in a policy of one's own")

    found = with_least_barrier(sometimes, town(0.6))
    assert found is not None and found.barrier != BARRIERS[len(BARRIERS) // 2]
    assert with_least_barrier(never, town(0.6)) is None
    with pytest.raises(ValueError, match="a mistake"):  # which is not to pass for a city that cannot be kept safe
        with_least_barrier(mistaken, town(0.6))
