"""A finite fleet: the particle version of a world, whose empirical distribution tends to the mean field as the fleet grows."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from mf_taxi_env.information import MASS_FLOOR
from mf_taxi_env.mdp import ParticleMDP
from mf_taxi_env.scenarios.city import box_km
from mf_taxi_env.sparse import SparseMatrix
from mf_taxi_env.taxi import TaxiMDP

Resolution = Literal["cell", "continuous"]

#: Taxis per call of a policy: bounds the memory of its hidden layers.
POLICY_CHUNK = 1 << 17


class FleetPolicy(Protocol):
    """A policy as a taxi sees it."""

    def __call__(self, positions: Tensor, mu: Tensor, t: int) -> Tensor:
        """Actions ``[m, d]`` in ``[-1, 1]`` of taxis at ``positions`` ``[m, d]``, given ``mu`` ``[K]`` after trips."""
        ...


@runtime_checkable
class _KnowsItsField(Protocol):
    def field(self, mu: Tensor, t: int) -> Tensor: ...


class FleetRollout(NamedTuple):
    """One episode of a finite fleet."""

    distributions: Tensor  #: empirical distributions [T + 1, K], the initial one first
    occupied: Tensor  #: share of taxis with a passenger at each step [T]
    #: mean distance of the repositioning moves at each step [T], in kilometres as the crow flies; NaN where there is no map
    travelled_km: Tensor
    positions: Tensor  #: final positions [m, d]


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
        if not isinstance(n_taxis, int) or n_taxis < 1:
            raise ValueError(f"n_taxis must be an integer >= 1, got {n_taxis!r}")
        if resolution not in get_args(Resolution):
            raise ValueError(f"resolution must be one of {get_args(Resolution)}, got {resolution!r}")
        self.mdp = mdp
        self.n_taxis = n_taxis
        self.resolution: Resolution = resolution
        self.device = mdp.device if device is None else torch.device(device)
        if self.device != mdp.device:
            raise ValueError(f"device must be the world's, {mdp.device}, got {self.device}; build the world on it")
        self._generator = torch.Generator(self.device).manual_seed(seed)
        sides = box_km(mdp.scenario.box) if isinstance(mdp, TaxiMDP) else [math.nan] * mdp.grid.dimension
        self._km = torch.tensor(sides, dtype=mdp.dtype, device=self.device)
        self._tables: dict[int, _TripTable] = {}
        self.t = 0
        self.reset()

    def reset(self) -> Tensor:
        """Start an episode from the world's initial distribution, and return the empirical one, ``[K]``."""
        self.t = 0
        cells = torch.multinomial(self.mdp.initial(), self.n_taxis, replacement=True, generator=self._generator)
        self.positions = self._somewhere_in(cells)
        self._served = False
        self._occupied = torch.zeros(self.n_taxis, dtype=torch.bool, device=self.device)
        return self.distribution

    @property
    def distribution(self) -> Tensor:
        """The empirical distribution of the fleet, ``[K]``."""
        return self.mdp.grid.histogram(self.positions)

    @property
    def occupied(self) -> Tensor:
        """Which taxis carried a passenger in the current step, ``[m]``."""
        return self._occupied

    def serve(self, mu: Tensor | None = None) -> Tensor:
        """Carry this step's passengers, so that a policy can see where the fleet then is. Once per step; :meth:`step` does it
        where it has not been done. Nobody is carried in a world without trips.

        Args:
            mu: The distribution ``[K]`` that these taxis live in. Default is their own; given, they are representative taxis:
                they carry no mass and share their passengers with a fleet of that distribution.

        Returns:
            The empirical distribution after trips, ``[K]``.
        """
        if self._served:
            return self.distribution
        if isinstance(self.mdp, TaxiMDP):
            self._carry_passengers(self.mdp, mu)
        self._served = True
        return self.distribution

    def _carry_passengers(self, city: TaxiMDP, mu: Tensor | None) -> None:
        cells = city.grid.index(self.positions)
        if mu is None:
            mu = torch.bincount(cells, minlength=city.grid.size).to(city.dtype) / self.n_taxis
        chance = (city.demand(self.t) / mu.clamp_min(MASS_FLOOR)).clamp_max(1.0)
        self._occupied = self._uniform(self.n_taxis) < chance[cells]
        riders = self._occupied.nonzero().squeeze(-1)
        destinations = self._trip_table(city.trips(self.t)).draw(cells[riders], self._uniform(len(riders), dtype=torch.float64))
        # A new tensor: positions that were handed out stay what they were.
        self.positions = self.positions.index_copy(0, riders, self._somewhere_in(destinations))

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
        if actions.shape != self.positions.shape:
            raise ValueError(f"actions must have shape {tuple(self.positions.shape)}, got {tuple(actions.shape)}")
        # NaN compares false, so it is refused as well.
        if not bool((actions.abs() <= 1.0).all()):
            raise ValueError("actions must be finite and lie in [-1, 1]")
        served = self.serve()
        mu = served if mu is None else mu
        start = self._acting_positions()
        destinations = self.mdp.motion(start, mu, actions.to(start.dtype))
        self._travelled_km = ((destinations - start) * self._km).norm(dim=-1).mean()
        self.positions = self.mdp.noise.sample(destinations, self._generator)
        self._served = False
        self.t += 1
        return self.distribution

    def rollout(self, policy: FleetPolicy) -> FleetRollout:
        """One episode from :meth:`reset` on.

        At cell resolution a policy that offers ``field(mu, t)`` is asked once per cell instead of once per taxi.

        Args:
            policy: ``policy(positions [n, d], mu [K], t) -> actions [n, d]``; called in chunks of taxis.
        """
        distributions, occupied, travelled = [self.reset()], [], []
        for t in range(self.mdp.horizon):
            mu = self.serve()
            occupied.append(self._occupied.to(self.mdp.dtype).mean())
            distributions.append(self.step(self._actions(policy, mu, t)))
            travelled.append(self._travelled_km)
        return FleetRollout(torch.stack(distributions), torch.stack(occupied), torch.stack(travelled), self.positions)

    @torch.no_grad()
    def _actions(self, policy: FleetPolicy, mu: Tensor, t: int) -> Tensor:
        if self.resolution == "cell" and isinstance(policy, _KnowsItsField):
            return policy.field(mu, t)[self.mdp.grid.index(self.positions)]
        return torch.cat([policy(chunk, mu, t) for chunk in self._acting_positions().split(POLICY_CHUNK)])

    def _acting_positions(self) -> Tensor:
        if self.resolution == "continuous":
            return self.positions
        return self.mdp.centers[self.mdp.grid.index(self.positions)]

    def _somewhere_in(self, cells: Tensor) -> Tensor:
        """Uniform points of cells ``[n]``: ``[n, d]``."""
        corner = self.mdp.centers[cells] - 0.5 / self.mdp.grid.cells
        return corner + self._uniform(*corner.shape) / self.mdp.grid.cells

    def _trip_table(self, trips: Tensor | SparseMatrix) -> _TripTable:
        # Steps beyond the data's share the last matrix, and its table.
        if id(trips) not in self._tables:
            self._tables[id(trips)] = _TripTable(trips)
        return self._tables[id(trips)]

    def _uniform(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.rand(shape, generator=self._generator, dtype=dtype or self.mdp.dtype, device=self.device)


class _TripTable:
    """Cumulative trip probabilities, all rows in one line, so that one search draws the destinations of a whole fleet."""

    def __init__(self, trips: Tensor | SparseMatrix) -> None:
        # Row c holds c + (cumulative probabilities of Phi[c]); a search in float64 stays exact at thousands of rows.
        if isinstance(trips, Tensor):
            size = len(trips)
            cumulative = trips.to(torch.float64, copy=True).cumsum_(-1)
            cumulative /= cumulative[:, -1:].clone()
            cumulative += torch.arange(size, dtype=torch.float64, device=trips.device).unsqueeze(-1)
            self._line = cumulative.flatten()
            self._columns = None
            self._offsets = torch.arange(size + 1, device=trips.device) * size
        else:
            offsets, columns, values = trips.rows
            counts = offsets.diff()
            line = torch.cat([values.new_zeros(1, dtype=torch.float64), values.double().cumsum(0)])
            start, end = line[offsets[:-1]], line[offsets[1:]]
            rows = torch.arange(len(counts), device=values.device).repeat_interleave(counts)
            self._line = (line[1:] - start[rows]) / (end - start)[rows] + rows
            self._columns, self._offsets = columns, offsets

    def draw(self, cells: Tensor, uniform: Tensor) -> Tensor:
        """Destinations ``[n]`` of trips from ``cells`` ``[n]``, by numbers ``[n]`` in ``[0, 1)``."""
        found = torch.searchsorted(self._line, cells + uniform)
        # Rounding may lead to a neighbouring row.
        found = found.clamp(self._offsets[cells], self._offsets[cells + 1] - 1)
        return found - self._offsets[cells] if self._columns is None else self._columns[found]
