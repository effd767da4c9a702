"""What an algorithm is handed to show how far it has come: it judges, keeps time, and writes the learning curve."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from baselines.algorithm import Budget
from baselines.curve import Curve, Row
from baselines.judgement import Judge
from mf_taxi_env.checks import whole_number
from mf_taxi_env.mdp import Field


class CurveRecorder:
    """A :class:`~baselines.algorithm.Recorder` whose clock runs from its making on, and stands still while it judges.

    Of a run that was killed it keeps the rows with fewer steps than the first new record, and time goes on from the last of
    them: an algorithm that goes on from what it saved has their time to its account, one that starts anew has none. Of rows
    with as many steps the last is replaced, and those before are kept: one that records once more where it had come to is not
    younger there than it was, nor is a planner that makes no steps while its curve grows. At 0 steps that is so where the
    algorithm had saved something; else it starts anew.

    Args:
        judge: Judges policies.
        curve: The run's learning curve, with the rows from before.
        budget: How long the run may learn.
        resumed: Whether the algorithm finds something that an earlier start of the run has saved.
        clock: Tells the time in seconds.
    """

    def __init__(
        self,
        judge: Judge,
        curve: Curve,
        budget: Budget,
        *,
        resumed: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.judge = judge
        self.curve = curve
        self.budget = budget
        self.resumed = resumed
        self._clock = clock
        self._before = curve.rows[-1].seconds if curve.rows else 0.0
        self._counted = 0.0
        self._since = clock()
        self._last: Row | None = None  # of this start
        self._left = True

    @property
    def seconds(self) -> float:
        """Time of learning so far, over all starts of the run."""
        return self._before + self._counted + self._clock() - self._since

    def __call__(self, policy: Field, *, env_steps: int, episodes: int, violated: int) -> bool:
        """See :class:`~baselines.algorithm.Recorder`.

        Raises:
            ValueError: If a count is no whole number or falls, more episodes are violated than executed, or steps were made
                after the budget was used up.
            BoundExceededError: If the policy keeps the constraints and earns more than is possible.
        """
        device = self.judge.world.device
        if device.type == "cuda":  # what is queued there is learning, not evaluation
            torch.cuda.synchronize(device)
        self._counted += self._clock() - self._since
        env_steps = whole_number("env_steps", env_steps, least=0)
        if self._last is None:
            self._go_on(env_steps)
        self._check(env_steps, whole_number("episodes", episodes, least=0), whole_number("violated", violated, least=0))
        seconds = self._before + self._counted
        judgement, _ = self.judge(policy)
        self._last = Row(env_steps, seconds, episodes, violated, *judgement)
        self.curve.append(self._last)
        self._left = env_steps < self.budget.env_steps and seconds < self.budget.seconds
        self._since = self._clock()
        return self._left

    def _go_on(self, env_steps: int) -> None:
        """Keep of the rows from before a kill what still holds where the first record after it has so many steps."""
        anew = env_steps == 0 and not self.resumed
        reached = [] if anew else [row for row in self.curve.rows if row.env_steps <= env_steps]
        again = bool(reached) and reached[-1].env_steps == env_steps  # its last row is recorded once more
        self.curve.keep(len(reached) - again)
        self._before = self.curve.rows[-1].seconds if self.curve.rows else 0.0
        if again:
            self._before = max(self._before, reached[-1].seconds - self._counted)

    def _check(self, env_steps: int, episodes: int, violated: int) -> None:
        if violated > episodes:
            raise ValueError(f"violated counts among the episodes, {episodes}, got {violated}")
        last = self._last
        if last is None:
            return
        for name, now in (("env_steps", env_steps), ("episodes", episodes), ("violated", violated)):
            if now < getattr(last, name):
                raise ValueError(f"{name} counts all so far and cannot fall, got {now} after {getattr(last, name)}")
        if not self._left and env_steps > last.env_steps:
            raise ValueError(
                f"the budget was used up at env_steps={last.env_steps}, seconds={last.seconds:.1f}, and the algorithm went on "
                f"to {env_steps} steps: it must return when the recorder says that no budget is left"
            )
