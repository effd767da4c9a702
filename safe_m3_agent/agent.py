"""Safe-M3-UCRL: plan in the learned world, certify, execute in the true one, learn from representative taxis."""

from __future__ import annotations

import copy
import os
import time
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mf_taxi_env import ParticleMDP, TaxiMDP
from mf_taxi_env.checks import used_device, whole_number
from mf_taxi_env.scoring import episode_score, possible_return
from safe_m3_agent import checkpoint
from safe_m3_agent.callbacks import Callback, as_callback, goes_on, training
from safe_m3_agent.config import Config, check_world
from safe_m3_agent.history import Episode, History
from safe_m3_agent.improvement import SafeImprovement
from safe_m3_agent.knowledge import Knowledge
from safe_m3_agent.observations import answered, read_observation
from safe_m3_agent.planners.planner import part_of
from safe_m3_agent.policy import Policy, copied_into, fingerprint, make_policy
from safe_m3_agent.representatives import observe
from safe_m3_agent.trust import Trust

#: What :meth:`SafeM3UCRL.learn` calls: a callback, or a function of agent and episode that may return False to stop.
AnyCallback = Callback | Callable[["SafeM3UCRL", Episode], object]


class SafeM3UCRL:
    """Safe model-based multi-agent mean-field upper-confidence reinforcement learning (arXiv 2306.17052, Algorithm 1).

    Per episode: plan a candidate in the learned world, take it into use only with a certificate and only if it is predicted
    no worse than the policy in use, execute the policy in use in the true world, collect the moves of representative taxis,
    refit the model. The first policy in use is to stay put, or one that is handed in; it must be safe.

    Args:
        mdp: The true world: a :class:`~mf_taxi_env.TaxiMDP`, a :class:`~mf_taxi_env.SwarmMDP` or another. Its motion is used
            for execution only; planning sees a copy that has none.
        config: Settings.
        seed: Seed of everything random here, at least 0; the same seed gives the same history, bit for bit, on one machine.
        device: Must be the device of ``mdp``.
        first: The first policy in use, of the kind that ``config.policy`` says: another agent's, or
            :meth:`FieldPolicy.of_actions <safe_m3_agent.policy.FieldPolicy.of_actions>`. It is executed without a certificate,
            so it is the user's to vouch for, and plans that start anew start there. Default: to stay put.

    Raises:
        ValueError: If the devices differ, the settings ask for what the world does not have, or ``first`` is of another kind.
        ImportError: If the model needs GPyTorch and it is not installed.

    Example:
        >>> from mf_taxi_env import EntropyFloor, TaxiMDP, load_scenario
        >>> world = TaxiMDP(load_scenario("shenzhen", cells=5), constraints=[EntropyFloor(0.9)])
        >>> agent = SafeM3UCRL(world, seed=1)
        >>> history = agent.learn(episodes=2)
        >>> len(history), history.violations
        (2, 0)
    """

    def __init__(
        self,
        mdp: ParticleMDP,
        config: Config | None = None,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        first: Policy | None = None,
    ) -> None:
        if device is not None and used_device(device) != mdp.device:
            raise ValueError(f"device must be the world's, {mdp.device}, got {device!r}; build the world on it")
        self.config = config = config or Config()
        check_world(config, mdp)
        self.mdp = mdp
        self.seed = whole_number("seed", seed, least=0)
        self.history = History()
        self._generator = torch.Generator(mdp.device).manual_seed(self.seed)
        self._policy = make_policy(config.policy, mdp, self._generator)
        self._stays_first = first is None
        if first is not None:
            self._policy = copied_into(self._policy, first, "first")
        self._policy.requires_grad_(False)  # in use it does not learn: what it answers is plain numbers
        self.knowledge = Knowledge(config, mdp, self._generator)
        self.model, self.trips, self.calibration = self.knowledge.model, self.knowledge.trips, self.knowledge.calibration
        none = mdp.initial().new_zeros(0, self.knowledge.directions)
        self._improvement = SafeImprovement(config, copy.deepcopy(self._policy), none)
        self._trust = Trust(mdp, config.fleet)
        self._asked = False  # whether the first policy is safe

    @property
    def planner_metrics(self) -> dict[str, float]:
        """Figures of the last plan that only its planner has, by name; none for MF-BPTT."""
        return self._improvement.planner.metrics()

    @property
    def trip_metrics(self) -> dict[str, float]:
        """What is known of the trips, see :meth:`TripModel.metrics`, and the half-width that is gone by; none where given."""
        confidence = self.knowledge.trip_confidence(self._trust.factor)
        if self.trips is None or confidence is None:
            return {}
        return {**self.trips.metrics(typing.cast("TaxiMDP", self.mdp)), "beta": confidence.width}

    # -- use --------------------------------------------------------------------------------------------------------------

    @property
    def policy(self) -> Policy:
        """The policy in use: ``policy(positions [m, d], mu [K], t) -> actions [m, d]`` with ``mu`` after trips. Its parameters
        are frozen; a planner improves a copy."""
        return self._policy

    def predict(
        self,
        observation: ArrayLike,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], None]:
        """Action for the world's env with ``parameterization="cells"``, in the manner of Stable-Baselines3.

        Args:
            observation: Distributions ``[..., K]`` as masses or densities, or ``[..., K + 1]`` with the time ``t / T`` appended
                (``observe_time``), which a policy that differs from step to step needs, and a network where demand or trips do.
            state: Ignored; the policy has no memory.
            episode_start: Ignored.
            deterministic: The policy is deterministic either way.

        Returns:
            Actions ``[..., d K]`` in ``[-1, 1]``, and ``None``.

        Raises:
            ValueError: If the observation has another length or is no distribution, or lacks the time that the policy needs.
        """
        reading = read_observation(observation, self.config.policy, self.mdp)
        fields = answered(reading, self._policy, self.mdp)
        return fields.flatten(-2).cpu().numpy().astype(np.float32), None

    def learn(
        self, episodes: int, callback: AnyCallback | Sequence[AnyCallback] | None = None, progress_bar: bool = False
    ) -> History:
        """Run more episodes.

        Args:
            episodes: How many, at least 1.
            callback: A :class:`~safe_m3_agent.callbacks.Callback`; or a function, called with the agent and the episode after
                each one, that may return False to stop; or a list of both.
            progress_bar: Show reward, worst margin and score (tqdm).

        Returns:
            The history of all episodes so far: the agent's own, which grows with further calls; ``history[:]`` is a copy.

        Raises:
            ValueError: If ``episodes`` is out of range, or no distribution meets the constraints.
            FloatingPointError: If a plan or a prediction is no finite number. An episode that fails, whatever by, has not
                happened: the agent is what it was before.
            BoundExceededError: If an episode earns more than is possible.
            ImportError: If the score of a city needs CVXPY (extra ``bounds``) and it is not installed.
        """
        episodes = whole_number("episodes", episodes, least=1)
        still_first = not any(episode.certified for episode in self.history)
        if self.config.constrained and still_first and not (self._trust.seen_safe or self._asked):
            self._asked, name = True, "staying put" if self._stays_first else "first"
            self._trust.warn_of_unsafe_start(self._improvement.first, name, certified=self.config.certified)
        hooks = as_callback(callback)
        possible_return(self.mdp)  # constraints that nothing meets are to be known before an episode is spent
        # Plans need gradients, whatever the caller is inside of.
        with torch.enable_grad(), _progress_bar(episodes, shown=progress_bar) as bar, training(hooks, self):
            for _ in range(episodes):
                hooks.on_episode_start(self)
                episode = self._episode()
                go_on = goes_on(hooks.on_episode_end(self, episode))
                bar.set_postfix_str(
                    f"reward={episode.reward:.2f}, worst margin={episode.min_margin:.3f}, score={episode.score:.3f}",
                    refresh=False,
                )
                bar.update()
                if not go_on:
                    break
        return self.history

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write everything that :meth:`load` needs to go on bit for bit, whole or not at all.

        Args:
            folder: Made where it is missing. A folder that holds another run, or this one with more episodes, is refused.

        Raises:
            OSError: If the disk refuses; what was saved before is then intact.
            ValueError: If the folder holds such a run, or one that cannot be read.
            ImportError: If safetensors is not installed (extra ``agent``).
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        self.check_folder(target)
        checkpoint.write_run_files(target, self.mdp, self._run_facts())
        tensors, facts = self._state()
        if not self._stays_first:
            tensors |= {f"first.{name}": value for name, value in self._improvement.first.state_dict().items()}
        checkpoint.save_checkpoint(target / checkpoint.CHECKPOINT_FILE, tensors, {**facts, "history": self.history.records()})
        return target

    def check_folder(self, folder: str | os.PathLike[str]) -> None:
        """Make sure that to save into a folder would overwrite nothing but earlier episodes of this agent's run.

        Raises:
            ValueError: If it holds a run with another world, other settings, another seed or another ``first``; this run, with
                more episodes than the agent has; or one that cannot be read.
        """
        checkpoint.check_folder(Path(folder), self._run_facts(), len(self.history))

    def _run_facts(self) -> dict[str, Any]:
        first = None if self._stays_first else fingerprint(self._improvement.first)
        return checkpoint.run_facts(self.mdp, self.config, self.seed, first)

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, mdp: ParticleMDP | None = None, device: torch.device | str = "cpu"
    ) -> SafeM3UCRL:
        """The agent that was saved; ``learn`` goes on as if it had never stopped, bit for bit on a device of the same type.

        Args:
            folder: Where it was saved.
            mdp: Its world, needed only where that is, or has a motion, constraint or trips, of the user's own.
            device: Device of a world that is rebuilt from the files.

        Raises:
            FileNotFoundError: If there is no run or no checkpoint.
            ValueError: If a file is not readable, or the world has to be handed in.
            ImportError: If safetensors (extra ``agent``) or what the model needs is not installed.
        """
        source = Path(folder)
        mdp, config, seed, _ = checkpoint.read_run_files(source, mdp, device)
        tensors, facts = checkpoint.load_checkpoint(source / checkpoint.CHECKPOINT_FILE, mdp.device)
        try:
            first = None
            if given := part_of(tensors, "first."):
                first = make_policy(config.policy, mdp, torch.Generator(mdp.device))
                first.load_state_dict(given)
            agent = cls(mdp, config, seed=seed, first=first)
            agent.history = History.from_records(facts["history"])
            agent._restore(tensors, facts)
        except torch.cuda.OutOfMemoryError:  # nothing is wrong with the files
            raise
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"{source / checkpoint.CHECKPOINT_FILE} does not fit its {checkpoint.RUN_FILE}: {error}"
            ) from error
        return agent

    # -- one episode ------------------------------------------------------------------------------------------------------

    def _episode(self) -> Episode:
        """An episode, whole or not at all: it has happened once it is in the history, and what ends it before undoes it."""
        before, number, refuted = self._state(), len(self.history), self._trust.refuted
        try:
            self.history.append(self._executed())
        except BaseException:  # an interrupt as well
            if len(self.history) == number:
                self._restore(*before)
            raise
        episode = self.history[-1]
        if self._trust.refuted > refuted:
            self._trust.warn(number)
        return episode

    def _executed(self) -> Episode:
        """Improve, execute, observe, learn; and what there is to say of it."""
        start = time.perf_counter()
        confidence = self.knowledge.confidence(self._trust.factor)
        learned = self.knowledge.world(confidence)
        planned = learned.with_lemma2(self.config.lipschitz) if self.config.tightening == "lemma2" else learned
        planned = planned.for_fleet(self.config.fleet) if self.config.fleet else planned
        decision = self._improvement.improve(
            planned,
            self._policy,
            self._generator,
            transitions=self.knowledge.transitions.size,
            seen_unsafe=len(self.history) > 0 and not self._trust.seen_safe,
        )
        before, self._policy = self._policy, decision.policy.requires_grad_(False)
        with torch.no_grad():
            epistemic = learned.rollout(self._policy).uncertainty.mean()
            executed = self.mdp.rollout(self._policy)
            radius, tau = confidence.radius(self.model.members), confidence.tau
            seen = observe(executed, self.mdp, self.model, self._policy, self.config, self._generator, radius=radius, tau=tau)
        self.knowledge.learn(seen)
        verdict = self._trust.judge(executed, taken=decision.taken)
        if verdict.withdrawn:
            self._policy = before
        if verdict.refuted:
            self._improvement.start_over()
        return Episode(
            episode=len(self.history),
            objective=decision.objective,
            reward=float(executed.returns),
            min_margin=float(executed.worst_margin),
            violations=int(executed.violations),
            score=episode_score(executed, self.mdp),
            certified=decision.taken,
            worst_margin=decision.worst_margin,
            epistemic=float(epistemic),
            beta=confidence.width,
            held_out=self.calibration.share_within(seen.held_out),
            coverage=seen.coverage,
            barrier_weight=decision.weight,
            seconds=time.perf_counter() - start,
        )

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that an episode changes but the history: tensors, which the next episode does not touch, and JSON-able facts."""
        tensors, facts = self._improvement.state()
        tensors |= {
            "generator": self._generator.get_state(),
            **{f"policy.{name}": value for name, value in self._policy.state_dict().items()},
            **self.knowledge.state(),
        }
        return tensors, {"device": self.mdp.device.type, **self._trust.state(), **facts}

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take over what :meth:`_state` gave."""
        self._policy.load_state_dict(part_of(tensors, "policy."))
        self._improvement.load_state(tensors, facts)
        self.knowledge.load_state(tensors)
        self._trust.load_state(facts)
        self._restore_generator(tensors["generator"].cpu(), facts["device"])

    def _restore_generator(self, state: Tensor, device: str) -> None:
        if device == self.mdp.device.type:
            self._generator.set_state(state)
        else:  # a generator's state means nothing on a device of another type
            self._generator.manual_seed(self.seed + len(self.history))


def _progress_bar(total: int, *, shown: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, unit="episode", disable=not shown)
