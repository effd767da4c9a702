"""What a Gaussian process per axis knows after noisy observations, exactly or through inducing inputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: Added to the inducing values' variance, relative to the residual's: keeps a Cholesky factor of points close together.
JITTER = 1e-6

#: Variance of the noise of an observation that is left out.
LEFT_OUT = 1e6


class LinearPlusRBF(NamedTuple):
    """A kernel per output axis: ``linear^2 (1 + x x') + residual^2 exp(-|(x - x') / lengthscale|^2 / 2)``."""

    linear: float  #: prior standard deviation of the linear part's coefficients, its bias among them
    residual: Tensor  #: standard deviation of the squared-exponential part [d]
    lengthscale: Tensor  #: [d, i], one per axis and input

    def covariance(self, a: Tensor, b: Tensor) -> Tensor:
        """Prior covariances ``[d, n, m]``.

        Args:
            a: Inputs ``[n, i]``.
            b: Inputs ``[m, i]``.
        """
        scale = self.lengthscale.unsqueeze(1)
        distance = torch.cdist(a / scale, b / scale, compute_mode="donot_use_mm_for_euclid_dist")
        bump: Tensor = (-0.5 * distance.square()).exp() * self.residual[:, None, None].square()
        return bump + self.linear**2 * (1.0 + a @ b.mT)

    def variance(self, a: Tensor) -> Tensor:
        """Prior variances ``[d, n]`` at inputs ``[n, i]``."""
        return self.linear**2 * (1.0 + a.square().sum(-1)) + self.residual.square().unsqueeze(-1)


class Observations(NamedTuple):
    """Noisy values of the functions."""

    inputs: Tensor  #: [n, i]
    values: Tensor  #: [d, n]
    variance: Tensor  #: of the noise [d, n]


class Posterior:
    """A process per axis after noisy observations; exact, or sparse where there are inducing inputs.

    Both have the mean ``k(x, C) v``: exact with ``C = X`` and ``v = (K + N)^{-1} y``; sparse with ``C = Z`` and
    ``v = (K_ZZ + K_ZX N^{-1} K_XZ)^{-1} K_ZX N^{-1} y``, the optimal variational posterior (Titsias 2009, Eq. 10).

    Args:
        kernel: The kernel.
        inputs: Where values were observed, ``[n, i]``.
        variance: Of their noise, ``[d, n]``.
        inducing: ``Z``, ``[m, i]``; ``None`` for the exact posterior.
    """

    def __init__(self, kernel: LinearPlusRBF, inputs: Tensor, variance: Tensor, inducing: Tensor | None) -> None:
        self.kernel = kernel
        #: The inputs ``C`` that the posterior's kernel functions are centred at.
        self.centers = inputs if inducing is None else inducing
        self._precision = variance.rsqrt().unsqueeze(1)
        cross = kernel.covariance(self.centers, inputs)
        self._root: Tensor | None = None
        if inducing is None:
            # Divided by the noise, for it differs by ten orders between what is known well and what is left out.
            self._cross = self._precision.mT * cross
            gram = self._cross * self._precision
        else:
            self._root = inducing_root(kernel, inducing)
            self._cross = torch.linalg.solve_triangular(self._root, cross, upper=False) * self._precision
            gram = self._cross @ self._cross.mT
        self._factor = torch.linalg.cholesky(gram + torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))

    def weights(self, targets: Tensor) -> Tensor:
        """Weights ``v`` ``[d, |C|, c]`` for targets ``y`` ``[d, n, c]``."""
        solved = self._solved(targets)
        if self._root is None:
            return self._precision.mT * solved
        weights: Tensor = torch.linalg.solve_triangular(self._root.mT, solved, upper=True)
        return weights

    def marginals(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances ``[d, n]`` where the values ``[d, n]`` were observed.

        Sparse variances are those that the inducing values leave open, without what inducing values can say nothing about.
        """
        half = torch.linalg.solve_triangular(self._factor, self._cross, upper=False)
        mean = (self._cross.mT @ self._solved(values.unsqueeze(-1))).squeeze(-1)
        spread = half.square().sum(1)
        if self._root is None:
            return mean, self.kernel.variance(self.centers) - spread
        precision = self._precision.squeeze(1)
        return mean / precision, spread / precision.square()

    def _solved(self, targets: Tensor) -> Tensor:
        scaled = targets * self._precision.mT
        moments = scaled if self._root is None else self._cross @ scaled
        return torch.cholesky_solve(moments, self._factor)


def greedy_inducing(kernel: LinearPlusRBF, inputs: Tensor, most: int, tolerance: float) -> Tensor:
    """Inducing inputs among ``inputs``, each where the ones before it leave most of the prior variance unexplained.

    A partial pivoted Cholesky factorisation (Burt, Rasmussen and van der Wilk, *Convergence of Sparse Variational Inference in
    Gaussian Processes Regression*, JMLR 2020, Section 4.2.1), on the sum of the axes' variances.

    Args:
        kernel: The kernel.
        inputs: ``[n, i]``.
        most: Largest number of inducing inputs, at least 1.
        tolerance: Unexplained variance at which no more are needed.

    Returns:
        ``[m, i]`` with ``m`` at least 1 and at most the smaller of ``most`` and ``n``.
    """
    left = kernel.variance(inputs)
    axes, n = left.shape
    rows = left.new_zeros(axes, min(most, n), n)
    chosen: list[int] = []
    for count in range(min(most, n)):
        pivot = int(left.sum(0).argmax())
        if count and float(left[:, pivot].sum()) <= tolerance:
            break
        chosen.append(pivot)
        explained = (rows[:, :count, pivot].unsqueeze(1) @ rows[:, :count]).squeeze(1)
        row = kernel.covariance(inputs[pivot : pivot + 1], inputs).squeeze(1) - explained
        rows[:, count] = row / left[:, pivot : pivot + 1].clamp_min(JITTER**2).sqrt()
        left = (left - rows[:, count].square()).clamp_min(0.0)
    return inputs[chosen]


def inducing_root(kernel: LinearPlusRBF, inducing: Tensor) -> Tensor:
    """Cholesky factor of the prior covariance of inducing values ``[d, m, m]``."""
    jitter = (JITTER * kernel.residual.square()).unsqueeze(-1).expand(-1, len(inducing))
    root: Tensor = torch.linalg.cholesky(kernel.covariance(inducing, inducing) + torch.diag_embed(jitter))
    return root
