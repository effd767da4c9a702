"""What executed episodes say of certificates: one that the truth refuted is withdrawn, and the next ones look further."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch

from mf_taxi_env import MeanFieldMDP, Trajectory
from safe_m3_agent.hallucination import fleet_reserve
from safe_m3_agent.policy import Policy


class Verdict(NamedTuple):
    """What an episode says of its policy."""

    refuted: bool  #: it had a certificate, and violates
    withdrawn: bool  #: it must give way to the one before


class Trust:
    """Judges executed policies by the constraints that their certificates promised.

    A certificate is evidence, not a proof: the true motion may lie outside the confidence set, or the search may have missed
    the worst of it. The fleet's own distribution shows it within an episode. The policy is then withdrawn in favour of the
    one before, if that was seen to be safe, and every later confidence set is twice as wide.

    Args:
        world: The true world.
        taxis: Size of the fleet that certificates are for, which is to keep the scatter of its margins, too; 0 for the mean
            field.
    """

    def __init__(self, world: MeanFieldMDP, taxis: int = 0) -> None:
        self.world = world
        self.taxis = taxis
        #: Whether the policy in use was seen to keep the constraints.
        self.seen_safe = False
        #: Certificates that the truth refuted.
        self.refuted = 0
        self._last = math.inf  # margin of the episode judged last

    @property
    def factor(self) -> float:
        """By how much refuted certificates have widened confidence sets: twice as wide for each."""
        return 2.0**self.refuted

    def judge(self, executed: Trajectory, *, taken: bool) -> Verdict:
        """Judge the policy of an episode, and remember what came of it.

        Args:
            executed: The episode in the true mean field.
            taken: Whether its policy was new, with a certificate.
        """
        self._last = self.margin(executed)
        safe = self._last >= 0
        if taken and not safe:
            self.refuted += 1
            return Verdict(refuted=True, withdrawn=self.seen_safe)  # what was not safe before either is nothing to go back to
        self.seen_safe = safe
        return Verdict(refuted=False, withdrawn=False)

    def margin(self, executed: Trajectory) -> float:
        """The smallest margin of an episode of the true mean field, as certificates promise it; infinite without any."""
        margins = executed.margins
        if self.taxis:
            margins = margins - fleet_reserve(self.world.constraints, executed.mu[1:], self.taxis)
        return float(margins.min()) if margins.numel() else math.inf

    def warn(self, episode: int) -> None:
        """Tell the user that the certificate of the episode judged last was refuted."""
        instead = "is withdrawn for the one before" if self.seen_safe else "stays in use, as the one before was not safe either"
        warnings.warn(
            f"the policy certified for episode {episode} violated a constraint{self._whose} (margin {self._last:.4f}): it "
            f"{instead}, and confidence sets are twice as wide from now on. A larger beta or more representative agents may "
            "prevent it",
            stacklevel=4,
        )

    def warn_of_unsafe_start(self, policy: Policy, name: str, *, certified: bool) -> None:
        """Tell the user that the first policy in use is not safe, before an episode is spent: the simulator knows.

        An operator knows it of staying put, too, as long as nothing moves taxis that do not want to and the trips are known.

        Args:
            policy: The first policy in use.
            name: What the user calls it.
            certified: Whether plans need a certificate.
        """
        until = "a policy is certified" if certified else "a plan keeps it"
        with torch.no_grad():
            margin = self.margin(self.world.rollout(policy))
        if margin >= 0:
            return
        warnings.warn(
            f"{name}, the first policy in use, violates a constraint{self._whose} (margin {margin:.4f}): episodes are unsafe "
            f"until {until}. Loosen the constraint, choose other cells or a shorter horizon, or hand in a policy that is safe, "
            "SafeM3UCRL(..., first=policy)",
            stacklevel=3,
        )

    @property
    def _whose(self) -> str:
        return f" as {self.taxis:,} taxis are to keep it" if self.taxis else ""

    def state(self) -> dict[str, Any]:
        """All that is carried from episode to episode, as JSON-able facts."""
        return {"seen_safe": self.seen_safe, "refuted": self.refuted}

    def load_state(self, facts: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave; there may be more beside it.

        Raises:
            KeyError: If something is missing.
        """
        self.seen_safe, self.refuted = bool(facts["seen_safe"]), int(facts["refuted"])
