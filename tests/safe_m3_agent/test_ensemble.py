"""The ensemble: it learns motion from few transitions, knows what it does not know, and can be stored whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mf_taxi_env import CongestedMotion, FreeMotion, Grid
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


def test_members_together_are_members_one_by_one(learned: ProbabilisticEnsemble, held_out: tuple[Transitions, Tensor]) -> None:
    """The batched products give each member's own network; mean and standard deviation are over members."""
    data, _ = held_out
    belief, means = beliefs(learned, data), torch.stack(member_means(learned, data))
    torch.testing.assert_close(belief.mean, means.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(belief.epistemic, means.std(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(belief.deviations * (learned.members - 1) ** 0.5, means - means.mean(0), atol=1e-5, rtol=0)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 1}, "ensemble.members must be an integer >= 2, got 1"),
        ({"hidden": (16,)}, "ensemble.hidden must be two widths, got"),
        ({"hidden": (16, 0)}, r"ensemble.hidden\[1\] must be an integer >= 1, got 0"),
        ({"validation": 1.0}, "validation must lie in"),
        ({"validation": float("nan")}, "validation must lie in"),
        ({"steps": -1}, "ensemble.steps must be an integer >= 0, got -1"),
        ({"batch_size": 0}, "ensemble.batch_size must be an integer >= 1, got 0"),
        ({"learning_rate": 0.0}, "must be a finite number > 0"),
        ({"residual_scale": -1.0}, "residual_scale must be a finite number > 0"),
        ({"density_scale": 0.0}, "density_scale must be a finite number > 0"),
        ({"learning_rate": float("nan")}, "must be a finite number > 0"),
    ],
)
def test_settings_are_validated(options: dict[str, object], message: str) -> None:
    """Nonsense is refused where it enters."""
    with pytest.raises(ValueError, match=message):
        EnsembleConfig(**options)  # type: ignore[arg-type]
