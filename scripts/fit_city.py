"""Fit the parameters of a built-in city to real trips, and write them as TOML.

    python scripts/fit_city.py --data DIR

Two mixtures of Gaussians and a distance decay are fitted with Adam through the same quadrature that the library uses: first the
demand, then attraction and decay together through the whole gravity model, so that the rows of trips, the drop-offs, the mean
trip and what the trips do to an idle fleet come out right. Only the parameters are written, never the data. The figures printed
at the end, and kept in the file's header, are those of the rounded parameters.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.polynomial.legendre import leggauss
from numpy.typing import NDArray
from torch import Tensor

from mf_taxi_env.information import entropy, kl_divergence
from mf_taxi_env.scenarios.city import DECAY_NODES, Component, DistanceDecay, Mixture, ParametricCity, box_km
from mf_taxi_env.scenarios.scenario import Scenario
from mf_taxi_env.scenarios.trips import scenario_from_trips
from mf_taxi_env.taxi import TaxiMDP

ROOT = Path(__file__).resolve().parents[1]
TRIPS_FILE = "shenzhen_od_500m.csv.gz"
#: The study area of arXiv 2306.17052, App. D.1, and the source's grid.
BOX = (114.015, 114.14, 22.5, 22.625)
SOURCE_CELL = (0.0048726, 0.0044966)
#: No component is narrower than half a cell of the grid fitted on, so that the city is not a copy of that grid.
CELLS, STD_RANGE = 25, (0.02, 0.3)
#: Share of the mixtures that is spread evenly: sea and mountains are all but empty, and no cell is exactly so.
UNIFORM = 2e-4
#: Double precision: the descent amplifies rounding, and the file should come out alike on another machine.
DTYPE = torch.float64

HEADER = """\
# Parameters of the built-in city "shenzhen", a smooth stand-in for its real taxi trips. No trip record is in this file.
#
# Fitted to the origin-destination counts of Shenzhen taxis in the data samples of the open tutorial ni1o1/pygeo-tutorial (MIT
# licence), in the study area of Jusup et al., "Safe Model-Based Multi-Agent Mean-Field Reinforcement Learning"
# (arXiv 2306.17052), App. D.1. Regenerate, with DIR the folder of the file {file}, by
#
#     python scripts/fit_city.py --data DIR
#
# Lengths are in sides of the unit square (x along longitude, y along latitude), angles in degrees counter-clockwise from east.
# On 25 x 25 cells, against the real trips:
{quality}
"""


def default_data() -> Path:
    """The folder of trip files: ``$MF_TAXI_DATA``, or ``shared/data`` beside the repository."""
    return Path(os.environ.get("MF_TAXI_DATA") or ROOT.parent / "shared" / "data")


@dataclass(frozen=True)
class Arguments:
    """Fit the built-in city to real trips."""

    data: Path = field(default_factory=default_data)
    """The trip file, or the folder that holds it."""
    output: Path = ROOT / "mf_taxi_env" / "scenarios" / "shenzhen.toml"
    """Where the parameters go."""
    demand_components: int = 40
    """Gaussians of the demand."""
    attraction_components: int = 40
    """Gaussians of the attraction."""
    steps: int = 1500
    """Adam steps of either stage."""
    seed: int = 0
    """Seed of the initial components."""


class TorchMixture(torch.nn.Module):
    """:class:`Mixture` with free parameters: ``cell_masses`` in torch, on the fixed grid of the fit."""

    def __init__(self, start: NDArray[np.float64], count: int, generator: torch.Generator) -> None:
        """Components start as wide circles at cells drawn from the masses ``start`` ``[K]``."""
        super().__init__()
        drawn = torch.multinomial(torch.tensor(start), count, replacement=False, generator=generator)
        place = torch.stack([drawn // CELLS, drawn % CELLS], -1) + torch.rand(count, 2, generator=generator, dtype=DTYPE)
        self.mean = torch.nn.Parameter(torch.logit((place / CELLS).clamp(0.01, 0.99)))
        self.logits = torch.nn.Parameter(torch.zeros(count, dtype=DTYPE))
        self.raw_std = torch.nn.Parameter(-1.5 + 0.1 * torch.randn(count, 2, generator=generator, dtype=DTYPE))
        self.angle = torch.nn.Parameter(math.pi * torch.rand(count, generator=generator, dtype=DTYPE))
        per_cell = math.ceil(2.0 / (STD_RANGE[0] * CELLS))
        nodes, weights = (torch.tensor(values, dtype=DTYPE) for values in leggauss(per_cell))
        self.position = ((torch.arange(CELLS)[:, None] + 0.5 + 0.5 * nodes) / CELLS).reshape(-1)
        self.weights = weights

    def std(self) -> Tensor:
        """Standard deviations along and across, ``[n, 2]``."""
        return STD_RANGE[0] + (STD_RANGE[1] - STD_RANGE[0]) * self.raw_std.sigmoid()

    def forward(self) -> Tensor:
        """Masses ``[K]``, sum to one."""
        mean, std = self.mean.sigmoid(), self.std()
        cos, sin = self.angle.cos(), self.angle.sin()
        a, b = 0.5 / std[:, 0] ** 2, 0.5 / std[:, 1] ** 2
        xx, yy, xy = a * cos**2 + b * sin**2, a * sin**2 + b * cos**2, 2.0 * (a - b) * sin * cos
        dx, dy = self.position - mean[:, :1], self.position - mean[:, 1:]
        exponent = (xx[:, None] * dx**2)[:, :, None] + (yy[:, None] * dy**2)[:, None, :]
        exponent = exponent + (xy[:, None] * dx)[:, :, None] * dy[:, None, :]
        scale = self.logits.softmax(0) / std.prod(-1)
        density = torch.einsum("n,nij->ij", scale, (-exponent).exp())
        blocks = density.reshape(CELLS, len(self.weights), CELLS, len(self.weights))
        mass = torch.einsum("iajb,a,b->ij", blocks, self.weights, self.weights).reshape(-1)
        return (1.0 - UNIFORM) * mass / mass.sum() + UNIFORM / mass.numel()

    @torch.no_grad()
    def rounded(self) -> Mixture:
        """The mixture as it is written to the file, heaviest component first."""
        columns = [
            self.logits.softmax(0)[:, None],
            self.mean.sigmoid(),
            self.std(),
            self.angle.rad2deg().remainder(180.0)[:, None],
        ]
        table: list[list[float]] = torch.cat(columns, 1).tolist()
        digits = (5, 4, 4, 4, 4, 1)
        rounded = (
            [round(value, places) for value, places in zip(row, digits, strict=True)] for row in sorted(table, reverse=True)
        )
        return Mixture(tuple(Component(*row) for row in rounded if row[0] > 0), UNIFORM)


class TorchTrips(torch.nn.Module):
    """The gravity model with free parameters."""

    def __init__(self, attraction: TorchMixture) -> None:
        super().__init__()
        self.attraction = attraction
        self.raw_decay = torch.nn.Parameter(torch.tensor([1.0, 1.5, 1.0], dtype=DTYPE).log())
        width, height = (side / CELLS for side in box_km(BOX))
        half, weights = leggauss(math.ceil(DECAY_NODES / (2 * CELLS)))
        half, weights = 0.5 + 0.5 * half, 0.5 * weights * (0.5 - 0.5 * half)
        offset = np.concatenate([-half[::-1], half])
        self.weights = torch.tensor(np.concatenate([weights[::-1], weights]), dtype=DTYPE)
        steps = (np.arange(CELLS)[:, None] + offset).ravel()
        self.km = torch.tensor(np.hypot((steps * width)[:, None], (steps * height)[None, :]), dtype=DTYPE)
        self.apart = (torch.arange(CELLS)[:, None] - torch.arange(CELLS)).abs()

    def forward(self) -> Tensor:
        """Trip probabilities ``[K, K]``."""
        power, scale, shape = self.raw_decay.exp()
        ratio = self.km / scale
        count = len(self.weights)
        blocks = (ratio**power * (-(ratio**shape)).exp()).reshape(CELLS, count, CELLS, count)
        decay = torch.einsum("iajb,a,b->ij", blocks, self.weights, self.weights)
        pairs = decay[self.apart[:, None, :, None], self.apart[None, :, None, :]].reshape(CELLS**2, CELLS**2)
        trips: Tensor = pairs * self.attraction()
        return trips / trips.sum(-1, keepdim=True)

    @torch.no_grad()
    def rounded(self) -> DistanceDecay:
        """The decay as it is written to the file."""
        return DistanceDecay(*(float(f"{value:.4g}") for value in self.raw_decay.exp().tolist()))


def staying_put(demand: Tensor, trips: Tensor, noise: Tensor, steps: int = 12) -> Tensor:
    """Distributions of a fleet that only serves passengers, ``[steps, K]``, from uniform: what trips do to it in an evening."""
    mu = torch.full_like(demand, 1.0 / len(demand))
    passed: list[Tensor] = []
    for _ in range(steps):
        served = torch.minimum(mu, demand)
        mu = mu - served + served @ trips
        mu = (noise.T @ mu.reshape(CELLS, CELLS) @ noise).reshape(-1)
        passed.append(mu)
    return torch.stack(passed)


def minimise(loss: Callable[[], Tensor], parameters: list[torch.nn.Parameter], steps: int, rate: float) -> None:
    """Adam with a cosine schedule."""
    optimizer = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def fit(real: Scenario, arguments: Arguments) -> tuple[Mixture, Mixture, DistanceDecay]:
    """Demand, attraction and decay for a real scenario on ``CELLS x CELLS`` cells."""
    generator = torch.Generator().manual_seed(arguments.seed)
    rho = torch.tensor(real.demand, dtype=DTYPE)
    real_entropy = entropy(rho)
    demand = TorchMixture(real.demand, arguments.demand_components, generator)

    def demand_loss() -> Tensor:
        fitted: Tensor = demand()
        variation = 0.5 * (rho - fitted).abs().sum()
        return variation + kl_divergence(rho, fitted) + (entropy(fitted) - real_entropy) ** 2

    minimise(demand_loss, list(demand.parameters()), arguments.steps, 0.03)

    flow = torch.tensor(real.trips, dtype=DTYPE)
    dropoffs = rho @ flow
    trips = TorchTrips(TorchMixture(dropoffs.numpy(), arguments.attraction_components, generator))
    km = torch.tensor(distances(CELLS, BOX), dtype=DTYPE)
    length = (rho[:, None] * flow * km).sum()
    with torch.no_grad():
        fitted_rho = demand()
        # Noise acts on the two axes alike, so that cells on the diagonal give the kernel of either.
        diagonal = torch.arange(CELLS) * (CELLS + 1)
        mdp = TaxiMDP(real, dtype=DTYPE)
        noise = mdp.noise.cell_probabilities(mdp.grid.centers(dtype=DTYPE)[diagonal])[:, 0]
        drift = staying_put(rho, flow, noise)
        missed = kl_divergence(rho, drift).sum()

    def trips_loss() -> Tensor:
        fitted: Tensor = trips()
        variation = 0.5 * (dropoffs - rho @ fitted).abs().sum()
        wrong_length = (rho[:, None] * fitted * km).sum() / length - 1.0
        # Served cells drain or fill until inflow meets outflow; every cell counts about alike here, however few its trips.
        fitted_drift = staying_put(fitted_rho, fitted, noise)
        wrong_drift = kl_divergence(drift, fitted_drift).mean()
        # Absolute, not squared: early on it is far off, and a square would drown the trips themselves.
        wrong_missed = (kl_divergence(fitted_rho, fitted_drift).sum() / missed - 1.0).abs()
        return variation + rho @ kl_divergence(flow, fitted) + wrong_length**2 + 2.0 * wrong_drift + wrong_missed

    minimise(trips_loss, list(trips.parameters()), arguments.steps, 0.03)
    return demand.rounded(), trips.attraction.rounded(), trips.rounded()


def distances(cells: int, box: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """Kilometres between cell centres, ``[K, K]``."""
    index = np.arange(cells * cells)
    width, height = (side / cells for side in box_km(box))
    x, y = index // cells * width, index % cells * height
    return np.hypot(x[:, None] - x, y[:, None] - y)


def figures(city: Scenario) -> dict[str, float]:
    """What a scenario is judged by, apart from its maps."""
    mdp = TaxiMDP(city, reward_timing="next", dtype=torch.float64)
    mu = mdp.initial()
    stay = torch.zeros(mdp.grid.size, 2, dtype=torch.float64)
    total = 0.0
    for t in range(mdp.horizon):
        following = mdp.transition(mu, stay, t)
        total -= float(mdp.reward(mu, stay, following, t))
        mu = following
    share = float(entropy(mu)) / math.log(mdp.grid.size)
    length = float((city.demand[:, None] * city.trips * distances(city.cells, city.box)).sum())
    return {
        "demand entropy (share of log K)": city.demand_entropy,
        "sum of KL when staying put": total,
        "entropy after staying put": share,
        "mean trip (km)": length,
    }


def report(real: Scenario, fitted: Scenario) -> list[str]:
    """Lines on how well a fitted scenario matches the real one."""
    mine, theirs = figures(fitted), figures(real)
    maps = {"demand": (real.demand, fitted.demand), "drop-offs": (real.demand @ real.trips, fitted.demand @ fitted.trips)}
    variations = [f"total variation of {name}: {0.5 * np.abs(a - b).sum():.4f}" for name, (a, b) in maps.items()]
    return variations + [f"{name}: {mine[name]:.4f} (real {theirs[name]:.4f})" for name in mine]


def to_toml(city: ParametricCity, header: str) -> str:
    """The city as a TOML document."""

    def rows(mixture: Mixture) -> list[str]:
        lines = [f"  [{', '.join(f'{value:g}' for value in component)}]," for component in mixture.components]
        columns = f"# Columns: {', '.join(Component._fields)}."
        return [f"uniform = {mixture.uniform:g}", columns, "components = [", *lines, "]", ""]

    decay = city.decay
    return "\n".join(
        [
            header,
            f'name = "{city.name}"',
            f"box = [{', '.join(map(str, city.box))}]  # west, east, south, north, in degrees",
            f"entropy_floor = {city.entropy_floor:g}  # share of log K",
            f'provenance = "{city.provenance}"',
            "",
            "# How willingly people ride r = km / scale_km: r ** power * exp(-r ** shape).",
            "[decay]",
            f"power = {decay.power:g}",
            f"scale_km = {decay.scale_km:g}",
            f"shape = {decay.shape:g}",
            "",
            "[demand]",
            *rows(city.demand),
            "[attraction]",
            *rows(city.attraction),
        ]
    )


def main(arguments: Arguments) -> None:
    """Fit, write, and say how well it went."""
    torch.set_num_threads(1)  # The sums of several threads differ in their last digits, and the file must not.
    started = time.perf_counter()
    source = arguments.data / TRIPS_FILE if arguments.data.is_dir() else arguments.data
    real = scenario_from_trips(source, box=BOX, cells=CELLS, source_cell=SOURCE_CELL)
    demand, attraction, decay = fit(real, arguments)
    provenance = (
        "Parametric stand-in fitted to Shenzhen taxi trips of ni1o1/pygeo-tutorial (MIT licence); study area of "
        "arXiv 2306.17052, App. D.1"
    )
    city = ParametricCity("shenzhen", BOX, demand, attraction, decay, real.entropy_floor, provenance)
    quality = report(real, city.scenario(CELLS))
    header = HEADER.format(file=TRIPS_FILE, quality="\n".join(f"# - {line}" for line in quality))
    arguments.output.write_text(to_toml(city, header), encoding="utf-8")
    if ParametricCity.load(arguments.output) != city:
        raise RuntimeError(f"{arguments.output} does not read back as what was written")
    print(*quality, f"{time.perf_counter() - started:.0f} seconds; wrote {arguments.output}", sep="\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
