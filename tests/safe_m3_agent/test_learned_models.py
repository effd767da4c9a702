"""What every learned model of motion promises: it learns from few moves, knows what it does not know, and can be stored."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mf_taxi_env import CongestedMotion, FreeMotion, Grid, Motion
from safe_m3_agent.model.dynamics_model import Belief, DynamicsModel
from safe_m3_agent.model.ensemble import EnsembleConfig, ProbabilisticEnsemble
from safe_m3_agent.model.gaussian_process import GaussianProcess, GPConfig
from safe_m3_agent.transitions import Transitions

GRID = Grid(6)
Roam = Callable[..., tuple[Transitions, Tensor]]

#: Every kind of learned model, with the settings that an agent has by default.
KINDS: dict[str, EnsembleConfig | GPConfig] = {
    "ensemble": EnsembleConfig(),
    "sparse": GPConfig(kind="sparse"),
    "exact": GPConfig(kind="exact"),
}


def make(
    kind: str, generator: torch.Generator, *, noise_std: float = 0.0175, dtype: torch.dtype = torch.float32
) -> ProbabilisticEnsemble | GaussianProcess:
    """A model that has learned nothing yet."""
    config = KINDS[kind]
    if isinstance(config, EnsembleConfig):
        return ProbabilisticEnsemble(config, GRID, noise_std, generator, dtype=dtype)
    return GaussianProcess(config, GRID, noise_std, generator, dtype=dtype)


def fitted(kind: str, data: Transitions, *, seed: int = 0) -> ProbabilisticEnsemble | GaussianProcess:
    """A model that has learned from ``data``."""
    generator = torch.Generator().manual_seed(seed)
    model = make(kind, generator, dtype=data.positions.dtype)
    model.fit(data, generator)
    return model


def beliefs(model: DynamicsModel, data: Transitions) -> Belief:
    """About every transition in the distribution that it happened in; destinations ``[n, d]``."""
    belief = model.predict(data.positions.unsqueeze(-2), data.mu, data.actions.unsqueeze(-2))
    return Belief(*(part.squeeze(-2) for part in belief))


def rms(values: Tensor) -> float:
    """Root mean square."""
    return float(values.square().mean().sqrt())


@pytest.fixture(params=KINDS, scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    """Every learned model in turn."""
    return str(request.param)


@pytest.fixture(scope="module")
def held_out(roam: Roam) -> tuple[Transitions, Tensor]:
    """Free moves that no model has seen."""
    return roam(FreeMotion(), 2000, 1000)


@pytest.fixture(scope="module")
def learned(kind: str, roam: Roam) -> DynamicsModel:
    """Fitted to 300 free moves."""
    return fitted(kind, roam(FreeMotion(), 300, 0)[0])


def test_learns_free_motion(learned: DynamicsModel, held_out: tuple[Transitions, Tensor]) -> None:
    """300 moves are enough to know destinations to a fraction of the noise, with an uncertainty that covers the error."""
    data, goals = held_out
    belief = beliefs(learned, data)
    error = (belief.mean - goals).abs()
    assert rms(error) < 0.01
    assert float((error <= 3 * belief.epistemic + 1e-4).all(-1).float().mean()) >= 0.95
    assert rms(belief.epistemic) < 0.02  # and does not cover by believing nothing


@pytest.mark.parametrize("motion", [FreeMotion(), CongestedMotion(GRID, 0.2)], ids=["free", "congested"])
def test_more_data_less_doubt(kind: str, motion: Motion, roam: Roam) -> None:
    """Uncertainty and error shrink as transitions come in, and the uncertainty keeps covering the error."""
    data, goals = roam(motion, 2000, 1000)
    few, many = (beliefs(fitted(kind, roam(motion, n, 0)[0]), data) for n in (60, 800))
    assert rms(many.epistemic) < 0.6 * rms(few.epistemic)
    assert rms(many.mean - goals) < 0.7 * rms(few.mean - goals)
    for belief in (few, many):
        assert float(((belief.mean - goals).abs() <= 3 * belief.epistemic + 1e-4).float().mean()) >= 0.95


def test_sees_congestion(kind: str, roam: Roam) -> None:
    """The density is an input that is used: without it, moves that shorten with density cannot be learned."""
    motion = CongestedMotion(GRID, 0.2)
    (data, _), (test, goals) = roam(motion, 500, 0), roam(motion, 2000, 1000)
    seeing = beliefs(fitted(kind, data), test)
    flat_data, flat_test = (part._replace(distributions=torch.full_like(part.mu, 1 / GRID.size)) for part in (data, test))
    blind = beliefs(fitted(kind, flat_data), flat_test)
    assert rms(seeing.mean - goals) < 0.02
    assert rms(seeing.mean - goals) < 0.4 * rms(blind.mean - goals)


def test_doubts_what_it_has_not_seen(kind: str, roam: Roam) -> None:
    """Trained on short moves to one side only, it is much less sure of long moves to the other, wherever they start."""
    data, _ = roam(FreeMotion(), 1500, 0)
    seen = (data.actions > 0).all(-1) & (data.actions < 0.4).all(-1)
    model = fitted(kind, Transitions.of(data.positions[seen], data.mu[seen], data.actions[seen], data.next_positions[seen]))
    inner = GRID.centers()[((GRID.centers() - 0.5).abs() < 0.3).all(-1)]
    mu = torch.full((GRID.size,), 1 / GRID.size)
    near, far = (model.predict(inner, mu, move * inner / inner.abs()).epistemic for move in (0.2, -0.6))
    reachable = (inner - 0.6 > -0.1).all(-1)
    assert rms(far[reachable]) > 1.5 * rms(near[reachable])


def test_deviations_square_to_the_epistemic_variance(learned: DynamicsModel, held_out: tuple[Transitions, Tensor]) -> None:
    """What adversaries combine and what is hallucinated are the same uncertainty."""
    belief = beliefs(learned, held_out[0])
    torch.testing.assert_close(belief.deviations.square().sum(0).sqrt().clamp_min(1e-6), belief.epistemic, rtol=1e-4, atol=1e-7)
    assert float(belief.deviations.sum(0).abs().max()) < 1e-6


def test_batched_prediction_equals_loop(learned: DynamicsModel) -> None:
    """A batch of distributions gives what each gives alone, also where only the actions are batched."""
    generator = torch.Generator().manual_seed(5)
    mu = torch.rand(3, GRID.size, generator=generator)
    actions = 2 * torch.rand(3, GRID.size, 2, generator=generator) - 1
    together = learned.predict(GRID.centers(), mu, actions)
    for b in range(3):
        alone = learned.predict(GRID.centers(), mu[b], actions[b])
        for whole, part in zip(together[:3], alone[:3], strict=True):
            torch.testing.assert_close(whole[b], part, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(together.deviations[:, b], alone.deviations, atol=1e-6, rtol=1e-4)
    candidates = learned.predict(GRID.centers(), mu[0], actions)
    torch.testing.assert_close(candidates.mean[2], learned.predict(GRID.centers(), mu[0], actions[2]).mean)


def test_noise_is_aleatoric_only(learned: DynamicsModel, held_out: tuple[Transitions, Tensor]) -> None:
    """The known noise is reported as aleatoric and does not inflate what is hallucinated."""
    belief = beliefs(learned, held_out[0])
    torch.testing.assert_close(belief.aleatoric, torch.full_like(belief.aleatoric, 0.0175))
    assert float(belief.epistemic.median()) < 0.0175


def test_positions_on_the_edge(kind: str, learned: DynamicsModel, roam: Roam) -> None:
    """A vehicle exactly on the edge, at a corner too, is predicted and learned from like any other."""
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    mu = torch.full((GRID.size,), 1 / GRID.size)
    inwards = 0.3 * (1 - 2 * corners)
    belief = learned.predict(corners, mu, inwards)
    torch.testing.assert_close(belief.mean, corners + inwards, atol=0.03, rtol=0)
    outwards = learned.predict(corners, mu, -inwards)
    assert torch.equal(outwards.mean, corners)
    data, _ = roam(FreeMotion(), 60, 0)
    edge = data._replace(
        positions=data.positions.round(), next_positions=data.positions.round(), actions=data.positions.round() - 0.5
    )
    assert all(value.isfinite().all() for value in fitted(kind, edge).state().values())


def test_gradients_exist_where_members_agree(learned: DynamicsModel) -> None:
    """Beyond the edge all members agree on the edge; the standard deviation there still has a gradient."""
    actions = torch.full((1, 2), 0.99, requires_grad=True)
    belief = learned.predict(torch.full((1, 2), 0.95), torch.full((GRID.size,), 1 / GRID.size), actions)
    (gradient,) = torch.autograd.grad(belief.epistemic.sum() + belief.mean.sum(), actions)
    assert gradient.isfinite().all()


def test_no_transitions_no_change(kind: str) -> None:
    """Fitting to nothing leaves the prior and the generator alone."""
    generator = torch.Generator().manual_seed(0)
    model = make(kind, generator)
    before = {name: value.clone() for name, value in model.state().items()}
    drawn = generator.get_state()
    model.fit(Transitions.empty(torch.zeros(GRID.size), 2), generator)
    assert torch.equal(generator.get_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in model.state().items())


def test_prior_members_disagree(kind: str) -> None:
    """Before any data the members already differ, so that exploration and certificates have something to go by."""
    model = make(kind, torch.Generator().manual_seed(0))
    belief = model.predict(GRID.centers(), torch.full((GRID.size,), 1 / GRID.size), torch.full((GRID.size, 2), 0.3))
    assert float(belief.epistemic.median()) > 0.1


def test_same_seed_same_fit(kind: str, roam: Roam) -> None:
    """A fit depends on data and generator alone, bit for bit."""
    data, _ = roam(FreeMotion(), 100, 0)
    first, second, other = (beliefs(fitted(kind, data, seed=seed), data) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first.deviations, other.deviations)


def test_stored_and_loaded_it_goes_on_bit_for_bit(kind: str, roam: Roam) -> None:
    """A loaded model predicts and keeps learning exactly as the one that was stored."""
    first, second = roam(FreeMotion(), 100, 0)[0], roam(FreeMotion(), 50, 1)[0]
    original = fitted(kind, first)
    stored = {name: value.clone() for name, value in original.state().items()}
    loaded = make(kind, torch.Generator().manual_seed(99))
    loaded.load_state(stored)
    believed = beliefs(original, second)
    assert all(torch.equal(a, b) for a, b in zip(believed, beliefs(loaded, second), strict=True))
    for model in (original, loaded):
        model.fit(first.join(second), torch.Generator().manual_seed(5))
    assert all(torch.equal(value, loaded.state()[name]) for name, value in original.state().items())
    assert not torch.equal(beliefs(original, second).mean, believed.mean)
    # Loading took copies: what was stored is untouched.
    again = make(kind, torch.Generator().manual_seed(99))
    again.load_state(stored)
    assert torch.equal(beliefs(again, second).mean, believed.mean)


def test_gradients_are_right(kind: str, roam: Roam) -> None:
    """In float64 the analytic gradients of all parts of a belief are those of finite differences."""
    data, _ = roam(FreeMotion(), 60, 0, dtype=torch.float64)
    model = fitted(kind, data)
    generator = torch.Generator().manual_seed(3)
    positions = 0.3 + 0.4 * torch.rand(3, 2, generator=generator, dtype=torch.float64)
    actions = 0.4 * torch.rand(2, 3, 2, generator=generator, dtype=torch.float64) - 0.2
    mu = torch.rand(2, GRID.size, generator=generator, dtype=torch.float64).add(0.5).div(GRID.size)

    def believe(actions: Tensor, mu: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        belief = model.predict(positions + shift, mu, actions)
        assert belief.mean.dtype == torch.float64
        return belief.mean, belief.epistemic, belief.deviations

    shift = torch.zeros(1, 2, dtype=torch.float64)
    inputs = [part.requires_grad_() for part in (actions, mu, shift)]
    assert torch.autograd.gradcheck(believe, inputs, eps=1e-7, atol=1e-5)


def test_global_generators_are_left_alone(kind: str, roam: Roam) -> None:
    """Nothing is drawn from torch's global generator, by libraries below either."""
    data, _ = roam(FreeMotion(), 100, 0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = beliefs(fitted(kind, data), data)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(beliefs(fitted(kind, data), data).deviations, first.deviations)
