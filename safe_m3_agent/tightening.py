"""By how much a constraint is tightened for what the model does not know."""

from __future__ import annotations

import torch
from torch import Tensor

from mf_taxi_env.mdp import MeanFieldMDP


def lipschitz_constants(mdp: MeanFieldMDP) -> Tensor:
    """``L_h`` of each constraint, ``[n_constraints]``."""
    return torch.tensor([constraint.lipschitz for constraint in mdp.constraints], dtype=mdp.dtype, device=mdp.device)


def accumulated_tightening(uncertainty: Tensor, lipschitz: Tensor) -> Tensor:
    """``L_h C_{n,t+1}`` with ``C_{n,t} = sum_{i<t} integral ||sigma(s, mu_i, pi)||_2 mu_i(ds)``.

    The form that the experiments of arXiv 2306.17052 (Section 5) use: the fleet's mean epistemic standard deviation, summed
    along the episode. It steers planning; what permits execution is the certificate.

    Args:
        uncertainty: Fleet's mean epistemic standard deviation per step, ``[..., T]``.
        lipschitz: ``L_h`` of each constraint, ``[n_constraints]``.

    Returns:
        ``[..., T, n_constraints]``: what to subtract from the margins of ``mu_1 .. mu_T``.
    """
    return uncertainty.cumsum(-1).unsqueeze(-1) * lipschitz
