"""Calibration of the confidence set: are epistemic standard deviations as large as the errors that they stand for?

Before the model learns from an episode it has predicted it: these landings are held out. What they show is how far predictions
were off, noise included, so the share that is not noise has to be inferred. The agent widens its confidence set by what it
finds (recalibration of a model on held-out transitions: Malik et al. 2019, *Calibrated Model-Based Deep Reinforcement
Learning*), so that Assumption 4 of arXiv 2306.17052 is checked rather than hoped for.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from mf_taxi_env.space import Space
from safe_m3_agent.model.dynamics_model import Belief

#: Predictions nearer to an edge than so many noise standard deviations are left out: landings there are pushed inwards.
EDGE = 2.0
#: Unless the landing is farther away than so many predictive standard deviations: then the prediction is wrong, edge or not.
WRONG = 4.0
#: Episodes that the factor is estimated from, the last ones: older models were wrong in their own ways.
WINDOW = 10
#: Prior standard deviation of ``log tau``.
PRIOR_STD = 0.5
#: Factors considered.
FACTORS = np.geomspace(1.0, 100.0, 101)
#: From so many degrees of freedom on Student's distribution is a Gaussian.
GAUSSIAN = 1e6


class HeldOut(NamedTuple):
    """Predictions of landings that the model had not learned from, and what came of them."""

    residual: Tensor  #: from the predicted destination to the landing, NaN where left out at an edge [n, d]
    noise: Tensor  #: standard deviation of the noise, the predicted one where that is smaller than the world's [n, d]
    epistemic: Tensor  #: predicted standard deviation of the destination [n, d]
    tau: Tensor  #: factor by which the agent widened the latter at the time [n]

    @classmethod
    def of_landings(cls, belief: Belief, landings: Tensor, space: Space, tau: float, noise_std: float) -> HeldOut:
        """Compare a belief with what came of it.

        Noise is known. A model that learns its level takes errors of its own for noise, and would pass for right with it: more
        than the world has is not granted.

        A landing near an edge says little: truncated noise is pushed inwards and is smaller. Predictions near one are therefore
        left out, by the prediction and not by the landing, which would favour some errors over others; only a landing too
        far off for any edge to explain is kept.

        Args:
            belief: About the moves, ``[n, d]``.
            landings: ``[n, d]``.
            space: What they are points of.
            tau: The present factor.
            noise_std: Standard deviation of the world's noise.

        Raises:
            FloatingPointError: If a prediction is no number, which is not to pass for one that was left out.
        """
        if not all(bool(part.isfinite().all()) for part in (belief.mean, belief.epistemic, belief.aleatoric)):
            raise FloatingPointError("the model predicts landings that are no numbers")
        residual, noise = space.displacement(belief.mean, landings), belief.aleatoric.clamp_max(noise_std)
        if not space.periodic:
            near = torch.minimum(belief.mean, 1.0 - belief.mean) < EDGE * noise_std
            wrong = residual.abs() > WRONG * torch.hypot(noise, tau * belief.epistemic)
            residual = residual.masked_fill(near & ~wrong, math.nan)
        return cls(residual, noise, belief.epistemic, residual.new_full(residual.shape[:1], tau))

    @classmethod
    def join(cls, *parts: HeldOut) -> HeldOut:
        """These, one after the other."""
        return cls(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    @classmethod
    def empty(cls, like: Tensor, dimension: int) -> HeldOut:
        """Nothing predicted yet, in the type and on the device of ``like``."""
        none = like.new_zeros(0, dimension)
        return cls(none, none, none, like.new_zeros(0))


class Scores(NamedTuple):
    """Residuals of single coordinates that were not left out, in float64, ``[m]`` each."""

    residual: NDArray[np.float64]
    noise: NDArray[np.float64]
    epistemic: NDArray[np.float64]
    tau: NDArray[np.float64]

    @classmethod
    def of(cls, held_out: HeldOut) -> Scores:
        """The coordinates that count."""
        residual, noise, epistemic, tau = (part.detach().double().cpu().numpy() for part in held_out)
        counts = ~np.isnan(residual)
        return cls(residual[counts], noise[counts], epistemic[counts], np.broadcast_to(tau[:, None], counts.shape)[counts])


class Calibration:
    """What held-out landings say of a model's epistemic standard deviations.

    A residual is noise plus the error of the model, ``r ~ N(0, s^2) + tau g T_{E-1}``: with ``tau = 1`` the epistemic standard
    deviation ``g``, itself an estimate from ``E`` members, is what it claims to be. The sum is taken as Student's with variance
    scale ``v = s^2 + tau^2 g^2`` and ``nu = (E - 1) (v / (tau g)^2)^2`` degrees of freedom (Satterthwaite 1946, Welch 1947),
    which is exact where noise or doubt rules alone. Heavy tails keep a single odd landing from deciding.

    The factor ``tau_n`` is the most probable one of at least 1, under a half-normal prior on ``log tau``: a dozen landings move
    it a little, a hundred a lot, and none leave it at 1. Where it explains the landings no better than 1 does, by a
    likelihood-ratio test of level ``delta`` (Wilks 1938), it is 1: chance alone widens nothing. The test is stricter than that.

    A conformal quantile of ``|r| / g`` would need no distribution, but cannot tell doubt from noise, which is most of a
    residual once a model is any good.

    Args:
        members: Members of the model, ``E``.
        moves: Coordinates that one vehicle's moves of an episode have, ``d T``, at least 1.
        per_episode: Transitions per episode, at least 1.
        delta: Share of episodes in which a confidence set may be left, and level of the test, in ``(0, 1)``.
        sets: Confidence sets that share ``delta``: another where trips are learned.
        like: A tensor of the type and on the device of what will be added.
        dimension: ``d``.
    """

    def __init__(
        self, *, members: int, moves: int, per_episode: int, delta: float, like: Tensor, dimension: int, sets: int = 1
    ) -> None:
        self.degrees = max(1, members - 1)
        self.window = WINDOW * per_episode
        self.delta = delta
        # Every coordinate of every step has to lie in the set, so each may fail with its part of delta alone (Bonferroni).
        #: ``z``: with it one vehicle's moves of an episode, all steps and coordinates, are in the set with probability
        #: ``1 - delta`` at least, where standard deviations are right.
        self.quantile = float(stats.norm.isf(delta / (2 * moves * sets)))
        # One-sided: twice the logarithm of the likelihood ratio is the square of a standard normal, or nothing.
        self._evidence = 0.5 * max(0.0, float(stats.norm.isf(delta))) ** 2
        #: All held-out transitions so far, in order.
        self.held_out = HeldOut.empty(like, dimension)

    def add(self, episode: HeldOut) -> None:
        """Take in an episode's held-out transitions."""
        self.held_out = HeldOut.join(self.held_out, episode)

    @property
    def tau(self) -> float:
        """The factor ``tau_n >= 1`` by which epistemic standard deviations are too small, from the window."""
        scores = Scores.of(HeldOut(*(part[-self.window :] for part in self.held_out)))
        fits = [self._log_likelihood(scores, tau) - 0.5 * (math.log(tau) / PRIOR_STD) ** 2 for tau in FACTORS]
        best = int(np.argmax(fits))
        return float(FACTORS[best]) if fits[best] - fits[0] > self._evidence else 1.0

    def share_within(self, held_out: HeldOut) -> float:
        """Share of landing coordinates within their predictive interval of level ``1 - delta``; NaN where none counts."""
        levels = self.levels(held_out)
        return float((levels <= 1.0 - self.delta).mean()) if len(levels) else math.nan

    def levels(self, held_out: HeldOut, *, recalibrated: bool = True) -> NDArray[np.float64]:
        """Level of the smallest predictive interval that holds each landing, ``[m]``: uniform on [0, 1] if all is as predicted.

        Args:
            held_out: Predictions and landings.
            recalibrated: With the factors of the time; else as the model said.
        """
        scores = Scores.of(held_out)
        scale, degrees = self._predictive(scores, scores.tau if recalibrated else np.ones_like(scores.tau))
        return np.asarray(1.0 - 2.0 * stats.t.sf(np.abs(scores.residual) / scale, degrees), dtype=np.float64)

    def _log_likelihood(self, scores: Scores, tau: float) -> float:
        scale, degrees = self._predictive(scores, tau)
        return float(stats.t.logpdf(scores.residual / scale, degrees).sum() - np.log(scale).sum())

    def _predictive(self, scores: Scores, tau: float | NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scale and degrees of freedom of the residuals."""
        doubt = np.maximum((tau * scores.epistemic) ** 2, 1e-12)
        variance = scores.noise**2 + doubt
        return np.sqrt(variance), np.minimum(self.degrees * (variance / doubt) ** 2, GAUSSIAN)
