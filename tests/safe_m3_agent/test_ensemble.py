"""The ensemble: it learns motion from few transitions, knows what it does not know, and can be stored whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mf_taxi_env import CongestedMotion, FreeMotion, Grid, Motion
from safe_m3_agent.model.dynamics_model import Belief
from safe_m3_agent.model.ensemble import EnsembleConfig, ProbabilisticEnsemble
from safe_m3_agent.model.truncated_likelihood import negative_log_likelihood
from safe_m3_agent.transitions import Transitions

GRID = Grid(6)
DEFAULT = EnsembleConfig()
Roam = Callable[..., tuple[Transitions, Tensor]]


def fitted(
    data: Transitions, config: EnsembleConfig = DEFAULT, *, seed: int = 0, noise_std: float = 0.0175
) -> ProbabilisticEnsemble:
    """An ensemble that has learned from ``data``."""
    generator = torch.Generator().manual_seed(seed)
    ensemble = ProbabilisticEnsemble(config, GRID, noise_std, generator)
    ensemble.fit(data, generator)
    return ensemble


def beliefs(ensemble: ProbabilisticEnsemble, data: Transitions) -> Belief:
    """About every transition in the distribution that it happened in; destinations ``[n, d]``."""
    belief = ensemble.predict(data.positions.unsqueeze(-2), data.mu, data.actions.unsqueeze(-2))
    return Belief(*(part.squeeze(-2) for part in belief))


def rms(values: Tensor) -> float:
    """Root mean square."""
    return float(values.square().mean().sqrt())


def member_means(ensemble: ProbabilisticEnsemble, data: Transitions) -> list[Tensor]:
    """Destinations of every member, one member and one product at a time, from the stored parameters."""
    state, means = ensemble.state(), []
    cell = data.mu.gather(-1, GRID.index(data.positions).unsqueeze(-1))
    raw = torch.cat([data.positions, data.actions, torch.log1p(GRID.size * cell)], -1)
    inputs = (raw - state["input_mean"]) / state["input_std"]
    act = torch.nn.functional.leaky_relu
    for e in range(ensemble.members):
        hidden = act(act(inputs @ state["w1"][e] + state["b1"][e]) @ state["w2"][e] + state["b2"][e])
        features = torch.cat([inputs, torch.ones(len(inputs), 1), hidden], -1)
        means.append((data.positions + features @ state["head"][e]).clamp(0, 1))
    return means


@pytest.fixture(scope="module")
def held_out(roam: Roam) -> tuple[Transitions, Tensor]:
    """Free moves that no ensemble has seen."""
    return roam(FreeMotion(), 2000, 1000)


@pytest.fixture(scope="module")
def learned(roam: Roam) -> ProbabilisticEnsemble:
    """Fitted to 300 free moves."""
    return fitted(roam(FreeMotion(), 300, 0)[0])


def test_learns_free_motion(learned: ProbabilisticEnsemble, held_out: tuple[Transitions, Tensor]) -> None:
    """300 moves are enough to know destinations to a fraction of the noise, with an uncertainty that covers the error."""
    data, goals = held_out
    belief = beliefs(learned, data)
    error = (belief.mean - goals).abs()
    assert rms(error) < 0.01
    assert float((error <= 3 * belief.epistemic + 1e-4).all(-1).float().mean()) >= 0.95
    assert rms(belief.epistemic) < 0.02  # and does not cover by believing nothing


@pytest.mark.parametrize("motion", [FreeMotion(), CongestedMotion(GRID, 0.2)], ids=["free", "congested"])
def test_more_data_less_doubt(motion: Motion, roam: Roam) -> None:
    """Uncertainty and error shrink as transitions come in, and the uncertainty keeps covering the error."""
    data, goals = roam(motion, 2000, 1000)
    few, many = (beliefs(fitted(roam(motion, n, 0)[0]), data) for n in (60, 800))
    assert rms(many.epistemic) < 0.6 * rms(few.epistemic)
    assert rms(many.mean - goals) < 0.7 * rms(few.mean - goals)
    for belief in (few, many):
        assert float(((belief.mean - goals).abs() <= 3 * belief.epistemic + 1e-4).float().mean()) >= 0.95


def test_sees_congestion(roam: Roam) -> None:
    """The density is an input that is used: without it, moves that shorten with density cannot be learned."""
    motion = CongestedMotion(GRID, 0.2)
    (data, _), (test, goals) = roam(motion, 500, 0), roam(motion, 2000, 1000)
    seeing = beliefs(fitted(data), test)
    flat_data, flat_test = (part._replace(mu=torch.full_like(part.mu, 1 / GRID.size)) for part in (data, test))
    blind = beliefs(fitted(flat_data), flat_test)
    assert rms(seeing.mean - goals) < 0.02
    assert rms(seeing.mean - goals) < 0.4 * rms(blind.mean - goals)


def test_doubts_what_it_has_not_seen(roam: Roam) -> None:
    """Trained on short moves to one side only, it is much less sure of long moves to the other, wherever they start."""
    data, _ = roam(FreeMotion(), 1500, 0)
    seen = (data.actions > 0).all(-1) & (data.actions < 0.4).all(-1)
    ensemble = fitted(Transitions(*(part[seen] for part in data)))
    inner = GRID.centers()[((GRID.centers() - 0.5).abs() < 0.3).all(-1)]
    mu = torch.full((GRID.size,), 1 / GRID.size)
    near, far = (ensemble.predict(inner, mu, move * inner / inner.abs()).epistemic for move in (0.2, -0.6))
    reachable = (inner - 0.6 > -0.1).all(-1)
    assert rms(far[reachable]) > 1.5 * rms(near[reachable])


def test_members_together_are_members_one_by_one(learned: ProbabilisticEnsemble, held_out: tuple[Transitions, Tensor]) -> None:
    """The batched products give each member's own network; mean and standard deviation are over members."""
    data, _ = held_out
    belief, means = beliefs(learned, data), torch.stack(member_means(learned, data))
    torch.testing.assert_close(belief.mean, means.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(belief.epistemic, means.std(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(belief.deviations * (learned.members - 1) ** 0.5, means - means.mean(0), atol=1e-5, rtol=0)


def test_deviations_square_to_the_epistemic_variance(
    learned: ProbabilisticEnsemble, held_out: tuple[Transitions, Tensor]
) -> None:
    """What adversaries combine and what is hallucinated are the same uncertainty."""
    belief = beliefs(learned, held_out[0])
    torch.testing.assert_close(belief.deviations.square().sum(0).sqrt().clamp_min(1e-6), belief.epistemic, rtol=1e-4, atol=1e-7)
    assert float(belief.deviations.sum(0).abs().max()) < 1e-6


def test_batched_prediction_equals_loop(learned: ProbabilisticEnsemble) -> None:
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


def test_noise_is_aleatoric_only(learned: ProbabilisticEnsemble, held_out: tuple[Transitions, Tensor]) -> None:
    """The known noise is reported as aleatoric and does not inflate what is hallucinated."""
    belief = beliefs(learned, held_out[0])
    torch.testing.assert_close(belief.aleatoric, torch.full_like(belief.aleatoric, 0.0175))
    assert float(belief.epistemic.median()) < 0.0175


def test_learns_the_noise_where_asked(roam: Roam) -> None:
    """With a variance head the noise is found from a start twice too small."""
    data, _ = roam(FreeMotion(), 800, 0, noise_std=0.05)
    config = EnsembleConfig(members=4, steps=600, learning_rate=1e-2, learn_noise=True)
    belief = beliefs(fitted(data, config, noise_std=0.025), roam(FreeMotion(), 500, 1000)[0])
    assert float(belief.aleatoric.median()) == pytest.approx(0.05, rel=0.2)


def test_members_see_different_data(roam: Roam) -> None:
    """Each member has its own bootstrap and its own held-out share; weights of old transitions never change."""
    generator = torch.Generator().manual_seed(0)
    first, second = (roam(FreeMotion(), n, seed)[0] for n, seed in ((200, 0), (100, 1)))
    config = EnsembleConfig(steps=0, rounds=0, validation=0.2)
    ensemble = ProbabilisticEnsemble(config, GRID, 0.0175, generator)
    ensemble.fit(first, generator)
    before = ensemble.state()["bootstrap"].clone()
    ensemble.fit(first.join(second), generator)
    after = ensemble.state()["bootstrap"]
    assert after.shape == (10, 300) and torch.equal(after[:, :200], before)
    assert not torch.equal(after[0], after[1])
    assert float((after < 0).float().mean()) == pytest.approx(0.2, abs=0.03)
    assert float(after[after >= 0].mean()) == pytest.approx(1.0, abs=0.08)


def test_bootstrap_weights_matter(roam: Roam) -> None:
    """Members differ by what they have seen: among moves of a member's weight zero, corrupted ones leave it alone."""
    data, _ = roam(FreeMotion(), 200, 0)
    config = EnsembleConfig(steps=0, rounds=0)
    clean = fitted(data, config)
    ignored = clean.state()["bootstrap"][0] <= 0
    assert 40 < int(ignored.sum()) < 120
    landings = torch.where(
        ignored.unsqueeze(-1), torch.rand(200, 2, generator=torch.Generator().manual_seed(2)), data.next_positions
    )
    spoiled = fitted(data._replace(next_positions=landings), config)
    torch.testing.assert_close(spoiled.state()["head"][0], clean.state()["head"][0])
    assert not torch.allclose(spoiled.state()["head"][1], clean.state()["head"][1], atol=1e-2)


def held_out_losses(ensemble: ProbabilisticEnsemble, data: Transitions) -> Tensor:
    """Every member's loss on what it held out, ``[E]``."""
    held = ensemble.state()["bootstrap"] < 0
    losses = [
        negative_log_likelihood(data.next_positions, mean, torch.tensor(0.0175)).sum(-1)
        for mean in member_means(ensemble, data)
    ]
    return torch.stack([loss[mask].mean() for loss, mask in zip(losses, held, strict=True)])


def test_early_stopping_per_member(roam: Roam) -> None:
    """Rounds that help some members and harm others are kept for the first and undone for the second."""
    data, _ = roam(CongestedMotion(GRID, 0.2), 300, 0)
    config = EnsembleConfig(rounds=1, steps=60, learning_rate=0.1)
    before = held_out_losses(fitted(data, replace(config, rounds=0)), data)
    after = held_out_losses(fitted(data, config), data)
    assert (after <= before + 1e-3).all()
    improved = after < before - 1e-3
    assert improved.any() and not improved.all()


def test_training_is_not_lost_without_held_out_data(roam: Roam) -> None:
    """With nothing to stop early by, the rounds that were trained are kept."""
    data, _ = roam(CongestedMotion(GRID, 0.2), 100, 0)
    config = EnsembleConfig(members=3, validation=0.0)
    untrained, trained = (fitted(data, replace(config, rounds=rounds)).state()["w1"] for rounds in (0, 2))
    assert not torch.equal(untrained, trained)


def test_positions_on_the_edge(learned: ProbabilisticEnsemble, roam: Roam) -> None:
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
    assert all(value.isfinite().all() for value in fitted(edge).state().values())


def test_gradients_exist_where_members_agree(learned: ProbabilisticEnsemble) -> None:
    """Beyond the edge all members agree on the edge; the standard deviation there still has a gradient."""
    actions = torch.full((1, 2), 0.99, requires_grad=True)
    belief = learned.predict(torch.full((1, 2), 0.95), torch.full((GRID.size,), 1 / GRID.size), actions)
    (gradient,) = torch.autograd.grad(belief.epistemic.sum() + belief.mean.sum(), actions)
    assert gradient.isfinite().all()


def test_no_transitions_no_change() -> None:
    """Fitting to nothing leaves the prior and the generator alone."""
    generator = torch.Generator().manual_seed(0)
    ensemble = ProbabilisticEnsemble(EnsembleConfig(), GRID, 0.0175, generator)
    before = {name: value.clone() for name, value in ensemble.state().items()}
    drawn = generator.get_state()
    ensemble.fit(Transitions.empty(torch.zeros(GRID.size), 2), generator)
    assert torch.equal(generator.get_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in ensemble.state().items())


def test_prior_members_disagree() -> None:
    """Before any data the members already differ, so that exploration and certificates have something to go by."""
    ensemble = ProbabilisticEnsemble(EnsembleConfig(), GRID, 0.0175, torch.Generator().manual_seed(0))
    belief = ensemble.predict(GRID.centers(), torch.full((GRID.size,), 1 / GRID.size), torch.full((GRID.size, 2), 0.3))
    assert float(belief.epistemic.median()) > 0.1


def test_same_seed_same_fit(roam: Roam) -> None:
    """A fit depends on data and generator alone, bit for bit."""
    data, _ = roam(FreeMotion(), 100, 0)
    config = EnsembleConfig(members=3, steps=20)
    first, second, other = (fitted(data, config, seed=seed).state() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head"], other["head"])


def test_stored_and_loaded_it_goes_on_bit_for_bit(roam: Roam) -> None:
    """A loaded ensemble predicts and keeps learning exactly as the one that was stored."""
    first, second = roam(FreeMotion(), 100, 0)[0], roam(FreeMotion(), 50, 1)[0]
    config = EnsembleConfig(members=3, steps=20)
    original = fitted(first, config)
    stored = {name: value.clone() for name, value in original.state().items()}
    loaded = ProbabilisticEnsemble(config, GRID, 0.0175, torch.Generator().manual_seed(99))
    loaded.load_state(stored)
    assert all(torch.equal(a, b) for a, b in zip(beliefs(original, second), beliefs(loaded, second), strict=True))
    for ensemble in (original, loaded):
        ensemble.fit(first.join(second), torch.Generator().manual_seed(5))
    assert all(torch.equal(value, loaded.state()[name]) for name, value in original.state().items())
    assert not torch.equal(original.state()["head"], stored["head"])  # and loading took copies
    assert torch.equal(stored["head"], fitted(first, config).state()["head"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 1}, "members must be at least 2, got 1"),
        ({"hidden": (16,)}, "hidden must be two positive widths"),
        ({"hidden": (16, 0)}, "hidden must be two positive widths"),
        ({"validation": 1.0}, "validation must lie in"),
        ({"validation": float("nan")}, "validation must lie in"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"batch_size": 0}, "batch_size at least 1"),
        ({"learning_rate": 0.0}, "must be positive"),
        ({"residual_scale": -1.0}, "residual_scale must be positive"),
        ({"density_scale": 0.0}, "density_scale must be positive"),
        ({"learning_rate": float("nan")}, "must be positive"),
    ],
)
def test_settings_are_validated(options: dict[str, object], message: str) -> None:
    """Nonsense is refused where it enters."""
    with pytest.raises(ValueError, match=message):
        EnsembleConfig(**options)  # type: ignore[arg-type]
