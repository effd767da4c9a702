"""What the agent has learned of a world, and how far it may be wrong: all that an episode adds to."""

from __future__ import annotations

import torch
from torch import Tensor

from mf_taxi_env import ParticleMDP
from safe_m3_agent.calibration import Calibration, HeldOut
from safe_m3_agent.confidence import Confidence
from safe_m3_agent.config import Config
from safe_m3_agent.hallucination import HallucinatedMDP
from safe_m3_agent.model.trip_calibration import TripCalibration
from safe_m3_agent.model.trip_model import make_trip_model
from safe_m3_agent.motion_model import make_motion_model
from safe_m3_agent.planners.planner import part_of
from safe_m3_agent.representatives import Observed
from safe_m3_agent.transitions import Transitions


class Knowledge:
    """Models of motion and trips, the transitions that they were learned from, and their calibration.

    Args:
        config: Settings of the agent.
        mdp: The true world, of which a model of motion is told what ``make_motion_model`` says.
        generator: Source of what is drawn here, now and when models are fitted.

    Attributes:
        model: Of the motion.
        trips: Of where passengers go; None where that is given.
        calibration: Of the model of motion.
        transitions: What representative taxis have shown of their moves.

    Raises:
        ValueError: If a model does not fit the world.
        ImportError: If a model needs a library that is not installed.
    """

    def __init__(self, config: Config, mdp: ParticleMDP, generator: torch.Generator) -> None:
        self._config, self._mdp, self._generator = config, mdp, generator
        self.model = make_motion_model(config, mdp, generator)
        self.calibration = Calibration(
            members=self.model.members,
            moves=mdp.horizon * mdp.grid.dimension,
            per_episode=mdp.horizon * config.representative_agents,
            delta=config.delta,
            like=mdp.initial(),
            dimension=mdp.grid.dimension,
            sets=2 if config.learn_trips and not self.model.exact else 1,
        )
        # Where something is certified what is doubted is calibrated.
        self._calibrates = config.calibrate and config.constrained and config.certified and bool(mdp.constraints)
        of_trips = TripCalibration(self.calibration.quantile, config.delta) if self._calibrates else None
        self.trips = make_trip_model(config.trips, mdp, generator, of_trips) if config.learn_trips else None
        self.transitions = Transitions.empty(mdp.initial(), mdp.grid.dimension)

    @property
    def directions(self) -> int:
        """Numbers that tell a plausible world from others: members of the model of motion, and of that of trips."""
        return self.model.members + (0 if self.trips is None else self.trips.members)

    def confidence(self, factor: float) -> Confidence:
        """How far the motion may be from the model's.

        Args:
            factor: By which refuted certificates have widened all sets, at least 1. Once there is one, what the level asks
                for is asked for, too, calibrated or not.
        """
        calibrated = self._calibrates and not self.model.exact
        quantile = self.calibration.quantile if calibrated or factor > 1.0 else 0.0
        return Confidence(self._config.beta, quantile, self.calibration.tau if calibrated else 1.0, factor)

    def trip_confidence(self, factor: float) -> Confidence | None:
        """The same of learned trips; None where they are given. Their model has the calibrated factor in it."""
        if self.trips is None:
            return None
        return Confidence(self.trips.beta, self.calibration.quantile if factor > 1.0 else 0.0, factor=factor)

    def world(self, confidence: Confidence) -> HallucinatedMDP:
        """The learned world, for planning and certificates. It holds the models themselves, so later learning changes it.

        Args:
            confidence: In the model of motion, see :meth:`confidence`; refuted certificates widen the set of learned trips as
                they do this one.
        """
        return HallucinatedMDP(self._mdp, self.model, confidence, self.trips, self.trip_confidence(confidence.factor))

    def learn(self, seen: Observed) -> None:
        """Learn from an episode of representative taxis."""
        self.transitions = self.transitions.join(seen.transitions)
        self.calibration.add(seen.held_out)
        self.model.fit(self.transitions, self._generator)
        if self.trips is not None:
            self.trips.fit(seen.trips)

    def state(self) -> dict[str, Tensor]:
        """Everything learned, as named tensors that the next episode does not touch."""
        return {
            **{f"model.{name}": value for name, value in self.model.state().items()},
            **{f"trips.{name}": value for name, value in (self.trips.state() if self.trips is not None else {}).items()},
            **{f"transitions.{name}": value for name, value in self.transitions._asdict().items()},
            **{f"held_out.{name}": value for name, value in self.calibration.held_out._asdict().items()},
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` gave; there may be more beside it.

        Raises:
            KeyError: If something is missing.
            TypeError: If there is too much of something.
            RuntimeError: If something does not fit.
        """
        self.model.load_state(part_of(state, "model."))
        if self.trips is not None:
            self.trips.load_state(part_of(state, "trips."))
        self.transitions = Transitions(**part_of(state, "transitions."))
        self.calibration.held_out = HeldOut(**part_of(state, "held_out."))
