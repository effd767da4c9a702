"""The certificate: it refuses what some plausible motion makes unsafe, and is exact where the motion is known."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from mf_taxi_env import FreeMotion, Grid, RegionCapacity, TaxiMDP, Trajectory
from safe_m3_agent.certificate import Certificate, CertificateConfig, Certifier, within
from safe_m3_agent.confidence import student_quantile
from safe_m3_agent.hallucination import HallucinatedMDP
from safe_m3_agent.model.dynamics_model import Belief, KnownModel
from safe_m3_agent.model.ensemble import EnsembleConfig, ProbabilisticEnsemble
from safe_m3_agent.planners.bptt import BPTTConfig, BPTTPlanner
from safe_m3_agent.policy import FieldPolicy, Policy
from safe_m3_agent.transitions import Transitions

MEMBERS = 5
Scene = tuple[HallucinatedMDP, Policy]


@pytest.fixture(scope="module", params=[0, 1, 2])
def scene(
    request: pytest.FixtureRequest, make_world: Callable[..., TaxiMDP], roam: Callable[..., tuple[Transitions, torch.Tensor]]
) -> Scene:
    """A world learned from 80 moves, and a policy planned in it without a thought to the worst case."""
    world, generator = make_world(floor=0.9, horizon=4), torch.Generator().manual_seed(request.param)
    model = ProbabilisticEnsemble(EnsembleConfig(members=MEMBERS, steps=20), world.grid, world.noise.std, generator)
    model.fit(roam(FreeMotion(), 80, request.param, grid=world.grid, noise_std=world.noise.std)[0], generator)
    learned = HallucinatedMDP(world, model, 3.0)
    planner = BPTTPlanner(BPTTConfig(epochs=25, learning_rate=0.05), 0.01)
    plan = planner.plan(
        learned,
        FieldPolicy(world),
        weight=0.01,
        adversaries=torch.zeros(0, MEMBERS),
        optimistic=False,
        generator=torch.Generator(),
    )
    return learned, plan.policy


def certify(scene: Scene, *, beta: float = 3.0, seed: int = 0, known: int = 0, **options: int) -> Certificate:
    """A certificate of the scene's policy for a confidence set of another width."""
    learned, policy = scene
    mdp = HallucinatedMDP(learned._world, learned.model, beta)
    generator = torch.Generator().manual_seed(seed)
    adversaries = torch.randn(known, learned.model.members, generator=generator)
    return Certifier(CertificateConfig(**options)).certify(mdp, policy, adversaries, generator)


def margins(scene: Scene, z: torch.Tensor) -> torch.Tensor:
    """Worst margin in every one of some plausible worlds."""
    learned, policy = scene
    with torch.no_grad():
        return learned.plausible(z).rollout(policy).worst_margin


def test_exact_model_gives_the_true_margin(make_world: Callable[..., TaxiMDP]) -> None:
    """With the motion known there is nothing to search: the certificate is the episode itself."""
    world = make_world(motion="congested")
    policy = FieldPolicy(world)
    with torch.no_grad():
        policy.logits += 0.3 * torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(0))
        truth = float(world.rollout(policy).worst_margin)
    learned = HallucinatedMDP(world, KnownModel(world.motion, world.noise.std), 3.0)
    certificate = Certifier(CertificateConfig()).certify(learned, policy, torch.zeros(0, 1), torch.Generator())
    assert certificate.margin == truth
    assert certificate.certified is (truth >= 0)


def drawn_margins(scene: Scene, beta: float) -> torch.Tensor:
    """Worst margins under the nominal motion and 200 random ones from the boundary of the confidence set."""
    z = torch.cat([torch.zeros(1, MEMBERS), torch.randn(200, MEMBERS, generator=torch.Generator().manual_seed(7))])
    return margins(scene, student_quantile(beta, MEMBERS) * torch.nn.functional.normalize(z, dim=-1))


@pytest.mark.parametrize("beta", [0.3, 0.6, 1.0])
def test_worse_than_anything_drawn_at_random(scene: Scene, beta: float) -> None:
    """A thorough search finds less than the nominal motion and 200 random plausible ones."""
    drawn, found = drawn_margins(scene, beta), certify(scene, beta=beta, restarts=8, steps=8).margin
    assert found <= float(drawn.min()) + 1e-4
    assert found < float(drawn[0]) - 1e-3


@pytest.mark.parametrize("beta", [0.3, 0.6, 1.0])
def test_the_default_search_is_nearly_as_good(scene: Scene, beta: float) -> None:
    """Few steps are enough to judge: no motion drawn at random is clearly worse than what the default search finds."""
    assert certify(scene, beta=beta).margin <= float(drawn_margins(scene, beta).min()) + 0.01


def test_the_worst_motion_is_in_the_set_and_as_bad_as_reported(scene: Scene) -> None:
    """The direction that is handed on lies in the ball, and leads to the margin that was found."""
    certificate = certify(scene)
    assert float(certificate.z.norm()) <= student_quantile(3.0, MEMBERS) + 1e-4
    assert float(margins(scene, certificate.z)) == pytest.approx(certificate.margin, abs=1e-5)
    assert not certificate.z.requires_grad


def test_a_wider_set_is_no_safer(scene: Scene) -> None:
    """Margins fall as the confidence set grows, from the nominal one at zero width."""
    found = [certify(scene, beta=beta).margin for beta in (0.0, 1.0, 2.0, 4.0)]
    assert found[0] == pytest.approx(float(margins(scene, torch.zeros(MEMBERS))), abs=1e-6)
    assert all(wide <= narrow + 1e-4 for narrow, wide in pairwise(found))


def test_nominal_safety_is_not_enough(scene: Scene) -> None:
    """The same policy is certified by an overconfident agent and refused by one that doubts its model."""
    confident, doubtful = certify(scene, beta=0.0), certify(scene, beta=3.0)
    assert confident.certified and confident.margin > 0
    assert not doubtful.certified and doubtful.margin < 0


@pytest.mark.parametrize("beta", [10.0, 40.0, 1e6])
def test_no_doubt_is_too_large(scene: Scene, beta: float) -> None:
    """However wide the set is asked to be, its radius is a number, and a policy that it breaks is refused."""
    assert 10.0 <= student_quantile(beta, MEMBERS) < float("inf")
    assert not certify(scene, beta=beta).certified


def test_known_adversaries_are_tried(scene: Scene) -> None:
    """What broke an earlier policy starts a search: the result is no better than what one step from it finds."""
    learned, policy = scene
    worst = certify(scene, restarts=8, steps=8)
    again = Certifier(CertificateConfig(restarts=2, steps=1)).certify(
        learned, policy, worst.z.unsqueeze(0), torch.Generator().manual_seed(5)
    )
    assert again.margin <= worst.margin + 1e-4


def test_however_much_is_known_random_starts_remain(scene: Scene) -> None:
    """Searches from known adversaries come on top: alone they would find again what is known."""
    starts = [
        Certifier(CertificateConfig(restarts=2))._starts(scene[0], torch.ones(known, MEMBERS), torch.Generator().manual_seed(0))
        for known in (0, 5)
    ]
    assert [len(each) for each in starts] == [3, 8]
    assert torch.equal(starts[0], starts[1][:3]) and not starts[0][0].any()
    torch.testing.assert_close(starts[1][1:].norm(dim=-1), torch.full((7,), student_quantile(3.0, MEMBERS)))


def test_same_seed_same_certificate(scene: Scene) -> None:
    """A certificate depends on its generator alone."""
    first, second = certify(scene, seed=3, known=2), certify(scene, seed=3, known=2)
    assert first.margin == second.margin and torch.equal(first.z, second.z)


def test_undefined_margins_are_not_certified(make_world: Callable[..., TaxiMDP], scene: Scene) -> None:
    """A policy whose margins are not numbers is not safe."""
    broken = FieldPolicy(scene[0])
    with torch.no_grad():
        broken.logits.fill_(float("nan"))
    assert not certify((scene[0], broken)).certified


def test_without_constraints_everything_is_safe(make_world: Callable[..., TaxiMDP], scene: Scene) -> None:
    """A world without constraints has nothing to break: certified, not an error."""
    world = make_world(horizon=4, constraints=())
    free = HallucinatedMDP(world, scene[0].model, 3.0)
    certificate = Certifier(CertificateConfig()).certify(free, scene[1], torch.zeros(0, MEMBERS), torch.Generator())
    assert certificate.certified


@pytest.mark.parametrize("options", [{"restarts": 0}, {"steps": 0}, {"attempts": 0}])
def test_settings_are_validated(options: dict[str, int]) -> None:
    """A search that cannot search is refused."""
    with pytest.raises(ValueError, match="must be an integer >= 1"):
        CertificateConfig(**options)


class Drift(KnownModel):
    """A model that knows the motion but for a wind along the first axis: its two members disagree about nothing else."""

    exact = False
    members = 2

    def __init__(self, world: TaxiMDP, wind: float) -> None:
        super().__init__(world.motion, world.noise.std)
        self.wind = wind

    def predict(self, positions: torch.Tensor, mu: torch.Tensor, actions: torch.Tensor) -> Belief:
        belief = super().predict(positions, mu, actions)
        side = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).view(2, *[1] * (actions.dim() - 1), 2)
        return belief._replace(deviations=self.wind * side.expand(2, *actions.shape))


def test_what_is_worst_halfway_is_found(make_world: Callable[..., TaxiMDP]) -> None:
    """A crowd that the strongest wind blows past a forbidden strip, and half of it into the strip, gets no certificate."""
    grid = Grid(10)
    strip = (grid.centers()[:, 0] > 0.5) & (grid.centers()[:, 0] < 0.6)
    world = make_world(cells=10, horizon=1, noise_std=0.03, constraints=[RegionCapacity(strip, 0.3)])
    to_the_left = torch.stack([0.3 - world.centers[:, 0], torch.zeros(grid.size)], -1)
    policy = FieldPolicy.of_actions(world, to_the_left)
    strongest = 0.5 / (student_quantile(1.0, 2) * 2**0.5)
    learned = HallucinatedMDP(world, Drift(world, strongest), 1.0)
    ends = torch.tensor([[0.0, 0.0], [1.0, -1.0], [-1.0, 1.0]])
    with torch.no_grad():
        margins = learned.plausible(student_quantile(1.0, 2) / 2**0.5 * ends).rollout(policy).worst_margin
    assert (margins > 0.1).all()
    certificate = Certifier(CertificateConfig()).certify(learned, policy, torch.zeros(0, 2), torch.Generator().manual_seed(0))
    assert certificate.margin < -0.2
    assert float(certificate.z.norm()) < student_quantile(1.0, 2)


class TwoMargins:
    """A world of ten doubts and two constraints: one that is steep at all steps and safe, one that is broken in a corner."""

    exact = False
    constraints = (object(), object())
    directions = 10
    doubts = ((10, 1.0),)

    def __init__(self, z: torch.Tensor | None = None) -> None:
        self.z = z

    def plausible(self, z: torch.Tensor) -> TwoMargins:
        return TwoMargins(z)

    def rollout(self, field: object) -> Trajectory:
        assert self.z is not None
        steep = (0.12 + 0.1 * self.z[:, :1]).expand(-1, 3)
        flat = torch.stack([0.13 + 0.14 * self.z[:, 1], *(torch.ones(len(self.z)),) * 2], -1)
        none = torch.zeros(len(self.z), 3)
        return Trajectory(none, none, torch.stack([steep, flat], -1), none)


def test_each_constraint_is_searched_for() -> None:
    """One that is smallest wherever the search comes, and steepest, does not hide another that some motion breaks."""
    policy = SimpleNamespace(prepared=lambda: None)
    for seed in range(5):
        found = Certifier(CertificateConfig()).certify(
            TwoMargins(),  # type: ignore[arg-type]
            policy,  # type: ignore[arg-type]
            torch.zeros(0, 10),
            torch.Generator().manual_seed(seed),
        )
        assert found.margin == pytest.approx(-0.01, abs=1e-5) and not found.certified
        assert float(found.z[1]) == pytest.approx(-1.0, abs=1e-4)


def test_what_lies_beyond_the_set_is_drawn_back(scene: Scene) -> None:
    """Adversaries of a wider set keep their direction; those within the set stay as they are, to the last bit."""
    radius = student_quantile(3.0, MEMBERS)
    directions = torch.nn.functional.normalize(torch.randn(4, MEMBERS, generator=torch.Generator().manual_seed(0)), dim=-1)
    given = directions * torch.tensor([[0.5], [1.0], [2.0], [40.0]]) * radius
    kept = within(scene[0], given)
    assert torch.equal(kept[:2], given[:2])
    torch.testing.assert_close(kept[2:], radius * directions[2:])
    assert within(scene[0], given[:0]).shape == (0, MEMBERS)
