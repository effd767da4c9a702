"""Safe-M3-UCRL: plan in the learned world, certify, execute in the true one, learn from representative taxis."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mf_taxi_env import FleetSimulator, TaxiMDP, Trajectory, score
from safe_m3_agent import checkpoint
from safe_m3_agent.certificate import Certificate, Certifier
from safe_m3_agent.config import Config
from safe_m3_agent.hallucination import HallucinatedField, HallucinatedMDP
from safe_m3_agent.history import Episode, History
from safe_m3_agent.model.dynamics_model import DynamicsModel, KnownModel
from safe_m3_agent.model.ensemble import ProbabilisticEnsemble
from safe_m3_agent.planners.bptt import BPTTPlanner
from safe_m3_agent.policy import Policy, make_policy
from safe_m3_agent.transitions import Transitions

Callback = Callable[["SafeM3UCRL", Episode], None]


class SafeM3UCRL:
    """Safe model-based multi-agent mean-field upper-confidence reinforcement learning (arXiv 2306.17052, Algorithm 1).

    Per episode: plan a candidate in the learned world, take it into use only with a certificate and only if it is predicted
    no worse than the policy in use, execute the policy in use in the true world, collect the moves of representative taxis,
    refit the model. The first policy in use is to stay put, which must be safe.

    Args:
        mdp: The true world. Its motion is used for execution only; planning sees a copy that has none.
        config: Settings.
        seed: Seed of everything random here; the same seed gives the same history, bit for bit, on one machine.
        device: Must be the device of ``mdp``.

    Raises:
        ValueError: If the devices differ.

    Example:
        >>> from mf_taxi_env import TaxiMDP, load_scenario
        >>> agent = SafeM3UCRL(TaxiMDP(load_scenario("shenzhen", cells=5)), seed=1)
        >>> history = agent.learn(episodes=2)
        >>> len(history), history.violations
        (2, 0)
    """

    def __init__(
        self, mdp: TaxiMDP, config: Config | None = None, *, seed: int = 0, device: torch.device | str | None = None
    ) -> None:
        if device is not None and torch.device(device) != mdp.device:
            raise ValueError(f"device must be the world's, {mdp.device}, got {device!r}; build the TaxiMDP on it")
        self.config = config = config or Config()
        self.mdp = mdp
        self.seed = seed
        self.history = History()
        self._generator = torch.Generator(mdp.device).manual_seed(seed)
        self._policy = make_policy(config.policy, mdp, self._generator)
        self.model = self._make_model()
        self._planner = BPTTPlanner(config.bptt, config.barrier.width)
        self._certifier = Certifier(config.certificate)
        self._adversaries = torch.zeros(0, self.model.members, dtype=mdp.dtype, device=mdp.device)
        self._certificates = 0
        self._transitions = Transitions.empty(mdp.initial(), mdp.grid.dimension)

    # -- use --------------------------------------------------------------------------------------------------------------

    @property
    def policy(self) -> Policy:
        """The policy in use: ``policy(positions [m, 2], mu [K], t) -> actions [m, 2]`` with ``mu`` after trips."""
        return self._policy

    @torch.no_grad()
    def predict(
        self,
        observation: ArrayLike,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], None]:
        """Action for ``MFTaxi-v0`` with ``parameterization="cells"``, in the manner of Stable-Baselines3.

        Args:
            observation: Distributions ``[..., K]``, or ``[..., K + 1]`` with the time ``t / T`` appended (``observe_time``),
                which a policy that differs from step to step needs.
            state: Ignored; the policy has no memory.
            episode_start: Ignored.
            deterministic: The policy is deterministic either way.

        Returns:
            Actions ``[..., 2 K]`` in ``[-1, 1]``, and ``None``.

        Raises:
            ValueError: If the observation has another length, or lacks the time that the policy needs.
        """
        seen = torch.as_tensor(np.asarray(observation), dtype=self.mdp.dtype, device=self.mdp.device)
        size = self.mdp.grid.size
        if seen.shape[-1] not in (size, size + 1):
            raise ValueError(f"observation must have length {size} (or {size + 1} with time), got {seen.shape[-1]}")
        if seen.shape[-1] == size and self.config.policy.per_step:
            raise ValueError("this policy differs from step to step: make the env with observe_time=True")
        mu, steps = seen[..., :size], torch.zeros(seen.shape[:-1], dtype=torch.long, device=seen.device)
        if seen.shape[-1] == size + 1:
            steps = (seen[..., -1] * self.mdp.horizon).round().long().clamp(0, self.mdp.horizon - 1)
        fields = torch.zeros(*mu.shape, self.mdp.action_dim, dtype=seen.dtype, device=seen.device)
        for t in range(self.mdp.horizon):
            now = steps == t
            if bool(now.any()):
                fields[now] = self._policy.field(self.mdp.shift(mu[now], t), t)
        return fields.flatten(-2).cpu().numpy().astype(np.float32), None

    def learn(self, episodes: int, callback: Callback | None = None, progress_bar: bool = False) -> History:
        """Run more episodes.

        Args:
            episodes: How many, at least 1.
            callback: Called with the agent and the episode after each one.
            progress_bar: Show reward, worst margin and score (tqdm).

        Returns:
            The history of all episodes so far.
        """
        if episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {episodes}")
        bar = _progress_bar(episodes) if progress_bar else None
        for _ in range(episodes):
            episode = self._episode()
            self.history.append(episode)
            if callback is not None:
                callback(self, episode)
            if bar is not None:
                shown = {
                    "reward": f"{episode.reward:.2f}",
                    "worst margin": f"{episode.min_margin:.3f}",
                    "score": f"{episode.score:.3f}",
                }
                bar.set_postfix(shown, refresh=False)
                bar.update()
        if bar is not None:
            bar.close()
        return self.history

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write everything that :meth:`load` needs to go on bit for bit, whole or not at all.

        Args:
            folder: Made where it is missing. A folder that holds a run with other settings is refused.

        Raises:
            OSError: If the disk refuses; what was saved before is then intact.
            ValueError: If the folder holds another run.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        checkpoint.write_run_files(target, self.mdp, self.config, self.seed)
        tensors = {
            "generator": self._generator.get_state(),
            "adversaries": self._adversaries,
            **{f"policy.{name}": value for name, value in self._policy.state_dict().items()},
            **{f"model.{name}": value for name, value in self.model.state().items()},
            **{f"transitions.{name}": value for name, value in self._transitions._asdict().items()},
        }
        facts = {"certificates": self._certificates, "history": self.history.records()}
        checkpoint.save_checkpoint(target / checkpoint.CHECKPOINT_FILE, tensors, facts)
        return target

    def check_folder(self, folder: str | os.PathLike[str]) -> None:
        """Make sure that a folder's run has the settings of this agent.

        Raises:
            ValueError: If it has others.
        """
        checkpoint.write_run_files(Path(folder), self.mdp, self.config, self.seed)

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, mdp: TaxiMDP | None = None, device: torch.device | str = "cpu"
    ) -> SafeM3UCRL:
        """The agent that was saved; ``learn`` goes on as if it had never stopped.

        Args:
            folder: Where it was saved.
            mdp: Its world, needed only where that has a motion or constraint of the user's own.
            device: Device of a world that is rebuilt from the files.

        Raises:
            FileNotFoundError: If there is no run or no checkpoint.
            ValueError: If a file is not readable, or the world has to be handed in.
        """
        source = Path(folder)
        mdp, config, seed = checkpoint.read_run_files(source, mdp, device)
        tensors, facts = checkpoint.load_checkpoint(source / checkpoint.CHECKPOINT_FILE, mdp.device)
        agent = cls(mdp, config, seed=seed)

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        try:
            agent._policy.load_state_dict(part("policy."))
            agent.model.load_state(part("model."))
            agent._transitions = Transitions(**part("transitions."))
            agent._adversaries = tensors["adversaries"]
            agent._generator.set_state(tensors["generator"].cpu())
            agent._certificates = int(facts["certificates"])
            agent.history = History.from_records(facts["history"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"{source / checkpoint.CHECKPOINT_FILE} does not fit its {checkpoint.RUN_FILE}: {error}"
            ) from error
        return agent

    # -- one episode ------------------------------------------------------------------------------------------------------

    def _episode(self) -> Episode:
        start = time.perf_counter()
        learned = HallucinatedMDP(self.mdp, self.model, self.config.beta)
        decision = self._decide(learned)
        with torch.no_grad():
            epistemic = learned.rollout(HallucinatedField(self._policy)).uncertainty.mean()
            executed = self.mdp.rollout(self._policy)
            seen, coverage = self._observe(executed)
        self._transitions = self._transitions.join(seen)
        self.model.fit(self._transitions, self._generator)
        return Episode(
            episode=len(self.history),
            objective=decision.objective,
            reward=float(executed.returns),
            min_margin=float(executed.worst_margin),
            violations=int(executed.violations),
            score=score(executed.mu[1:], self.mdp),
            certified=decision.certified,
            worst_margin=decision.worst_margin,
            epistemic=float(epistemic),
            coverage=coverage,
            barrier_weight=decision.weight,
            seconds=time.perf_counter() - start,
        )

    def _decide(self, learned: HallucinatedMDP) -> _Decision:
        """Plan a candidate, and take it into use if it may be."""
        config = self.config
        weight = config.barrier.weight(self._certificates) if config.constrained else 0.0
        if self._transitions.size == 0 and not self.model.exact:
            return _Decision(math.nan, False, math.nan, weight)
        plan = self._planner.plan(
            learned, self._policy, weight=weight, adversaries=self._adversaries, optimistic=self._optimistic
        )
        if not math.isfinite(plan.objective):
            raise FloatingPointError(
                f"episode {len(self.history)}: the planner's objective is {plan.objective}. The policy in use and all that was "
                "learned are intact; a smaller bptt.learning_rate or a larger barrier.width may help"
            )
        if not config.constrained:
            self._policy = plan.policy
            return _Decision(plan.objective, False, math.nan, weight)
        candidate, certificate = self._certified_step(learned, plan.policy)
        if candidate is None:
            return _Decision(plan.objective, False, certificate.margin, weight)
        # A certified plan lowers the barrier even where it is not taken into use: this weight's optimum has been reached.
        self._certificates += 1
        better = self._predicted_return(learned, candidate) >= self._predicted_return(learned, self._policy)
        if better:
            self._policy = candidate
        return _Decision(plan.objective, better, certificate.margin, weight)

    def _certified_step(self, learned: HallucinatedMDP, goal: Policy) -> tuple[Policy | None, Certificate]:
        """The largest certified step from the policy in use towards ``goal``: halved at each failure."""
        certificate = Certificate(math.nan, self._adversaries.new_zeros(self.model.members))
        attempts, share = 0, 1.0
        while attempts < self.config.certificate.attempts and share > 0.05:
            candidate = _between(self._policy, goal, share)
            share /= 2
            # Adversaries that are known already refuse a hopeless candidate at the price of one rollout.
            known = self._known_worst(learned, candidate)
            if known < 0:
                if math.isnan(certificate.margin):
                    certificate = certificate._replace(margin=known)
                continue
            attempts += 1
            certificate = self._certifier.certify(learned, candidate, self._adversaries, self._generator)
            if certificate.certified:
                return candidate, certificate
            kept = [self._adversaries, certificate.z.unsqueeze(0)]
            self._adversaries = torch.cat(kept)[-self.config.adversaries :] if self.config.adversaries else self._adversaries
        return None, certificate

    @torch.no_grad()
    def _known_worst(self, learned: HallucinatedMDP, policy: Policy) -> float:
        worlds = learned.plausible(torch.cat([self._adversaries.new_zeros(1, self.model.members), self._adversaries]))
        return float(worlds.rollout(HallucinatedField(policy)).worst_margin.min())

    @torch.no_grad()
    def _predicted_return(self, learned: HallucinatedMDP, policy: Policy) -> float:
        return float(learned.rollout(HallucinatedField(policy)).returns)

    @property
    def _optimistic(self) -> bool:
        return self.config.optimistic and not self.model.exact

    def _observe(self, executed: Trajectory) -> tuple[Transitions, float]:
        """Moves of representative taxis in the mean field that was executed, and how well the model foresaw them."""
        seed = int(torch.randint(2**62, (1,), generator=self._generator, device=self.mdp.device))
        taxis = FleetSimulator(self.mdp, self.config.representative_agents, seed=seed, resolution="continuous")
        moves, covered = [], []
        for t in range(self.mdp.horizon):
            taxis.serve(executed.mu[t])
            mu, positions = self.mdp.shift(executed.mu[t], t), taxis.positions
            actions = self._explore(positions, mu, t)
            belief = self.model.predict(positions, mu, actions)
            error = (self.mdp.motion(positions, mu, actions) - belief.mean).abs()
            # A thousandth of a cell is forgiven: beyond the city's edge belief and truth agree but for rounding.
            covered.append((error <= self.config.beta * belief.epistemic + 1e-3 / self.mdp.grid.cells).all(-1))
            taxis.step(actions, mu)
            moves.append(Transitions(positions, mu.expand(len(positions), -1), actions, taxis.positions))
        joined = Transitions(*(torch.cat(parts) for parts in zip(*moves, strict=True)))
        return joined, float(torch.cat(covered).float().mean())

    def _explore(self, positions: Tensor, mu: Tensor, t: int) -> Tensor:
        if self.config.exploration == "policy" or self.model.exact:
            followed: Tensor = self._policy(positions, mu, t)
            return followed
        shape = (self.config.exploration_candidates, *positions.shape)
        random = torch.rand(shape, generator=self._generator, dtype=positions.dtype, device=positions.device)
        candidates = 2.0 * random - 1.0
        doubt = self.model.predict(positions, mu, candidates).epistemic.square().sum(-1)
        choice = doubt.argmax(0)
        return candidates[choice, torch.arange(len(positions), device=positions.device)]

    def _make_model(self) -> DynamicsModel:
        noise_std = self.mdp.noise.std
        if self.config.model == "known":
            return KnownModel(self.mdp.motion, noise_std)
        return ProbabilisticEnsemble(
            self.config.ensemble, self.mdp.grid, noise_std, self._generator, dtype=self.mdp.dtype, device=self.mdp.device
        )


class _Decision(NamedTuple):
    objective: float
    certified: bool
    worst_margin: float
    weight: float


def _between(start: Policy, goal: Policy, share: float) -> Policy:
    """The policy whose parameters lie at ``share`` of the way."""
    policy = copy.deepcopy(start)
    with torch.no_grad():
        for parameter, other in zip(policy.parameters(), goal.parameters(), strict=True):
            parameter.lerp_(other, share)
    return policy


def _progress_bar(total: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, unit="episode")
