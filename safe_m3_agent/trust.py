"""What executed episodes say of certificates: one that the truth refuted is withdrawn, and the next ones look further."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from mf_taxi_env import MeanFieldMDP, Trajectory
from safe_m3_agent.hallucination import fleet_reserve
from safe_m3_agent.policy import Policy


class Trust:
    """Judges executed policies by the constraints that their certificates promised.

    A certificate is evidence, not a proof: the true motion may lie outside the confidence set, or the search may have missed
    the worst of it. The fleet's own distribution shows it within an episode. The policy is then withdrawn in favour of the
    one before, if that was seen to be safe, and every later confidence set is twice as wide.
    """

    def __init__(self) -> None:
        #: Whether the policy in use was seen to keep the constraints.
        self.seen_safe = False
        #: Certificates that the truth refuted.
        self.refuted = 0

    @property
    def factor(self) -> float:
        """By how much refuted certificates have widened confidence sets: twice as wide for each."""
        return 2.0**self.refuted

    def withdraws(self, executed: Trajectory, *, taken: bool) -> bool:
        """Whether the policy of an episode must give way to the one before.

        Args:
            executed: The episode in the true mean field.
            taken: Whether its policy was new, with a certificate.
        """
        safe = int(executed.violations) == 0
        if taken and not safe:
            self.refuted += 1
            return self.seen_safe  # what was not safe before either is nothing to go back to
        self.seen_safe = safe
        return False

    def warn(self, episode: int, margin: float) -> None:
        """Tell the user that a certificate was refuted."""
        instead = "is withdrawn for the one before" if self.seen_safe else "stays in use, as the one before was not safe either"
        warnings.warn(
            f"the policy certified for episode {episode} violated a constraint (margin {margin:.4f}): it {instead}, and "
            "confidence sets are twice as wide from now on. A larger beta or more representative agents may prevent it",
            stacklevel=4,
        )

    def state(self) -> dict[str, Any]:
        """All that is carried from episode to episode, as JSON-able facts."""
        return {"seen_safe": self.seen_safe, "refuted": self.refuted}

    def load_state(self, facts: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave; there may be more beside it.

        Raises:
            KeyError: If something is missing.
        """
        self.seen_safe, self.refuted = bool(facts["seen_safe"]), int(facts["refuted"])


def warn_of_unsafe_start(world: MeanFieldMDP, policy: Policy, name: str, taxis: int, *, stacklevel: int) -> None:
    """Tell the user that the first policy in use is not safe, before an episode is spent: the simulator knows.

    An operator knows it of staying put, too, as long as nothing moves taxis that do not want to and the trips are known.

    Args:
        world: The true world.
        policy: The first policy in use.
        name: What the user calls it.
        taxis: Size of the fleet that plans are for; 0 for the mean field.
        stacklevel: Of the warning, as seen by the caller.
    """
    with torch.no_grad():
        start = world.rollout(policy)
        margins = start.margins - fleet_reserve(world.constraints, start.mu[1:], taxis) if taxis else start.margins
    if not margins.numel() or float(margins.min()) >= 0:
        return
    whose = f" as {taxis:,} taxis are to keep it" if taxis else ""
    warnings.warn(
        f"{name}, the first policy in use, violates a constraint{whose} (margin {float(margins.min()):.4f}): episodes are "
        "unsafe until a policy is certified. Loosen the constraint, choose other cells or a shorter horizon, or hand in a "
        "policy that is safe, SafeM3UCRL(..., first=policy)",
        stacklevel=stacklevel + 1,
    )
