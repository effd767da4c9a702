"""What executed episodes say of certificates: one that the truth refuted is withdrawn, and the next ones look further."""

from __future__ import annotations

import warnings
from typing import Any

from mf_taxi_env import Trajectory


class Trust:
    """Judges executed policies by the constraints that their certificates promised.

    A certificate is evidence, not a proof: the true motion may lie outside the confidence set, or the search may have missed
    the worst of it. The fleet's own distribution shows it within an episode. The policy is then withdrawn in favour of the
    one before, which was seen to be safe, and every later confidence set is twice as wide.
    """

    def __init__(self) -> None:
        #: Whether the policy in use was seen to keep the constraints.
        self.seen_safe = False
        #: Certificates that the truth refuted.
        self.refuted = 0

    def width(self, beta: float, least: float) -> float:
        """Half-width of a confidence set that would be ``beta``: doubled per withdrawal, and then at least twice ``least``."""
        return 2.0**self.refuted * max(beta, least) if self.refuted else beta

    def withdraws(self, executed: Trajectory, *, taken: bool) -> bool:
        """Whether the policy of an episode must give way to the one before.

        Args:
            executed: The episode in the true mean field.
            taken: Whether its policy was new, with a certificate.
        """
        if int(executed.violations) == 0:
            self.seen_safe = True
        elif taken and self.seen_safe:
            self.refuted += 1
            return True
        else:  # not safe before either: there is nothing to go back to
            self.seen_safe = False
        return False

    def warn(self, episode: int, margin: float) -> None:
        """Tell the user that a certificate was refuted."""
        warnings.warn(
            f"the policy certified for episode {episode} violated a constraint (margin {margin:.4f}): it is withdrawn for the "
            "one before, and confidence sets are twice as wide from now on. A larger beta or more representative agents may "
            "prevent it",
            stacklevel=5,
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
