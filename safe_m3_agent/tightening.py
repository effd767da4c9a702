"""By how much a constraint is tightened for what the model does not know."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mf_taxi_env.checks import finite_number, plain_numbers
from mf_taxi_env.mdp import MeanFieldMDP

#: A constraint tightened by this much is out of reach, and squares of it are still numbers in float32.
LARGEST_TIGHTENING = 1e4


@dataclass(frozen=True)
class LipschitzConfig:
    """Lipschitz constants that Lemma 2 of arXiv 2306.17052 assumes (Assumptions 1 to 3). They are the user's to vouch for.

    Attributes:
        motion: ``L_f`` of the true motion. 1 is right for free motion, ``s + a``.
        policy: ``L_pi`` of the policy. 1 is that of a fleet that heads for one place, ``a = p - s``.
        doubt: ``L_sigma`` of the epistemic standard deviation. 1 is that of the ensemble's prior: members are linear with
            coefficients of order one.
    """

    motion: float = 1.0
    policy: float = 1.0
    doubt: float = 1.0

    def __post_init__(self) -> None:
        plain_numbers(self)
        for name in ("motion", "policy", "doubt"):
            finite_number(f"lipschitz.{name}", getattr(self, name))

    def growth(self, beta: float) -> float:
        """``Lbar = 1 + 2 (1 + L_pi) (L_f + 2 beta L_sigma)``, by which an error may grow per step."""
        return 1.0 + 2.0 * (1.0 + self.policy) * (self.motion + 2.0 * beta * self.doubt)


def lipschitz_constants(mdp: MeanFieldMDP) -> Tensor:
    """``L_h`` of each constraint, ``[n_constraints]``."""
    return torch.tensor([constraint.lipschitz for constraint in mdp.constraints], dtype=mdp.dtype, device=mdp.device)


def accumulated_tightening(uncertainty: Tensor, lipschitz: Tensor) -> Tensor:
    """``L_h C_{n,t+1}`` with ``C_{n,t} = sum_{i<t} integral ||sigma(s, mu_i, pi)||_2 mu_i(ds)``.

    The form that the experiments of arXiv 2306.17052 (Section 5) use: the fleet's mean epistemic standard deviation, summed
    along the episode. It steers planning; what permits execution is the certificate.

    Args:
        uncertainty: Fleet's mean epistemic standard deviation per step, ``[..., T]``; or what else ``C`` grows by per step.
        lipschitz: ``L_h`` of each constraint, ``[n_constraints]``.

    Returns:
        ``[..., T, n_constraints]``: what to subtract from the margins of ``mu_1 .. mu_T``.
    """
    return uncertainty.cumsum(-1).unsqueeze(-1) * lipschitz


def lemma2_tightening(largest: Tensor, horizon: int, beta: float, lipschitz: LipschitzConfig) -> Tensor:
    """``C_{n,t} = t K_{n,t} max ||sigma||`` with ``K_{n,t} = 2 beta Lbar^(t-1)`` (arXiv 2306.17052, Lemma 2 and Appendix A).

    A bound on how far, in Wasserstein distance, the fleet may be from where it was planned to be. It is valid for every motion
    of the confidence set, and vacuous beyond a few steps: with the default constants ``Lbar`` is 33 at ``beta = 3.5``, and a
    city is one wide. Where it exceeds 10,000 it is that.

    Args:
        largest: ``max ||sigma||`` over all moves, ``[]``.
        horizon: ``T``.
        beta: Half-width of the confidence set in epistemic standard deviations.
        lipschitz: The constants.

    Returns:
        ``C_{n,1} .. C_{n,T}``, ``[T]``, before the constraint's ``L_h``.
    """
    steps = torch.arange(1, horizon + 1, dtype=torch.float64, device=largest.device)
    # In logarithms: the powers overflow any floating-point type within a horizon.
    growth = (steps - 1.0) * math.log(lipschitz.growth(beta))
    logarithm = (2.0 * beta * steps * largest.double()).log() + growth
    return logarithm.clamp_max(math.log(LARGEST_TIGHTENING)).exp().to(largest.dtype)
