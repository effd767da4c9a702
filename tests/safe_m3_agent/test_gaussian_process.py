"""The Gaussian process: its functions are those of GPyTorch's posterior, exact or sparse, and few data leave it in doubt."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import gpytorch
import pytest
import torch
from torch import Tensor

from mf_taxi_env import CongestedMotion, FreeMotion, Grid, Motion
from safe_m3_agent.model.dynamics_model import Belief
from safe_m3_agent.model.gaussian_process import GaussianProcess, GPConfig, GPKind
from safe_m3_agent.model.marginal_likelihood import GaussianProcessModel, learn_hyperparameters
from safe_m3_agent.model.posterior import LEFT_OUT, LinearPlusRBF, Observations, Posterior, greedy_inducing
from safe_m3_agent.model.sampled_functions import Draws, sample_posterior
from safe_m3_agent.transitions import Transitions

GRID = Grid(6)
DEFAULT = GPConfig()
Roam = Callable[..., tuple[Transitions, Tensor]]


def fitted(data: Transitions, config: GPConfig = DEFAULT, *, seed: int = 0, noise_std: float = 0.0175) -> GaussianProcess:
    """A process that has learned from ``data``."""
    generator = torch.Generator().manual_seed(seed)
    model = GaussianProcess(config, GRID, noise_std, generator, dtype=data.positions.dtype)
    model.fit(data, generator)
    return model


def beliefs(model: GaussianProcess, data: Transitions) -> Belief:
    """About every transition in the distribution that it happened in; destinations ``[n, d]``."""
    belief = model.predict(data.positions.unsqueeze(-2), data.mu, data.actions.unsqueeze(-2))
    return Belief(*(part.squeeze(-2) for part in belief))


def tensor(*values: float) -> Tensor:
    """In float64."""
    return torch.tensor(values, dtype=torch.float64)


KERNEL = LinearPlusRBF(0.7, tensor(0.3, 0.5), tensor(1.0, 2.0, 0.7, 1.0, 1.5, 1.0).view(2, 3))


@pytest.fixture(scope="module")
def seen() -> Observations:
    """Two functions of three inputs, seen at 60 places with noise of every size, one place left out."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    values = torch.stack([inputs[:, 0].sin(), inputs[:, 1] * inputs[:, 2].cos()])
    variance = 0.01 * (1 + torch.rand(2, 60, generator=generator, dtype=torch.float64))
    variance[:, 7] = LEFT_OUT
    noise = variance.sqrt() * torch.randn(2, 60, generator=generator, dtype=torch.float64)
    return Observations(inputs, values + torch.where(variance < LEFT_OUT, noise, 0.0), variance)


@pytest.fixture(scope="module")
def elsewhere() -> Tensor:
    """Inputs between and beyond those seen."""
    return 1.5 * torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def by_gpytorch(seen: Observations, inducing: Tensor | None, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation ``[d, n]`` as GPyTorch has them."""
    model = GaussianProcessModel(KERNEL, KERNEL, seen, inducing).eval()
    # The corrected diagonal is another approximation's (FITC); and inputs equal to those seen are warned of.
    with torch.no_grad(), gpytorch.settings.sgpr_diagonal_correction(False), gpytorch.settings.debug(False):
        batch = inputs.expand(2, -1, -1)
        posterior = model(batch)
        # Without it, what inducing values can say nothing about is missing from a sparse posterior's variance.
        beyond = KERNEL.variance(inputs) - model.covariance(batch, diag=True)
        return posterior.mean, (posterior.variance + beyond).sqrt()


@pytest.mark.parametrize("most", [None, 15])
def test_posterior_is_gpytorchs(seen: Observations, elsewhere: Tensor, most: int | None) -> None:
    """Functions sampled by pathwise conditioning have the mean and spread of an independent implementation, sparse ones too."""
    inducing = None if most is None else greedy_inducing(KERNEL, seen.inputs, most, 0.0)
    mean, std = by_gpytorch(seen, inducing, elsewhere)
    posterior = Posterior(KERNEL, seen.inputs, seen.variance, inducing)
    weights = posterior.weights(seen.values.unsqueeze(-1))
    ours = (KERNEL.covariance(elsewhere, posterior.centers) @ weights).squeeze(-1)
    torch.testing.assert_close(ours, mean, atol=1e-4, rtol=1e-4)
    generator = torch.Generator().manual_seed(2)
    draws = Draws.of(2, 3, 2000, 4000, generator).extended(60, generator)
    values = sample_posterior(KERNEL, seen, inducing, draws)(elsewhere)
    torch.testing.assert_close(values.mean(0).mT, ours, atol=1e-8, rtol=0)
    torch.testing.assert_close(values.std(0).mT, std, rtol=0.1, atol=0.01)


def test_sampled_functions_vary_together(seen: Observations, elsewhere: Tensor) -> None:
    """Deviations are jointly those of the posterior: covariances between places, not only variances, are GPyTorch's."""
    with torch.no_grad():
        expected = GaussianProcessModel(KERNEL, KERNEL, seen).eval()(elsewhere.expand(2, -1, -1)).covariance_matrix
    generator = torch.Generator().manual_seed(2)
    draws = Draws.of(2, 3, 2000, 4000, generator).extended(60, generator)
    values = sample_posterior(KERNEL, seen, None, draws)(elsewhere)
    for axis in range(2):
        ours = values[..., axis].mT.cov()
        assert float((ours - expected[axis]).norm() / expected[axis].norm()) < 0.1


def test_marginals_are_what_is_known_where_it_was_seen(seen: Observations) -> None:
    """The variances that expectation propagation divides by, exact and through as many inducing inputs as observations."""
    mean, std = by_gpytorch(seen, None, seen.inputs)
    for inducing in (None, seen.inputs):
        ours, variance = Posterior(KERNEL, seen.inputs, seen.variance, inducing).marginals(seen.values)
        torch.testing.assert_close(ours, mean, atol=1e-4, rtol=0)
        torch.testing.assert_close(variance.sqrt(), std, atol=1e-3, rtol=1e-2)


def test_inducing_inputs_stop_where_enough_is_explained(seen: Observations) -> None:
    """Repeated inputs bring nothing new: as many are chosen as there are different ones, and no two the same."""
    repeated = seen.inputs[:9].repeat(20, 1)
    chosen = greedy_inducing(KERNEL, repeated, 64, 1e-9)
    assert len(chosen) == 9 and len(chosen.unique(dim=0)) == 9
    assert len(greedy_inducing(KERNEL, seen.inputs, 5, 0.0)) == 5


def test_a_covariance_without_a_factor_is_an_error_of_linear_algebra(seen: Observations) -> None:
    """Said in torch's words, so that who catches it need not know GPyTorch."""
    broken = seen._replace(values=torch.full_like(seen.values, torch.nan))
    with pytest.raises(torch.linalg.LinAlgError):
        learn_hyperparameters(KERNEL, tensor(0.1, 0.1), KERNEL, broken, None, steps=2, learning_rate=0.1, learn_noise=False)


@pytest.mark.parametrize("most", [None, 40])
def test_learning_climbs_the_marginal_likelihood(seen: Observations, elsewhere: Tensor, most: int | None) -> None:
    """From a bad start, hyperparameters are found under which the values are far more likely and better predicted."""
    start = LinearPlusRBF(0.7, tensor(0.05, 0.05), torch.full((2, 3), 6.0, dtype=torch.float64))
    truth = torch.stack([elsewhere[:, 0].sin(), elsewhere[:, 1] * elsewhere[:, 2].cos()])
    near = (elsewhere.abs() < 1.5).all(-1)
    inducing = None if most is None else greedy_inducing(KERNEL, seen.inputs, most, 0.0)
    learned, noise = learn_hyperparameters(
        start, tensor(0.1, 0.1), start, seen, inducing, steps=100, learning_rate=0.1, learn_noise=False
    )
    assert torch.equal(noise, tensor(0.1, 0.1))
    errors = []
    for kernel in (start, learned):
        posterior = Posterior(kernel, seen.inputs, seen.variance, inducing)
        values = (kernel.covariance(elsewhere, posterior.centers) @ posterior.weights(seen.values.unsqueeze(-1))).squeeze(-1)
        errors.append(float((values - truth)[:, near].square().mean().sqrt()))
    assert errors[1] < 0.5 * errors[0]
    # The first function does not depend on its second and third input, and its length scales come to say so.
    assert float(learned.lengthscale[0, 0]) < 0.6 * float(learned.lengthscale[0, 1:].min())


@pytest.mark.parametrize("most", [None, 5])
def test_priors_count_once(seen: Observations, most: int | None) -> None:
    """GPyTorch adds up the priors of whatever it finds, a part that is registered in two places twice."""
    model = GaussianProcessModel(KERNEL, KERNEL, seen, None if most is None else seen.inputs[:most])
    assert len(list(model.named_priors())) == 2
    nothing = Observations(seen.inputs[:1], seen.values[:, :1], torch.full((2, 1), LEFT_OUT, dtype=torch.float64))
    start = LinearPlusRBF(KERNEL.linear, 1.5 * KERNEL.residual, 0.7 * KERNEL.lengthscale)
    inducing = None if most is None else seen.inputs[:most]
    steps: dict[str, Any] = {"steps": 400, "learning_rate": 0.05, "learn_noise": False}
    learned, _ = learn_hyperparameters(start, tensor(0.1, 0.1), KERNEL, nothing, inducing, **steps)
    # What is most believed before anything was seen is the median that the settings name.
    torch.testing.assert_close(learned.residual, KERNEL.residual, rtol=0.02, atol=0)
    torch.testing.assert_close(learned.lengthscale, KERNEL.lengthscale, rtol=0.02, atol=0)


def test_a_residual_that_was_small_can_grow(seen: Observations) -> None:
    """Many fits of linear motion leave it at its bound; what bends is to be believed within a few more."""
    bent = seen._replace(variance=torch.full_like(seen.variance, 1e-4))
    flat = bent._replace(values=0.5 * seen.inputs[:, :2].mT)
    kernel, steps = KERNEL, {"steps": 10, "learning_rate": 0.1, "learn_noise": False}
    for _ in range(30):
        kernel, _ = learn_hyperparameters(kernel, tensor(0.1, 0.1), KERNEL, flat, None, **steps)  # type: ignore[arg-type]
    small = kernel.residual
    torch.testing.assert_close(small, KERNEL.residual / 3, rtol=0.01, atol=0)
    for _ in range(6):
        kernel, _ = learn_hyperparameters(kernel, tensor(0.1, 0.1), KERNEL, bent, None, **steps)  # type: ignore[arg-type]
    assert (kernel.residual > 2.0 * small).all()


@pytest.mark.parametrize("most", [None, 10])
def test_learning_from_many_observations_draws_nothing(most: int | None) -> None:
    """From some size on GPyTorch estimates determinants with random vectors of the global generator, unless told not to."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(820, 3, generator=generator, dtype=torch.float64)
    many = Observations(inputs, inputs[:, :2].mT.sin(), torch.full((2, 820), 0.01, dtype=torch.float64))
    inducing = None if most is None else inputs[:most]
    before = torch.get_rng_state()
    learn_hyperparameters(KERNEL, tensor(0.1, 0.1), KERNEL, many, inducing, steps=1, learning_rate=0.1, learn_noise=False)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("motion", [FreeMotion(), CongestedMotion(GRID, 0.05)], ids=["free", "congested"])
@pytest.mark.parametrize("n", [12, 24, 48])
def test_few_data_leave_doubt(motion: Motion, n: int, roam: Roam) -> None:
    """After one episode of one taxi already, the ball that certificates search holds the truth nearly everywhere."""
    data, goals = roam(motion, 1000, 1000)
    covered = []
    for seed in range(4):
        belief = beliefs(fitted(roam(motion, n, seed)[0], seed=seed), data)
        covered.append(float(((belief.mean - goals).abs() <= 4.2 * belief.epistemic + 1e-4).all(-1).float().mean()))
    assert sum(covered) / 4 >= 0.93


@pytest.mark.parametrize("kind", ["exact", "sparse"])
def test_edges_do_not_bend_the_process(kind: GPKind, roam: Roam) -> None:
    """Half of all random moves end at the edge; near it predictions are biased by less than a fifth of the noise."""
    noise_std = 0.05
    model = fitted(roam(FreeMotion(), 400, 0, noise_std=noise_std)[0], GPConfig(kind=kind), noise_std=noise_std)
    data, goals = roam(FreeMotion(), 4000, 1000)
    near = ((goals - 0.5).abs() > 0.5 - noise_std) & (goals > 0) & (goals < 1)
    inwards = (beliefs(model, data).mean - goals) * (0.5 - goals).sign()
    assert abs(float(inwards[near].mean())) < 0.2 * noise_std


def test_learns_the_noise_where_asked(roam: Roam) -> None:
    """From a start twice too small the noise is found within three fits, though half of the landings lie at the edge."""
    data, _ = roam(FreeMotion(), 400, 0, noise_std=0.05)
    generator = torch.Generator().manual_seed(0)
    model = GaussianProcess(GPConfig(learn_noise=True), GRID, 0.025, generator)
    for _ in range(3):
        model.fit(data, generator)
    aleatoric = beliefs(model, data).aleatoric
    assert aleatoric.flatten().tolist() == pytest.approx([0.05] * 800, rel=0.15)


def test_single_precision_is_enough(roam: Roam) -> None:
    """A world in float32 gets the predictions of one in float64: sums of many kernel functions do not cancel to noise."""
    single, _ = roam(CongestedMotion(GRID, 0.2), 400, 0)
    double = Transitions(*(part.double() if part.is_floating_point() else part for part in single))
    for config in (DEFAULT, GPConfig(kind="exact")):
        few, many = beliefs(fitted(single, config), single), beliefs(fitted(double, config), double)
        assert few.mean.dtype == torch.float32
        assert float((few.mean - many.mean).abs().max()) < 2e-4
        assert float((few.epistemic - many.epistemic).abs().max()) < 2e-4


def test_functions_keep_their_meaning(roam: Roam) -> None:
    """One more episode changes a sampled function less than another function is away: adversaries of old stay adversaries."""
    first, second = roam(FreeMotion(), 120, 0)[0], roam(FreeMotion(), 12, 1)[0]
    generator = torch.Generator().manual_seed(0)
    model = GaussianProcess(DEFAULT, GRID, 0.0175, generator)
    test, _ = roam(FreeMotion(), 300, 1000)
    model.fit(first, generator)
    model.fit(first, generator)
    before = beliefs(model, test).deviations
    model.fit(first.join(second), generator)
    after = beliefs(model, test).deviations
    same = torch.nn.functional.cosine_similarity(before.flatten(1), after.flatten(1), dim=-1)
    other = torch.nn.functional.cosine_similarity(before.flatten(1), after.roll(1, 0).flatten(1), dim=-1)
    assert float(same.mean()) > 0.7 > float(other.abs().mean()) + 0.3


def test_exact_learns_from_a_subset_and_knows_all(roam: Roam) -> None:
    """The cost of hyperparameters is bounded; transitions that they were not learned from still lower the doubt."""
    data, _ = roam(FreeMotion(), 200, 0)
    fewer = Transitions.of(data.positions[:50], data.mu[:50], data.actions[:50], data.next_positions[:50])
    exact = GPConfig(kind="exact", subset=50)
    doubts = [float(beliefs(fitted(seen, exact), data).epistemic.mean()) for seen in (fewer, data)]
    assert doubts[1] < 0.8 * doubts[0]


def test_gpytorch_is_asked_for_by_its_extra() -> None:
    """The package imports without GPyTorch; a process asks for it by the extra's name as soon as it is made."""
    script = """
import sys
sys.modules["gpytorch"] = None
from safe_m3_agent import Config, SafeM3UCRL
from mf_taxi_env import TaxiMDP, load_scenario
world = TaxiMDP(load_scenario("shenzhen", cells=5))
SafeM3UCRL(world)
try:
    SafeM3UCRL(world, Config(model="gp"))
except ImportError as error:
    print(error)
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "Gaussian processes need GPyTorch: pip install 'safe-m3-taxi[gp]'"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "dense"}, r"kind must be one of \('exact', 'sparse'\), got 'dense'"),
        ({"inducing": 0}, "gp.inducing must be an integer >= 1, got 0"),
        ({"members": 1}, "gp.members must be an integer >= 2, got 1"),
        ({"features": 0}, "gp.features must be an integer >= 1, got 0"),
        ({"steps": -1}, "gp.steps must be an integer >= 0, got -1"),
        ({"subset": 0}, "gp.subset must be an integer >= 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number > 0, got 0.0"),
        ({"linear_scale": float("inf")}, "linear_scale must be a finite number > 0, got inf"),
        ({"residual_scale": -1.0}, "residual_scale must be a finite number > 0, got -1.0"),
        ({"lengthscale": float("nan")}, "lengthscale must be a finite number > 0, got nan"),
    ],
)
def test_settings_are_validated(options: dict[str, object], message: str) -> None:
    """Nonsense is refused where it enters."""
    with pytest.raises(ValueError, match=message):
        GPConfig(**options)  # type: ignore[arg-type]
