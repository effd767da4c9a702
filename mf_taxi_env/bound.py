"""What is possible in a city: a certified bound on what any safe policy can earn.

Solving the convex program needs the extra ``bounds`` (CVXPY with Clarabel).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from mf_taxi_env.checks import finite_number
from mf_taxi_env.information import kl_divergence
from mf_taxi_env.mdp import MeanFieldMDP
from mf_taxi_env.taxi import TaxiMDP

if TYPE_CHECKING:
    from types import ModuleType

#: By how many nats per step a return may exceed the certified bound: more than float32 rounds, and, but for constraints that
#: leave next to nothing, than a margin is worth that counts as kept; less than a table shows.
RETURN_TOLERANCE = 1e-4


class NoBoundError(ValueError):
    """The solver came to no end: what is possible is not known, though something may be."""


class InfeasibleError(ValueError):
    """No distribution meets the constraints; or, with a barrier, none meets them with room to spare."""


class BoundExceededError(RuntimeError):
    """A policy that keeps all constraints earned more than any can: world, constraint or bound is wrong, so is every number."""


@dataclass(frozen=True, eq=False)
class Bound:
    """The most that any policy can earn that keeps the constraints of a :class:`~mf_taxi_env.TaxiMDP`.

    Attributes:
        reward: Sum over the episode of ``per_step``'s terms, in nats: what a policy earns at most, and with a barrier the
            program's value, of which ``-T * kl`` is earned.
        per_step: Mean best reward per step, ``-KL(rho || mu)`` plus, with a barrier, ``barrier * log margin``; in nats.
        mu: The optimal distributions, float64 ``[T, K]``, one row per step caused by the policy.
        gap: By how much the true optimum may exceed ``per_step`` at most, from a dual certificate checked in float64 (not the
            solver's word); ``reward + T * gap`` is a proven bound.
        kl: Mean ``KL(rho || mu)`` per step at the optimum, in nats.
        barrier: Weight of the log-barrier; 0 for hard constraints.
    """

    reward: float
    per_step: float
    mu: NDArray[np.float64]
    gap: float
    kl: float
    barrier: float

    def check(self, earned: float) -> None:
        """Make sure that a policy which keeps the constraints has not earned more than is possible.

        Args:
            earned: Its return, in nats.

        Raises:
            BoundExceededError: If it has, by more than rounding (:data:`RETURN_TOLERANCE`).
            ValueError: If this is the bound of a program with a barrier, whose value is no return.
        """
        if self.barrier:
            raise ValueError(f"a return is checked by the bound with barrier=0, this one has barrier={self.barrier!r}")
        if earned > self.upper + len(self.mu) * RETURN_TOLERANCE:
            raise BoundExceededError(
                f"a policy that keeps the constraints earned {earned:.6f} nats, and none can earn more than {self.upper:.6f}: "
                "the world, the bound or a constraint is wrong; a margin may not be concave"
            )

    @property
    def upper(self) -> float:
        """What no policy that keeps the constraints exceeds, proven: ``reward + T * gap``, in nats; with a barrier, what the
        program's value does not exceed."""
        return self.reward + len(self.mu) * self.gap


def certified_bound(mdp: TaxiMDP, barrier: float = 0.0) -> Bound:
    """Bound the return of every policy that keeps the constraints by a convex program per step.

    ``KL(rho || mu)`` is convex and the margins are concave in ``mu``, so no policy that keeps the constraints
    earns more in a step, from the distribution that it causes, than

    - ``max -KL(rho || mu)`` over distributions with all margins at least zero (``barrier = 0``), or
    - ``max -KL(rho || mu) + barrier * sum log margin(mu)`` (``barrier > 0``), in the concave form of a margin that has one,
      see :class:`~mf_taxi_env.Constraint`.

    Args:
        mdp: The world; its motion, trips and initial distribution do not enter, only demand, horizon and constraints.
        barrier: Weight of the log-barrier, at least 0.

    Returns:
        The bound; solved once per world and kept.

    Raises:
        ImportError: If CVXPY is not installed.
        TypeError: If the world is no :class:`~mf_taxi_env.TaxiMDP`, or a constraint's safe set is not convex, or has no convex
            program of moderate size.
        InfeasibleError: If no distribution meets the constraints.
        NoBoundError: If the solver fails.
        ValueError: If ``barrier`` is negative; the two above are such errors, too.
    """
    check_city(mdp)
    barrier = finite_number("barrier", barrier)
    known = _BOUNDS.setdefault(mdp, {})
    if barrier not in known:
        known[barrier] = _solve(mdp, barrier)
    return known[barrier]


_BOUNDS: WeakKeyDictionary[TaxiMDP, dict[float, Bound]] = WeakKeyDictionary()


def check_city(mdp: MeanFieldMDP) -> None:
    """Make sure that a world is a city, of which alone a bound is known.

    Raises:
        TypeError: If it is another one.
    """
    if not isinstance(mdp, TaxiMDP):
        raise TypeError(
            f"a certified bound is known of a TaxiMDP alone, got {type(mdp).__name__}: for other worlds see "
            "mf_taxi_env.scoring.episode_score and possible_return"
        )


def _solve(mdp: TaxiMDP, barrier: float) -> Bound:
    cp = _cvxpy()
    rows: dict[bytes, tuple[NDArray[np.float64], float, float, float]] = {}
    path = []
    for t in range(mdp.horizon):
        rho = mdp.demand(t).double().cpu().numpy()
        key = rho.tobytes()
        if key not in rows:
            rows[key] = _solve_step(cp, mdp, rho / rho.sum(), barrier)
        path.append(rows[key])
    mu, value, kl, gap = zip(*path, strict=True)
    return Bound(sum(value), float(np.mean(value)), np.stack(mu), float(max(gap)), float(np.mean(kl)), barrier)


def _solve_step(
    cp: ModuleType, mdp: TaxiMDP, rho: NDArray[np.float64], barrier: float
) -> tuple[NDArray[np.float64], float, float, float]:
    # In other units the solver takes another way: where it gets stuck on one, it does not on the other.
    try:
        solution, multipliers, level = _optimum(cp, mdp, rho, barrier, unit=1.0)
    except cp.error.SolverError:
        try:
            solution, multipliers, level = _optimum(cp, mdp, rho, barrier, unit=1.0 / rho.size)
        except cp.error.SolverError as error:
            raise NoBoundError(
                f"the solver finds no bound under the constraints {mdp.constraints} with barrier={barrier!r}: {error}"
            ) from error
    value, upper = _certificate(mdp, rho, solution, multipliers, barrier, level)
    if not math.isfinite(upper - value):
        raise InfeasibleError(f"no distribution meets the constraints {mdp.constraints} with room to spare for a barrier")
    kl = float(kl_divergence(torch.from_numpy(rho), torch.from_numpy(solution)))
    return solution, value, kl, max(0.0, upper - value)


def _optimum(
    cp: ModuleType, mdp: TaxiMDP, rho: NDArray[np.float64], barrier: float, unit: float
) -> tuple[NDArray[np.float64], list[float], float]:
    """What the solver finds with masses measured in ``unit``: the optimum, the constraints' multipliers and the slope level."""
    masses = cp.Variable(rho.size, nonneg=True)
    simplex = cp.sum(masses) == 1.0 / unit
    margins = [constraint.convex_margin(unit * masses) for constraint in mdp.constraints]
    floors = [] if barrier else [margin >= 0 for margin in margins]
    objective = -unit * cp.sum(cp.kl_div(rho / unit, masses))  # equals -KL on the simplex
    if barrier:
        objective += barrier * cp.sum([cp.log(margin) for margin in margins])
    problem = cp.Problem(cp.Maximize(objective), [simplex, *floors])
    if not problem.is_dcp():
        raise TypeError(
            f"there is no certified bound under the constraints {mdp.constraints}: a convex_margin is not concave, as far as "
            "CVXPY's rules of disciplined convex programming can tell"
        )
    # CVXPY evaluates the objective, which has no value where the constraints have no interior, and warns of an inaccurate
    # solution, which the certificate judges better.
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        problem.solve(solver=cp.CLARABEL)
    if problem.status in ("infeasible_inaccurate", "unbounded", "unbounded_inaccurate"):  # neither can be
        raise cp.error.SolverError(f"solver status {problem.status}")
    # "user_limit": out of iterations. How good what it has is, the certificate says.
    if problem.status not in ("optimal", "optimal_inaccurate", "user_limit") or masses.value is None:
        raise InfeasibleError(f"no distribution meets the constraints {mdp.constraints} (solver status: {problem.status})")
    solution = np.clip(unit * masses.value, 1e-12, None)
    solution /= solution.sum()
    # Of cells in use all slopes of the Lagrangian are equal. CVXPY's kl_div has that of -KL less one.
    return solution, [float(floor.dual_value) for floor in floors], 1.0 + float(simplex.dual_value) / unit


@torch.enable_grad()  # callers may well be inside no_grad
def _certificate(
    mdp: TaxiMDP,
    rho: NDArray[np.float64],
    solution: NDArray[np.float64],
    multipliers: list[float],
    barrier: float,
    level: float = 0.0,
) -> tuple[float, float]:
    """Value of the solution, and a proven upper bound on every distribution's value.

    For any multipliers ``nu >= 0`` the Lagrangian ``L(mu) = -KL + nu . margins`` (or the barrier objective) is concave and at
    least the objective on the safe set; a concave function lies below its tangent, and the largest value of a tangent on the
    simplex is at a vertex. So ``L(m) + max_i grad_i - grad . m`` bounds the optimum, whatever ``m`` and ``nu`` the solver
    came up with. At a kink of a margin many tangents do; the one wanted makes all slopes equal to the solver's ``level``.
    """
    mu = torch.from_numpy(solution).requires_grad_()
    value = -kl_divergence(torch.from_numpy(rho), mu)
    forms = [getattr(constraint, "concave_margin", constraint.margin)(mu) for constraint in mdp.constraints]
    margins = torch.stack(forms) if forms else mu.new_zeros(0)
    if barrier:
        value = value + barrier * margins.log().sum()
        lagrangian, weights = value, barrier / margins.detach()
    else:
        weights = torch.tensor(multipliers, dtype=torch.float64).clamp_min(0)
        lagrangian = value + (margins * weights).sum()
    (gradient,) = torch.autograd.grad(lagrangian, mu, retain_graph=True)
    for constraint, form, weight in zip(mdp.constraints, forms, weights, strict=True):
        if weight <= 0 or not hasattr(constraint, "tangent"):
            continue
        (own,) = torch.autograd.grad(form, mu, retain_graph=True)
        if tangent := constraint.tangent(mu.detach(), (level - gradient) / weight + own):
            offset, slope = tangent
            lagrangian = lagrangian + weight * (offset + slope @ mu - form)
            gradient = gradient + weight * (slope - own)
    upper = lagrangian + gradient.max() - (gradient * mu).sum()
    return float(value.detach()), float(upper.detach())


def _cvxpy() -> Any:
    try:
        import cvxpy
    except ImportError as error:
        raise ImportError("The certified bound needs CVXPY: pip install 'safe-m3-taxi[bounds]'") from error
    return cvxpy
