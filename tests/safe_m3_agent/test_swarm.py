"""The same agent on a ring: it learns to drift, keeps a floor, sees no seam, and resumes as if it had never stopped."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mf_taxi_env import EntropyFloor, SwarmMDP, TorusMotion
from safe_m3_agent import Config, SafeM3UCRL
from safe_m3_agent.hallucination import HallucinatedField, HallucinatedMDP
from safe_m3_agent.model.dynamics_model import KnownModel
from safe_m3_agent.model.ensemble import EnsembleConfig, ProbabilisticEnsemble
from safe_m3_agent.planners.bptt import BPTTConfig
from safe_m3_agent.policy import NetworkPolicy, PolicyConfig, make_policy
from safe_m3_agent.representatives import observe
from safe_m3_agent.transitions import Transitions

QUICK = Config(
    beta=1.0, representative_agents=20, ensemble=EnsembleConfig(steps=40), bptt=BPTTConfig(epochs=15, learning_rate=0.05)
)


def swarm(*, floor: float | None = None, **options: Any) -> SwarmMDP:
    """Twenty cells, twenty steps."""
    constraints = () if floor is None else (EntropyFloor(floor),)
    return SwarmMDP(**{"cells": 20, "horizon": 20, "constraints": constraints, **options})


def drifts(world: SwarmMDP, n: int, seed: int = 0) -> tuple[Transitions, Tensor]:
    """Random moves of particles, and where they headed."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.rand(n, 1, generator=generator)
    actions = 2 * torch.rand(n, 1, generator=generator) - 1
    mu = world.initial((n,))
    goals = world.motion(positions, mu, actions)
    return Transitions.of(positions, mu, actions, world.noise.sample(goals, generator)), goals


def taught(world: SwarmMDP, n: int, **config: Any) -> ProbabilisticEnsemble:
    """An ensemble that has seen ``n`` moves."""
    generator = torch.Generator().manual_seed(0)
    ensemble = ProbabilisticEnsemble(
        EnsembleConfig(**config), world.grid, world.noise.std, generator, space=world.space, reach=world.reach
    )
    ensemble.fit(drifts(world, n)[0], generator)
    return ensemble


class Field:
    """A field of given actions."""

    def __init__(self, actions: Tensor) -> None:
        self.actions = actions

    def field(self, mu: Tensor, t: int) -> Tensor:
        return self.actions


class Drift:
    """Drifts at three tenths of the speed, everywhere."""

    def __call__(self, positions: Tensor, mu: Tensor, t: int) -> Tensor:
        return torch.full_like(positions, 0.3)


# -- learning -------------------------------------------------------------------------------------------------------------


def test_unknown_dynamics_without_constraints() -> None:
    """M3-UCRL from moves alone: in five episodes at least what the analytic control earns, less a twentieth."""
    history = SafeM3UCRL(swarm(), replace(QUICK, constrained=False), seed=0).learn(5)
    assert history[0].score == pytest.approx(0.0, abs=1e-6)
    assert history[-1].score >= 0.95
    assert history[-1].epistemic < 0.2 * history[0].epistemic
    assert history.column("min_margin") == [math.inf] * 5


def test_known_dynamics_beat_the_analytic_control() -> None:
    """Over twenty steps from a uniform start a* is not the best: the planner alone finds better."""
    config = replace(QUICK, model="known", constrained=False, bptt=BPTTConfig(epochs=40, learning_rate=0.05))
    history = SafeM3UCRL(swarm(), config, seed=0).learn(2)
    assert 1.0 < history[-1].score < 1.5


def test_a_floor_is_kept_while_learning() -> None:
    """The analytic control would break the floor: what is executed keeps it, in every episode, and still earns more."""
    world = swarm(floor=0.95)
    with torch.no_grad():
        assert float(world.rollout(Field(world.optimal_actions())).worst_margin) < 0
    # Close to a constraint, steps as long as those without one lead beyond it.
    config = replace(QUICK, beta=2.0, bptt=BPTTConfig(epochs=15, learning_rate=0.02))
    history = SafeM3UCRL(world, config, seed=0).learn(6)
    assert history.violations == 0 and min(history.column("min_margin")) >= 0
    assert any(history.column("certified"))
    assert history[-1].reward > history[0].reward + 0.05 * abs(history[0].reward)
    assert all(math.isnan(value) for value in history.column("score"))


# -- the ring has no seam -------------------------------------------------------------------------------------------------


def test_the_ensemble_learns_motion_across_the_seam() -> None:
    """Predictions are as good where a particle crosses 0 as elsewhere, and well within a step's reach."""
    world = swarm()
    ensemble = taught(world, 4000)
    data, goals = drifts(world, 1000, seed=1)
    belief = ensemble.predict(data.positions, world.initial(), data.actions)
    assert bool(((belief.mean >= 0) & (belief.mean <= 1)).all())
    error = world.space.displacement(belief.mean, goals).abs()
    crossing = (goals - data.positions).abs() > 0.5
    assert 10 < int(crossing.sum()) < 200
    assert float(error.mean()) < 0.1 * world.reach
    assert float(error[crossing].mean()) < 0.15 * world.reach
    assert float(belief.epistemic.mean()) < 0.15 * world.reach


def test_the_head_is_solved_in_units_of_the_reach() -> None:
    """Without a step of Adam, the exact head alone knows the drift to a tenth of a step."""
    world = swarm()
    ensemble = taught(world, 4000, rounds=0, steps=0)
    data, goals = drifts(world, 1000, seed=1)
    error = world.space.displacement(ensemble.predict(data.positions, world.initial(), data.actions).mean, goals)
    assert float(error.abs().mean()) < 0.1 * world.reach


def test_beliefs_are_equal_at_both_ends() -> None:
    """0 and 1 are one point: the same action leads from both to the same destination, with the same doubt."""
    world = swarm()
    ensemble = taught(world, 100)
    ends, actions = torch.tensor([[0.0], [1.0 - 1e-7]]), torch.full((2, 1), -0.3)
    # Of the local density, the two cells on either side of the seam have the same here.
    belief = ensemble.predict(ends, world.initial(), actions)
    assert float(world.space.displacement(*belief.mean).abs()) < 1e-5
    torch.testing.assert_close(belief.epistemic[0], belief.epistemic[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(belief.deviations[:, 0], belief.deviations[:, 1], atol=1e-5, rtol=0)


def test_members_that_straddle_the_seam_agree() -> None:
    """The mean of destinations on either side of 0 lies at 0, not half a turn away; their spread is small."""
    world = swarm()
    ensemble = taught(world, 2000)
    belief = ensemble.predict(torch.full((5, 1), 0.999), world.initial(), torch.linspace(-0.2, 0.2, 5).unsqueeze(-1))
    reached = world.space.displacement(torch.zeros(5, 1), belief.mean)
    assert float(reached.abs().max()) < 0.05
    assert float(belief.epistemic.max()) < 0.5 * world.reach


def test_what_was_never_seen_of_the_density_is_believed_from_the_prior() -> None:
    """All moves happened in a uniform swarm: doubt about a crowd is the prior's, in proportion, and none about the uniform."""
    world = swarm()
    crowd, stay = torch.full((20,), 0.4 / 19), torch.zeros(20, 1)
    crowd[7] = 0.6
    doubts = []
    for scale in (1.0, 0.1):
        ensemble = taught(world, 4000, density_scale=scale, residual_scale=1e-3)
        doubts.append([ensemble.predict(world.centers, mu, stay).epistemic[7].item() for mu in (world.initial(), crowd)])
    (known, doubted), (still_known, less_doubted) = doubts
    assert doubted == pytest.approx(world.reach * math.log(13 / 2) / 0.4, rel=0.7)
    assert less_doubted < 0.2 * doubted
    assert max(known, still_known) < 0.1 * world.reach


def test_network_policies_have_no_seam() -> None:
    """A network on a ring gives the same action at 0 and at 1 before its residual, and a swarm's policy stays put at first."""
    world = swarm()
    policy = make_policy(PolicyConfig("network", hidden=(8, 8)), world, torch.Generator().manual_seed(0))
    assert isinstance(policy, NetworkPolicy) and not policy.field(world.initial(), 0).any()
    with torch.no_grad():
        policy.network(0).out.weight.normal_(generator=torch.Generator().manual_seed(1))
        ends = policy(torch.tensor([[0.0], [1.0], [0.5]]), world.initial(), 0)
    torch.testing.assert_close(ends[0], ends[1])
    assert not torch.allclose(ends[0], ends[2], atol=1e-3)
    torch.testing.assert_close(policy.field(world.initial(), 0), policy(world.centers, world.initial(), 0))


# -- the learned world ----------------------------------------------------------------------------------------------------


def test_with_the_known_model_it_is_the_true_swarm() -> None:
    """Trajectory, rewards (speed costs included) and margins are the true world's; eta has no effect, and no price."""
    world = swarm(floor=0.9)
    learned = HallucinatedMDP(world, KnownModel(world.motion, world.noise.std), 2.0)
    field = Field(world.optimal_actions())
    true = world.rollout(field)
    assert learned.space == world.space and learned.periodic
    for policy in (field, HallucinatedField(field, torch.ones(20, 1))):
        believed = learned.rollout(policy)
        assert all(torch.equal(getattr(believed, name), getattr(true, name)) for name in ("mu", "rewards", "margins"))


def test_hallucinated_moves_go_round_the_ring() -> None:
    """Optimism across the seam is a move across it: mass conserved, and as far round as beta standard deviations say."""
    world = swarm()
    ensemble = taught(world, 60)
    learned = HallucinatedMDP(world, ensemble, 2.0)
    mu = torch.zeros(20)
    mu[0] = 1.0
    stay, push = torch.zeros(20, 1), -torch.ones(20, 1)
    belief = ensemble.predict(world.centers, mu, stay)
    moved = learned.transition(mu, torch.cat([stay, push], -1))
    expected = world.noise.push_forward(mu, belief.mean - 2.0 * belief.epistemic)
    torch.testing.assert_close(moved, expected)
    torch.testing.assert_close(moved.sum(), torch.tensor(1.0))
    assert float(moved[10:].sum()) > 0.5


@torch.no_grad()
def test_representatives_report_the_swarms_moves() -> None:
    """Landings lie about true destinations, the shorter way round; positions go on from where the last step ended.

    A model that names a point one turn on is right: it is the same point.
    """
    world = swarm()
    policy = make_policy(PolicyConfig(), world, torch.Generator())
    executed = world.rollout(policy)
    config = Config(representative_agents=200)
    known, wrong = KnownModel(lambda *move: world.motion(*move) + 1.0, 0.1), KnownModel(TorusMotion(70.0, 0.01), 0.1)
    seen, held_out, covered, trips = observe(  # type: ignore[arg-type]
        executed, world, known, Drift(), config, torch.Generator().manual_seed(0), radius=3.5
    )
    assert seen.size == 4000 and covered == 1.0 and trips.size == 0
    assert float(held_out.residual.std()) == pytest.approx(0.1, rel=0.05)  # the noise alone, across the seam too
    error = world.space.displacement(world.motion(seen.positions, world.initial(), seen.actions), seen.next_positions)
    assert float(error.std()) == pytest.approx(0.1, rel=0.05) and abs(float(error.mean())) < 0.01
    assert torch.equal(seen.positions[200:], seen.next_positions[:-200])
    *_, covered, _ = observe(  # type: ignore[arg-type]
        executed, world, wrong, Drift(), config, torch.Generator().manual_seed(0), radius=3.5
    )
    assert covered < 0.05


# -- what is kept ---------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "unconstrained": ({"constrained": False}, {}),
    "floor": ({}, {"constraints": (EntropyFloor(0.8),)}),
    "float64, learned noise": (
        {"ensemble": EnsembleConfig(members=3, hidden=(4, 4), steps=6, learn_noise=True)},
        {"dtype": torch.float64, "dt": 0.005, "max_speed": 9.0},
    ),
    "network per step": ({"policy": PolicyConfig("network", per_step=True, hidden=(6,))}, {"density_term": False}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_is_the_uninterrupted_one(tiny: Config, tmp_path: Path, variant: str) -> None:
    """Saved, loaded from its folder alone and continued, a run equals one that never stopped, bit for bit."""
    settings, options = VARIANTS[variant]
    config, world = replace(tiny, **settings), swarm(**{"cells": 8, "horizon": 4, **options})
    whole = SafeM3UCRL(world, config, seed=7)
    whole.learn(4)
    first = SafeM3UCRL(world, config, seed=7)
    first.learn(2)
    second = SafeM3UCRL.load(first.save(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "checkpoint.safetensors"}
    assert repr(second.mdp) == repr(world) and second.mdp.dtype == world.dtype
    assert second.learn(2) == whole.history
    pairs = zip(second.policy.parameters(), whole.policy.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert all(torch.equal(a, b) for a, b in zip(second.knowledge.transitions, whole.knowledge.transitions, strict=True))


@pytest.mark.parametrize(
    "options", [{"dt": 0.02}, {"max_speed": 5.0}, {"density_term": False}, {"cells": 9}, {"floor": 0.5}], ids=str
)
def test_a_folder_of_another_swarm_is_refused(tiny: Config, tmp_path: Path, options: dict[str, Any]) -> None:
    """Every fact of the swarm tells runs apart."""
    SafeM3UCRL(swarm(cells=8, horizon=4), tiny).save(tmp_path)
    other = SafeM3UCRL(swarm(**{"cells": 8, "horizon": 4, **options}), tiny)
    with pytest.raises(ValueError, match="another run"):
        other.save(tmp_path)
    with pytest.raises(ValueError, match="another world"):
        SafeM3UCRL.load(tmp_path, mdp=other.mdp)


def test_worlds_of_the_users_own_are_handed_in(tiny: Config, tmp_path: Path) -> None:
    """A subclass or another motion cannot be rebuilt from a file, and is not mistaken for the library's."""

    class Calm(SwarmMDP):
        """A swarm of the user's own."""

    for name, world in (
        ("subclass", Calm(cells=8, horizon=4)),
        ("motion", swarm(cells=8, horizon=4).with_motion(TorusMotion(2.0, 0.01))),
    ):
        folder = SafeM3UCRL(world, tiny).save(tmp_path / name)
        with pytest.raises(ValueError, match=r"hand the world in.*mdp="):
            SafeM3UCRL.load(folder)
        assert SafeM3UCRL.load(folder, mdp=world).mdp is world


def test_predict_gives_the_policys_field(tiny: Config) -> None:
    """For ``MFSwarm1D-v0``: one action per cell of the ring."""
    agent = SafeM3UCRL(swarm(), replace(tiny, model="known", constrained=False))
    agent.learn(1)
    actions, state = agent.predict(np.full((3, 20), 0.05, np.float32))
    assert actions.shape == (3, 20) and state is None
    np.testing.assert_allclose(actions[0], agent.policy.field(agent.mdp.initial(), 0)[:, 0].detach().numpy(), atol=1e-6)
