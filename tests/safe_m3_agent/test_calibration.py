"""The confidence set is as wide as held-out landings ask for, and no wider."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from mf_taxi_env import TaxiMDP
from mf_taxi_env.space import CUBE, TORUS
from safe_m3_agent import Config, SafeM3UCRL
from safe_m3_agent.calibration import Calibration, HeldOut
from safe_m3_agent.confidence import Confidence
from safe_m3_agent.model.dynamics_model import Belief
from safe_m3_agent.model.ensemble import EnsembleConfig


def calibration(*, members: int = 10, moves: int = 24, per_episode: int = 12, delta: float = 0.1, sets: int = 1) -> Calibration:
    """Of a model with ten members and one taxi."""
    like = torch.zeros(1, dtype=torch.float64)
    return Calibration(members=members, moves=moves, per_episode=per_episode, delta=delta, like=like, dimension=2, sets=sets)


def drawn(
    n: int,
    *,
    too_small_by: float,
    seed: int = 0,
    noise: float = 0.02,
    epistemic: float = 0.05,
    members: int = 10,
    used: float = 1.0,
) -> HeldOut:
    """Residuals of a model whose epistemic standard deviations are too small by a factor."""
    rng = np.random.default_rng(seed)
    doubt = epistemic * rng.uniform(0.5, 2.0, (n, 2))
    errors = too_small_by * doubt * rng.standard_t(members - 1, (n, 2))
    residual = errors + noise * rng.standard_normal((n, 2))
    parts = (residual, np.full((n, 2), noise), doubt, np.full(n, used))
    return HeldOut(*(torch.from_numpy(part) for part in parts))


# -- the factor -----------------------------------------------------------------------------------------------------------


def test_nothing_seen_nothing_changed() -> None:
    """Before the first landing the factor is 1, and the width is that of the level: not what an overconfident user set."""
    fresh = calibration()
    assert fresh.tau == 1.0
    assert (
        Confidence(0.01, fresh.quantile, fresh.tau).width
        == pytest.approx(stats.norm.isf(0.1 / 48))
        == pytest.approx(2.865, abs=1e-3)
    )


@pytest.mark.parametrize("true", [1.5, 3.0, 20.0])
def test_the_factor_is_found(true: float) -> None:
    """A hundred and twenty landings tell by how much a model is too sure."""
    judge = calibration()
    judge.add(drawn(120, too_small_by=true))
    assert judge.tau == pytest.approx(true, rel=0.15)


@pytest.mark.parametrize("true", [0.2, 0.7])
def test_a_doubtful_model_is_left_as_it_is(true: float) -> None:
    """The factor never falls below one: what a model doubts without need costs reward, not safety."""
    judge = calibration()
    judge.add(drawn(120, too_small_by=true))
    assert judge.tau == 1.0


def test_a_right_model_keeps_the_default_width() -> None:
    """Whatever chance does to a dozen landings an episode, 3.5 stays 3.5, in nearly all of 60 runs at all times."""
    changed = 0
    for seed in range(60):
        judge = calibration()
        for episode in range(6):
            judge.add(drawn(12, too_small_by=1.0, seed=100 * seed + episode))
            changed += Confidence(3.5, judge.quantile, judge.tau).width != 3.5
    assert changed <= 0.03 * 360


def test_a_dozen_landings_raise_the_width_of_a_model_that_is_far_too_sure() -> None:
    """One episode suffices to doubt a model whose errors are ten times what it claims."""
    judge = calibration()
    judge.add(drawn(12, too_small_by=10.0))
    assert Confidence(3.5, judge.quantile, judge.tau).width > 10.0


def test_noise_is_not_taken_for_error() -> None:
    """Residuals many times the epistemic standard deviation are no evidence where noise explains them."""
    widened = 0
    for seed in range(40):
        judge = calibration(members=10)
        judge.add(drawn(120, too_small_by=1.0, noise=0.1, epistemic=0.02, seed=seed))
        widened += judge.tau > 1.0
    assert widened <= 8  # a test of level 0.1, with room for chance


def test_one_odd_landing_decides_nothing() -> None:
    """A single residual of twelve standard deviations among 240 moves the factor by a tenth at most."""
    judge, odd = calibration(), calibration()
    seen = drawn(120, too_small_by=1.0, epistemic=0.05)
    judge.add(seen)
    residual = seen.residual.clone()
    residual[7, 0] = 12 * float(torch.hypot(seen.noise, seen.epistemic)[7, 0])
    odd.add(seen._replace(residual=residual))
    assert odd.tau <= 1.1 * judge.tau


def test_the_window_forgets() -> None:
    """Ten good episodes later, what an early model got wrong no longer counts."""
    judge = calibration()
    judge.add(drawn(120, too_small_by=5.0))
    assert judge.tau > 3.0
    judge.add(drawn(120, too_small_by=0.8, seed=1))
    assert judge.tau == 1.0
    assert len(judge.held_out.residual) == 240


def test_sets_share_the_level() -> None:
    """Two confidence sets, of motion and of trips, are left no more often together than one alone."""
    one, two = calibration(), calibration(sets=2)
    assert stats.norm.sf(one.quantile) == pytest.approx(2 * stats.norm.sf(two.quantile))


# -- what counts ----------------------------------------------------------------------------------------------------------


def belief(mean: list[float], epistemic: float) -> Belief:
    """About one axis per number, noise 0.02."""
    center = torch.tensor([mean], dtype=torch.float64)
    return Belief(center, torch.full_like(center, epistemic), torch.full_like(center, 0.02), center.new_zeros(1, 1, len(mean)))


def test_predictions_at_an_edge_are_left_out() -> None:
    """By the prediction, unless the landing is where no edge explains it; on a ring there is no edge."""
    means, landings = [0.5, 0.03, 0.97, 0.5, 0.03], torch.tensor([[0.51, 0.04, 0.93, 0.99, 0.6]], dtype=torch.float64)
    at_edges = HeldOut.of_landings(belief(means, 0.01), landings, CUBE, 1.5, 0.02)
    assert (~at_edges.residual.isnan()).tolist() == [[True, False, False, True, True]]
    assert float(at_edges.residual[0, 4]) == pytest.approx(0.57) and at_edges.tau.tolist() == [1.5]
    ring = HeldOut.of_landings(belief([0.97], 0.01), torch.tensor([[0.01]], dtype=torch.float64), TORUS, 1.0, 0.02)
    assert float(ring.residual) == pytest.approx(0.04)


def test_noise_is_not_believed_to_be_more_than_the_worlds() -> None:
    """A model that takes its errors for noise, and learns a noise of their size, has them held against it all the same."""
    generator = torch.Generator().manual_seed(0)
    center = torch.full((400, 2), 0.5, dtype=torch.float64)
    landings = center + 0.05 + 0.02 * torch.randn(400, 2, generator=generator, dtype=torch.float64)
    taus = []
    for learned in (0.02, 0.054):  # the world's; the residuals' root mean square
        sure = Belief(center, torch.full_like(center, 0.005), torch.full_like(center, learned), center.new_zeros(1, 400, 2))
        held_out = HeldOut.of_landings(sure, landings, CUBE, 1.0, 0.02)
        assert (held_out.noise == 0.02).all()
        judge = calibration()
        judge.add(held_out)
        taus.append(judge.tau)
    assert taus[0] == taus[1] > 5.0
    quiet = Belief(center, torch.full_like(center, 0.005), torch.full_like(center, 0.01), center.new_zeros(1, 400, 2))
    assert (HeldOut.of_landings(quiet, landings, CUBE, 1.0, 0.02).noise == 0.01).all(), "less may be learned"


def test_a_prediction_that_is_no_number_is_not_left_out() -> None:
    """NaN marks coordinates at an edge; a model that has broken down is not to look like one that was not asked."""
    loud = belief([0.5], 0.01)._replace(aleatoric=torch.tensor([[math.nan]], dtype=torch.float64))
    for broken in (belief([math.nan], 0.01), belief([0.5], math.nan), loud):
        with pytest.raises(FloatingPointError, match="no numbers"):
            HeldOut.of_landings(broken, torch.tensor([[0.5]], dtype=torch.float64), CUBE, 1.0, 0.02)


def test_levels_are_uniform_where_all_is_as_predicted() -> None:
    """And those of a model that is too sure become so by the factor that the agent went by."""
    judge = calibration()
    right = judge.levels(drawn(4000, too_small_by=1.0))
    assert stats.kstest(right, "uniform").statistic < 0.03
    wrong = drawn(4000, too_small_by=3.0, used=3.0)
    assert stats.kstest(judge.levels(wrong, recalibrated=False), "uniform").statistic > 0.2
    assert stats.kstest(judge.levels(wrong), "uniform").statistic < 0.03
    assert judge.share_within(wrong) == pytest.approx(0.9, abs=0.02)


def test_without_a_landing_there_is_no_share() -> None:
    """Every prediction of an episode may lie at an edge."""
    judge = calibration()
    assert math.isnan(judge.share_within(judge.held_out))


# -- in the agent ---------------------------------------------------------------------------------------------------------


def test_the_agent_records_and_uses_the_width(world: TaxiMDP, tiny: Config) -> None:
    """From the first episode on beta is the level's, not the overconfident one; where it is not asked for it stays."""
    agent = SafeM3UCRL(world, replace(tiny, beta=0.01))
    history = agent.learn(2)
    assert history[0].beta == agent.calibration.quantile and history[1].beta >= history[0].beta
    assert len(agent.calibration.held_out.residual) == agent.knowledge.transitions.size
    for same in (replace(tiny, beta=0.01, calibrate=False), replace(tiny, beta=0.01, constrained=False)):
        assert SafeM3UCRL(world, same).learn(1).column("beta") == [0.01]
    assert SafeM3UCRL(world, replace(tiny, beta=1.0, model="known")).learn(1).column("beta") == [1.0]


#: Two taxis teach little in four episodes, and a floor of 0.92 leaves little room.
HASTY = Config(beta=0.01, representative_agents=2, anew=0.0, ensemble=EnsembleConfig(steps=60))


def test_overconfidence_is_caught_before_it_is_executed(make_world: Callable[..., TaxiMDP]) -> None:
    """Who trusts the model's mean leaves the floor within four episodes; with the same settings, calibration prevents it."""
    world, seeds = make_world(cells=6, floor=0.92, horizon=6), (0, 1, 2)
    with pytest.warns(UserWarning, match="withdrawn"):
        trusting = [SafeM3UCRL(world, replace(HASTY, calibrate=False), seed=seed).learn(4) for seed in seeds]
    assert sum(history.violations for history in trusting) >= 1  # which seeds is chance
    assert all(any(history.column("certified")) for history in trusting)
    for seed in seeds:
        history = SafeM3UCRL(world, HASTY, seed=seed).learn(4)
        assert history.violations == 0
        assert min(history.column("beta")) >= 2.6 and min(history.column("coverage")) >= 0.9


def test_a_calibrated_set_still_certifies(make_world: Callable[..., TaxiMDP]) -> None:
    """Overconfident settings end with a certificate that means something: the fleet moves, and no episode violates."""
    world = make_world(floor=0.9, horizon=6)
    history = SafeM3UCRL(world, replace(HASTY, representative_agents=10), seed=0).learn(5)
    assert any(history.column("certified")) and history[-1].score > 0.1
    assert history.violations == 0
    assert all(episode.min_margin >= episode.worst_margin for episode in history if episode.certified)


def test_a_model_that_is_sure_without_reason_is_found_out(make_world: Callable[..., TaxiMDP]) -> None:
    """A prior under which nothing can move far: default widths miss the truth, those after the first episode hold it."""
    sure = EnsembleConfig(steps=0, rounds=0, linear_scale=0.03, density_scale=0.03, residual_scale=0.003)
    world, config = make_world(floor=0.9, horizon=6), Config(representative_agents=2, anew=0.0, ensemble=sure)
    plain = SafeM3UCRL(world, replace(config, calibrate=False), seed=0).learn(4)
    history = SafeM3UCRL(world, config, seed=0).learn(4)
    assert set(plain.column("beta")) == {3.5} and max(plain.column("held_out")) < 0.9
    assert history[0].beta == 3.5 and min(history.column("beta")[1:]) > 7.0
    assert min(history.column("coverage")[1:]) >= 0.9 > max(plain.column("coverage")[:3])
    assert min(history.column("held_out")[1:]) >= 0.9


def test_the_default_width_stays_to_the_last_bit(make_world: Callable[..., TaxiMDP]) -> None:
    """Where a model is not too sure of itself, calibrated histories are those without calibration."""
    world, config = make_world(floor=0.9, horizon=6), Config(representative_agents=5, ensemble=EnsembleConfig(steps=60))
    histories = [SafeM3UCRL(world, replace(config, calibrate=calibrate), seed=0).learn(4) for calibrate in (True, False)]
    shared = [[replace(episode, held_out=0.0) for episode in history] for history in histories]
    assert shared[0] == shared[1] and set(histories[0].column("beta")) == {3.5}
