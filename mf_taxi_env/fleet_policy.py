"""A policy as the taxis of a fleet see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

#: Taxis per call of what ``at`` gives: hidden layers stay in a CPU's cache, and keep a GPU busy.
POLICY_CHUNK = {"cpu": 1 << 12, "cuda": 1 << 18}


class FleetPolicy(Protocol):
    """A policy as a taxi sees it. It may offer more, which is then used:

    - ``field(mu, t)`` gives the actions ``[K, d]`` at the cell centres, all that a fleet at cell resolution needs;
    - ``at(mu, t)`` gives a function from positions ``[n, d]`` to actions ``[n, d]`` that has done once what depends on the
      distribution. It is asked in chunks, as each taxi's action depends on nobody else's position.
    """

    def __call__(self, positions: Tensor, mu: Tensor, t: int) -> Tensor:
        """Actions ``[m, d]`` in ``[-1, 1]`` of taxis at ``positions`` ``[m, d]``, given ``mu`` ``[K]`` after trips."""
        ...


def offered(policy: FleetPolicy, name: str) -> Callable[[Tensor, int], Any] | None:
    """A method ``name(mu, t)`` of a policy, where it has one; data of that name is none."""
    method = getattr(policy, name, None)
    return method if callable(method) else None


def by_position(policy: FleetPolicy, mu: Tensor, t: int) -> Callable[[Tensor], Tensor]:
    """The policy of step ``t`` as a function from positions ``[n, d]`` to actions ``[n, d]``, checked."""
    at = offered(policy, "at")
    if at is None:
        return lambda positions: checked(policy(positions, mu, t), positions.shape, t)
    ask = at(mu, t)

    def act(positions: Tensor) -> Tensor:
        size = POLICY_CHUNK.get(positions.device.type, POLICY_CHUNK["cuda"])
        return checked(torch.cat([ask(chunk) for chunk in positions.split(size)]), positions.shape, t)

    return act


def checked(actions: Tensor, shape: torch.Size, t: int) -> Tensor:
    """Actions of taxis or cells at step ``t``.

    Raises:
        ValueError: If they have another shape, are not finite, or leave ``[-1, 1]``.
    """
    if actions.shape != shape:
        raise ValueError(f"actions must have shape {tuple(shape)}, got {tuple(actions.shape)} at step {t}")
    low, high = actions.aminmax()
    # NaN compares false, so it is refused as well.
    if not bool(torch.maximum(high, -low) <= 1.0):
        wrong = float(actions[~(actions.abs() <= 1.0)][0])
        raise ValueError(f"actions must be finite and lie in [-1, 1], got {wrong!r} at step {t}")
    return actions
