"""Hyperparameters of the Gaussian process by GPyTorch: marginal likelihood, exact or its variational bound. Extra ``gp``."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from safe_m3_agent.model.posterior import LinearPlusRBF, Observations

try:
    import gpytorch
    from gpytorch.constraints import GreaterThan, Positive
    from gpytorch.distributions import MultivariateNormal
    from gpytorch.kernels import ConstantKernel, InducingPointKernel, LinearKernel, RBFKernel, ScaleKernel
    from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
    from gpytorch.mlls import ExactMarginalLogLikelihood
    from gpytorch.priors import NormalPrior
    from linear_operator.utils.errors import NanError, NotPSDError
    from linear_operator.utils.warnings import NumericalWarning
except ImportError as error:
    raise ImportError("Gaussian processes need GPyTorch: pip install 'safe-m3-taxi[gp]'") from error

#: Standard deviation of the priors of residual and length scale, on a logarithmic scale: with fewer than some fifty transitions
#: a wider one leads to processes that are too sure of being linear.
PRIOR_SPREAD = 0.35
#: The residual is never believed to be smaller than this share of its prior median: few data always look linear.
LEAST_RESIDUAL = 1 / 3
#: Share above that bound at which a fit begins at least: nearer to it a step on the logarithm of what exceeds it moves nothing.
CLEAR = 0.05

#: An observation whose variance is less than this many times the noise's is a plain landing, far from the edge.
PLAIN = 1.1


class GaussianProcessModel(gpytorch.models.ExactGP):  # type: ignore[misc]  # GPyTorch is not typed
    """GPyTorch's view of the process, batched over axes: zero mean, :class:`LinearPlusRBF`, known noise per observation.

    Args:
        kernel: Where the hyperparameters start.
        prior: Medians of their priors: the residual ``[d]`` and length scales ``[d, i]``.
        seen: The observations.
        inducing: Inducing inputs ``[m, i]``; ``None`` for the exact process.
    """

    def __init__(self, kernel: LinearPlusRBF, prior: LinearPlusRBF, seen: Observations, inducing: Tensor | None = None) -> None:
        axes, width = kernel.lengthscale.shape
        batch = torch.Size([axes])
        # GPyTorch would round variances up to a floor, with a warning: a world's noise is as small as it is.
        with gpytorch.settings.min_fixed_noise(double_value=0.0):
            likelihood = FixedNoiseGaussianLikelihood(seen.variance, batch_shape=batch)
        super().__init__(seen.inputs.expand(axes, -1, -1), seen.values, likelihood)
        least = (LEAST_RESIDUAL * prior.residual).square()
        bump = RBFKernel(
            ard_num_dims=width,
            batch_shape=batch,
            lengthscale_prior=_of_logarithm(prior.lengthscale.log().unsqueeze(1), PRIOR_SPREAD),
            # Logarithms, not GPyTorch's softplus: a step changes a long length scale by as large a share as a short one.
            lengthscale_constraint=Positive(torch.exp, torch.log),
        )
        residual = ScaleKernel(
            bump,
            batch_shape=batch,
            outputscale_prior=_of_logarithm(2.0 * prior.residual.log(), 2.0 * PRIOR_SPREAD),
            outputscale_constraint=GreaterThan(least, torch.exp, torch.log),
        )
        linear, bias = LinearKernel(batch_shape=batch), ConstantKernel(batch_shape=batch)
        covariance = residual + linear + bias
        self.covariance = covariance
        # In a tuple it is not registered a second time, or GPyTorch would count its priors twice.
        self._residual = (residual,)
        if inducing is not None:
            self.covariance = InducingPointKernel(covariance, inducing.expand(axes, -1, -1).clone(), likelihood)
        self.to(seen.inputs)
        self.requires_grad_(False)
        linear.variance = seen.values.new_full((axes, 1, 1), kernel.linear**2)
        bias.constant = seen.values.new_full((axes, 1), kernel.linear**2)
        bump.lengthscale = kernel.lengthscale.unsqueeze(1)
        residual.outputscale = torch.maximum(kernel.residual.square(), least * (1.0 + CLEAR))
        residual.requires_grad_(True)

    @property
    def residual(self) -> Any:
        """The part that bends, GPyTorch's ``ScaleKernel``: its hyperparameters are those that are learned."""
        return self._residual[0]

    def forward(self, inputs: Tensor) -> Any:
        """The prior at inputs ``[d, n, i]``."""
        return MultivariateNormal(inputs.new_zeros(inputs.shape[:-1]), self.covariance(inputs))


def _of_logarithm(median: Tensor, spread: float) -> Any:
    """A Gaussian density of the logarithm, on which Adam climbs: it is largest at the median. A log-normal one of the number
    itself is largest below it."""
    return NormalPrior(median, torch.full_like(median, spread), transform=torch.log)


def learn_hyperparameters(
    kernel: LinearPlusRBF,
    noise: Tensor,
    prior: LinearPlusRBF,
    seen: Observations,
    inducing: Tensor | None,
    *,
    steps: int,
    learning_rate: float,
    learn_noise: bool,
) -> tuple[LinearPlusRBF, Tensor]:
    """Climb the posterior density of the hyperparameters for some steps of Adam, on the logarithms.

    The marginal likelihood is exact without inducing inputs, and Titsias's bound (2009, Eq. 9) with them. Nothing is random.

    Args:
        kernel: Where to start.
        noise: Standard deviation of the noise well inside the city ``[d]``.
        prior: Medians of the priors.
        seen: The observations, with the noise that ``noise`` gives them.
        inducing: Inducing inputs ``[m, i]``, or ``None``.
        steps: Steps of Adam.
        learning_rate: Of Adam.
        learn_noise: Whether the noise is a hyperparameter as well.

    Returns:
        Kernel and noise after the last step.

    Raises:
        torch.linalg.LinAlgError: If a covariance has no Cholesky factor, whatever jitter is added.
    """
    model = GaussianProcessModel(kernel, prior, seen, inducing)
    objective = ExactMarginalLogLikelihood(model.likelihood, model)
    change = torch.zeros_like(noise).unsqueeze(-1).requires_grad_(learn_noise)
    parameters = [*model.residual.parameters(), *([change] if learn_noise else [])]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    # Landings near the edge have a variance of their own, and values that follow from it: nothing to learn noise from.
    plain = seen.variance < PLAIN * noise.square().unsqueeze(-1)
    # Without a Cholesky factorisation GPyTorch would draw random vectors from the global generator.
    with warnings.catch_warnings(), gpytorch.settings.max_cholesky_size(len(seen.inputs) + 1):
        # Inducing inputs close together need jitter, which GPyTorch adds and reports.
        warnings.simplefilter("ignore", NumericalWarning)
        try:
            for _ in range(steps):
                if learn_noise:
                    model.likelihood.noise_covar.noise = torch.where(plain, seen.variance * (2.0 * change).exp(), seen.variance)
                optimizer.zero_grad()
                loss = -objective(model(*model.train_inputs), model.train_targets).sum()
                loss.backward()
                optimizer.step()
        except (NotPSDError, NanError) as error:  # as torch says it, which knows nothing of GPyTorch
            raise torch.linalg.LinAlgError(str(error)) from error  # type: ignore[attr-defined]
    lengthscale = model.residual.base_kernel.lengthscale.detach().squeeze(1).clone()
    learned = LinearPlusRBF(kernel.linear, model.residual.outputscale.detach().sqrt(), lengthscale)
    return learned, noise * change.detach().squeeze(-1).exp()
