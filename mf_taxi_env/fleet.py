"""A finite fleet: the particle version of a world, whose empirical distribution tends to the mean field as the fleet grows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mf_taxi_env.checks import used_device, whole_number
from mf_taxi_env.destinations import Destinations, where
from mf_taxi_env.fleet_policy import FleetPolicy, by_position, checked, offered
from mf_taxi_env.information import MASS_FLOOR
from mf_taxi_env.mdp import ParticleMDP
from mf_taxi_env.odometer import Kilometres, Odometer
from mf_taxi_env.scenarios.city import box_km
from mf_taxi_env.taxi import TaxiMDP

Resolution = Literal["cell", "continuous"]

#: Taxis that are moved together: what stays in a CPU's cache, and what keeps a GPU busy.
BLOCK = {"cpu": 1 << 16, "cuda": 1 << 22}

#: What is drawn from per city, shared by its fleets.
_DESTINATIONS: WeakKeyDictionary[TaxiMDP, dict[int, Destinations]] = WeakKeyDictionary()


class FleetRollout(NamedTuple):
    """One episode of a finite fleet."""

    distributions: Tensor  #: empirical distributions [T + 1, K], the initial one first
    occupied: Tensor  #: share of taxis with a passenger at each step [T]
    #: mean distance of the repositioning moves at each step [T], in kilometres as the crow flies; NaN where there is no map
    travelled_km: Tensor
    positions: Tensor  #: final positions [m, d]
    empty_km: Tensor  #: mean distance driven without a passenger at each step [T]: the moves, and the noise upon them
    carried_km: Tensor  #: mean distance driven with a passenger at each step [T]


class FleetSimulator:
    """``m`` taxis with continuous positions in a :class:`~mf_taxi_env.TaxiMDP`, or ``m`` particles of another world.

    One step: each taxi of cell ``c`` is occupied with probability ``min(1, rho(c) / mu(c))`` and is then carried to a cell
    drawn from ``Phi[c]``, to a uniform point of it; every taxi then acts, and truncated Gaussian noise perturbs where it
    arrives. In worlds without trips, such as :class:`~mf_taxi_env.SwarmMDP`, a step is the action and the world's noise alone.

    Args:
        mdp: The world.
        n_taxis: Fleet size ``m``, at least 1.
        seed: Seed of the fleet's own generator; the same seed gives the same fleet on the same device.
        device: Device of the fleet; default the world's.
        resolution: ``"cell"`` lets a taxi act and depart from the centre of its cell, which is what the lifted MDP says: the
            empirical distribution converges to the mean field at rate ``1/sqrt(m)``. ``"continuous"`` lets it act and depart
            from where it is, as a real taxi does; its limit differs from the mean field by the size of a cell.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        mdp: ParticleMDP,
        n_taxis: int,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        resolution: Resolution = "cell",
    ) -> None:
        if resolution not in get_args(Resolution):
            raise ValueError(f"resolution must be one of {get_args(Resolution)}, got {resolution!r}")
        self.mdp = mdp
        self.n_taxis = whole_number("n_taxis", n_taxis, least=1)
        self.resolution: Resolution = resolution
        self.device = mdp.device if device is None else used_device(device)
        if self.device != mdp.device:
            raise ValueError(f"device must be the world's, {mdp.device}, got {self.device}; build the world on it")
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._sides = box_km(mdp.scenario.box) if isinstance(mdp, TaxiMDP) else (math.nan, math.nan)
        self._corners = mdp.centers - 0.5 / mdp.grid.cells
        block = BLOCK.get(self.device.type, BLOCK["cuda"])
        self._blocks = [slice(first, first + block) for first in range(0, self.n_taxis, block)]
        self._begin()

    def reset(self) -> Tensor:
        """Start an episode from the world's initial distribution, and return the empirical one, ``[K]``.

        A new fleet stands at the start of its first episode: as long as it has not moved, it stays as it is.
        """
        if self._begun:
            self._begin()
        return self.distribution

    def _begin(self) -> None:
        self.t = 0
        cells = torch.multinomial(self.mdp.initial(), self.n_taxis, replacement=True, generator=self._generator)
        points = torch.empty((self.n_taxis, self.mdp.grid.dimension), dtype=self.mdp.dtype, device=self.device)
        for block in self._blocks:
            points[block] = self._somewhere_in(cells[block])
        self._place(points)
        self._served = self._begun = False
        self._occupied = torch.zeros(self.n_taxis, dtype=torch.bool, device=self.device)
        self._carried = self._odometer()
        self._carried.add(points[:0], points[:0])
        self._odometers = (self._carried,) * 3

    @property
    def positions(self) -> Tensor:
        """Where the taxis are, ``[m, d]`` in ``[0, 1]``. A tensor handed out is not changed afterwards; nor should it be by
        its holder: set another one instead."""
        return self._positions

    @positions.setter
    def positions(self, points: Tensor) -> None:
        shape = (self.n_taxis, self.mdp.grid.dimension)
        if points.shape != shape or not bool(((points >= 0) & (points <= 1)).all()):
            raise ValueError(f"positions must have shape {shape} and lie in [0, 1], got {points!r}")
        self._place(points.to(self.device, self.mdp.dtype))

    def _place(self, points: Tensor) -> None:
        self._positions = points
        self._cells = torch.empty(len(points), dtype=torch.int64, device=points.device)
        for block in self._blocks:
            self._cells[block] = self.mdp.grid.index(points[block])
        self._distribution: Tensor | None = None

    @property
    def distribution(self) -> Tensor:
        """The empirical distribution of the fleet, ``[K]``."""
        if self._distribution is None:
            counts = torch.bincount(self._cells, minlength=self.mdp.grid.size)
            self._distribution = counts.to(self.mdp.dtype).div_(self.n_taxis)
        return self._distribution

    @property
    def occupied(self) -> Tensor:
        """Which taxis carried a passenger in the current step, ``[m]``."""
        return self._occupied

    @property
    def kilometres(self) -> Kilometres:
        """What a taxi drove in the last step, on average; zeros before the first."""
        return Kilometres(*((odometer.total() / self.n_taxis).to(self.mdp.dtype) for odometer in self._odometers))

    @torch.no_grad()
    def serve(self, mu: Tensor | None = None) -> Tensor:
        """Carry this step's passengers, so that a policy can see where the fleet then is. Once per step; :meth:`step` does it
        where it has not been done. Nobody is carried in a world without trips.

        Args:
            mu: The distribution ``[K]`` that these taxis live in. Default is their own; given, they are representative taxis:
                they carry no mass and share their passengers with a fleet of that distribution.

        Returns:
            The empirical distribution after trips, ``[K]``.
        """
        if not self._served:
            self._begun = True
            if isinstance(self.mdp, TaxiMDP):
                self._carry_passengers(self.mdp, self.distribution if mu is None else mu)
            self._served = True
        return self.distribution

    def _carry_passengers(self, city: TaxiMDP, mu: Tensor) -> None:
        chance = (city.demand(self.t) / mu.clamp_min(MASS_FLOOR)).clamp_max_(1.0)
        # New tensors: what was handed out stays what it was.
        self._occupied = torch.empty_like(self._occupied)
        self._positions = self._positions.clone(memory_format=torch.contiguous_format)
        self._distribution, self._carried = None, self._odometer()
        # Draws of one kind come after those of another, not block after block, whose size must not change what is drawn.
        blocks = [self._cells[block] for block in self._blocks]
        riders = []
        for block, cells in zip(self._blocks, blocks, strict=True):
            taken = torch.lt(self._uniform(len(cells)), chance.index_select(0, cells), out=self._occupied[block])
            riders.append(where(taken))
        table = _destinations(city, self.t)
        goals = [
            table.draw(cells.index_select(0, taken), self._uniform(len(taken), dtype=torch.float64))
            for cells, taken in zip(blocks, riders, strict=True)
        ]
        for block, cells, taken, goal in zip(self._blocks, blocks, riders, goals, strict=True):
            positions, there = self._positions[block], self._somewhere_in(goal)
            self._carried.add(_rows(positions, taken), there)
            _packed(positions).index_copy_(0, taken, _packed(there))
            cells.index_copy_(0, taken, city.grid.index(there))

    @torch.no_grad()
    def step(self, actions: Tensor, mu: Tensor | None = None) -> Tensor:
        """Trips (where :meth:`serve` has not been called), then the taxis' moves.

        Args:
            actions: ``[m, d]`` in ``[-1, 1]``.
            mu: The distribution after trips ``[K]`` that these taxis move in; default their own, see :meth:`serve`.

        Returns:
            The next empirical distribution, ``[K]``.

        Raises:
            ValueError: If the actions have the wrong shape, are not finite, or leave ``[-1, 1]``; or if ``mu`` is given before
                :meth:`serve` has said which distribution the taxis' passengers come from.
        """
        if mu is not None and not self._served:
            raise ValueError("step(actions, mu) moves taxis in a given distribution: call serve(mu before trips) first")
        checked(actions, self._positions.shape, self.t)
        served = self.serve()
        return self._move(lambda block, start: actions[block], served if mu is None else mu)

    def _move(self, act: Callable[[slice, Tensor], Tensor], mu: Tensor) -> Tensor:
        """Move all taxis by the actions of ``act(block of taxis, where they depart)``."""
        landed, cells = torch.empty_like(self._positions), torch.empty_like(self._cells)
        moved, driven = self._odometer(), self._odometer()
        for block in self._blocks:
            start = self._departures(block)
            goals = self.mdp.motion(start, mu, act(block, start).to(start.dtype))
            landed[block] = there = self.mdp.noise.sample(goals, self._generator)
            cells[block] = self.mdp.grid.index(there)
            moved.add(start, goals)
            driven.add(start, there)
        self._positions, self._cells, self._distribution = landed, cells, None
        self._odometers = (moved, driven, self._carried)
        self._served = False
        self.t += 1
        return self.distribution

    @torch.no_grad()
    def rollout(self, policy: FleetPolicy) -> FleetRollout:
        """One episode from :meth:`reset` on. Beside the fleet's state, only what is returned is kept.

        At cell resolution a policy that offers ``field(mu, t)`` is asked once per cell instead of once per taxi.

        Args:
            policy: ``policy(positions [m, d], mu [K], t) -> actions [m, d]``; a fleet of more than 65,536 taxis (2^22 on a GPU)
                is asked in blocks of so many. See :class:`FleetPolicy`.

        Raises:
            ValueError: If its actions have the wrong shape, are not finite, or leave ``[-1, 1]``.
        """
        distributions, occupied, driven = [self.reset()], [], []
        for t in range(self.mdp.horizon):
            mu = self.serve()
            occupied.append(self._occupied.sum() / self.n_taxis)
            distributions.append(self._move(self._chooser(policy, mu, t), mu))
            driven.append(self.kilometres)
        km = Kilometres(*map(torch.stack, zip(*driven, strict=True)))
        return FleetRollout(
            torch.stack(distributions),
            torch.stack(occupied).to(self.mdp.dtype),
            km.repositioning,
            self._positions,
            km.empty,
            km.carried,
        )

    def _chooser(self, policy: FleetPolicy, mu: Tensor, t: int) -> Callable[[slice, Tensor], Tensor]:
        of_cells = offered(policy, "field")
        if self.resolution == "cell" and of_cells:
            field = checked(of_cells(mu, t), self.mdp.centers.shape, t)
            return lambda block, start: field.index_select(0, self._cells[block])
        act = by_position(policy, mu, t)
        return lambda block, start: act(start)

    def _departures(self, block: slice) -> Tensor:
        if self.resolution == "continuous":
            return self._positions[block]
        return _rows(self.mdp.centers, self._cells[block])

    def _somewhere_in(self, cells: Tensor) -> Tensor:
        """Uniform points of cells ``[n]``: ``[n, d]``."""
        corner = _rows(self._corners, cells)
        return corner.add_(self._uniform(*corner.shape).div_(self.mdp.grid.cells))

    def _odometer(self) -> Odometer:
        return Odometer(self._sides, keeps=len(self._blocks) == 1)

    def _uniform(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.rand(shape, generator=self._generator, dtype=dtype or self.mdp.dtype, device=self.device)


def _packed(points: Tensor) -> Tensor:
    """Points ``[n, d]`` as one number each, for which rows are picked and put twice as fast: complex ones in the plane."""
    return torch.view_as_complex(points) if points.shape[-1] == 2 else points


def _rows(points: Tensor, index: Tensor) -> Tensor:
    """The points ``[n, d]`` of an index ``[n]``."""
    picked = _packed(points).index_select(0, index)
    return torch.view_as_real(picked) if picked.is_complex() else picked


def _destinations(city: TaxiMDP, t: int) -> Destinations:
    """The table of a step's trips. Steps beyond the data's share the last matrix, and its table."""
    tables, trips = _DESTINATIONS.setdefault(city, {}), city.trips(t)
    if id(trips) not in tables:
        tables[id(trips)] = Destinations(trips)
    return tables[id(trips)]
