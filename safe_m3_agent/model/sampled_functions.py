"""Functions sampled from a Gaussian process's posterior, by pathwise conditioning: smooth, cheap and differentiable.

Matheron's rule turns a draw ``f`` from the prior into one from the posterior, ``f + k(., X) (K + N)^{-1} (y - f(X) - e)`` with
``e`` a draw of the noise (Wilson et al., *Efficiently Sampling Functions from Gaussian Process Posteriors*, ICML 2020, Eq. 12).
The linear part of the prior is exact, its squared-exponential part a sum of random cosines (Rahimi and Recht 2007); what the
data say about either enters through the exact kernel.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from safe_m3_agent.model.posterior import LinearPlusRBF, Observations, Posterior, inducing_root


class Draws(NamedTuple):
    """The random numbers behind ``E`` sampled functions, float64; each is centred over the functions.

    They are drawn once and kept, so that function ``e`` of one fit and of the next differ by what was learned alone: worst
    cases found in one episode keep their meaning in the next. As they are centred, the functions average to the posterior mean
    exactly, and their unbiased variance is an unbiased estimate of the posterior's.
    """

    frequencies: Tensor  #: standard normal [d, i, F]; the same for all functions
    phases: Tensor  #: uniform in [0, 2 pi) [d, 1, F]; the same for all functions
    waves: Tensor  #: weights of the cosines [d, F, E]
    linear: Tensor  #: coefficients of the linear part, the bias last [d, i + 1, E]
    noise: Tensor  #: noise of every observation [d, n, E]

    @classmethod
    def of(cls, axes: int, width: int, features: int, members: int, generator: torch.Generator) -> Draws:
        """Draws for ``axes`` outputs of ``width`` inputs, without observations."""
        device = generator.device

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64, device=device)

        phases = torch.rand(axes, 1, features, generator=generator, dtype=torch.float64, device=device) * (2.0 * math.pi)
        waves, linear = normal(axes, features, members), normal(axes, width + 1, members)
        return cls(normal(axes, width, features), phases, _centred(waves), _centred(linear), waves.new_zeros(axes, 0, members))

    def extended(self, n: int, generator: torch.Generator) -> Draws:
        """These draws, with noise for ``n`` observations; the noise of old ones does not change."""
        axes, known, members = self.noise.shape
        new = torch.randn(axes, n - known, members, generator=generator, dtype=self.noise.dtype, device=self.noise.device)
        return self._replace(noise=torch.cat([self.noise, _centred(new)], 1))

    def prior(self, kernel: LinearPlusRBF, inputs: Tensor) -> Tensor:
        """The functions before any observation ``[d, n, E]``, less their mean, at inputs ``[n, i]``."""
        frequencies, waves, linear = self.prior_weights(kernel)
        cosines = torch.cos(inputs @ frequencies + self.phases)
        return cosines @ waves + inputs @ linear[:, :-1] + linear[:, -1:]

    def prior_weights(self, kernel: LinearPlusRBF) -> tuple[Tensor, Tensor, Tensor]:
        """Frequencies ``[d, i, F]``, weights of the cosines ``[d, F, E]`` and of the linear part ``[d, i + 1, E]``."""
        features = self.phases.shape[-1]
        waves = self.waves * (kernel.residual[:, None, None] * math.sqrt(2.0 / features))
        return self.frequencies / kernel.lengthscale.unsqueeze(-1), waves, self.linear * kernel.linear


class SampledFunctions(NamedTuple):
    """``E`` functions ``[n, i] -> [n, d]``: a linear part, cosines, and kernel functions about ``m`` centres."""

    linear: Tensor  #: [d, i, E]
    bias: Tensor  #: [d, 1, E]
    frequencies: Tensor  #: [d, i, F]
    phases: Tensor  #: [d, 1, F]
    waves: Tensor  #: [d, F, E]
    inverse_scale: Tensor  #: one over the length scales [d, 1, i]
    centers: Tensor  #: in units of the length scales, transposed [d, i, m]
    bumps: Tensor  #: [d, m, E]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Values ``[E, n, d]`` at inputs ``[n, i]``; differentiable in the inputs, once."""
        values: Tensor = _Evaluation.apply(inputs, self)  # type: ignore[no-untyped-call]
        return values


class _Evaluation(torch.autograd.Function):
    """Values of sampled functions. Automatic differentiation would keep, negate and copy what fits in two products here."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, functions: SampledFunctions) -> Tensor:
        x = inputs.expand(len(functions.bias), -1, -1)
        arguments = torch.baddbmm(functions.phases, x, functions.frequencies)
        # |x - c|^2 / 2 from a product: no array of differences.
        scaled = x * functions.inverse_scale
        offset = -0.5 * functions.centers.square().sum(1, keepdim=True)
        nearness = torch.baddbmm(offset, scaled, functions.centers)
        bumps = nearness.sub_(0.5 * scaled.square().sum(-1, keepdim=True)).exp_()
        ctx.functions = functions
        ctx.save_for_backward(scaled, bumps, arguments)
        values = torch.baddbmm(functions.bias, x, functions.linear)
        values.baddbmm_(arguments.cos(), functions.waves)
        return values.baddbmm_(bumps, functions.bumps).permute(2, 1, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        functions: SampledFunctions = ctx.functions
        scaled, bumps, arguments = ctx.saved_tensors
        slopes = slope.permute(2, 1, 0)
        near = torch.bmm(slopes, functions.bumps.mT).mul_(bumps)
        pulled = torch.bmm(near, functions.centers.mT).sub_(scaled * near.sum(-1, keepdim=True)).mul_(functions.inverse_scale)
        waves = torch.bmm(slopes, functions.waves.mT).mul_(arguments.sin())
        pulled.baddbmm_(waves, functions.frequencies.mT, alpha=-1)
        return pulled.baddbmm_(slopes, functions.linear.mT).sum(0), None


def sample_posterior(kernel: LinearPlusRBF, seen: Observations, inducing: Tensor | None, draws: Draws) -> SampledFunctions:
    """Functions from the posterior, float64.

    Args:
        kernel: The kernel.
        seen: ``n`` observations, which may be none.
        inducing: Inducing inputs ``[m, i]`` of a sparse posterior; ``None`` for the exact one.
        draws: Random numbers, with noise for ``n`` observations.
    """
    noise = draws.noise * seen.variance.sqrt().unsqueeze(-1)
    if inducing is None:
        prior = draws.prior(kernel, seen.inputs)
    else:
        # What a sparse posterior knows of a function at X is what its inducing values say.
        through = torch.cholesky_solve(draws.prior(kernel, inducing), inducing_root(kernel, inducing))
        prior = kernel.covariance(seen.inputs, inducing) @ through
    posterior = Posterior(kernel, seen.inputs, seen.variance, inducing)
    centers, weights = posterior.centers, posterior.weights(seen.values.unsqueeze(-1) - prior - noise)
    frequencies, waves, linear = draws.prior_weights(kernel)
    # The linear kernel's share of k(x, C) v is linear in x: nothing of it is left to compute later.
    linear = linear + kernel.linear**2 * torch.cat([centers.mT @ weights, weights.sum(1, keepdim=True)], 1)
    inverse_scale = kernel.lengthscale.reciprocal().unsqueeze(1)
    return SampledFunctions(
        linear[:, :-1],
        linear[:, -1:],
        frequencies,
        draws.phases,
        waves,
        inverse_scale,
        (centers * inverse_scale).mT,
        weights * kernel.residual[:, None, None].square(),
    )


def _centred(draws: Tensor) -> Tensor:
    return draws - draws.mean(-1, keepdim=True)
