"""Are learned trips as far off as they are doubted, and does the certificate hold the truth? At several numbers of trips.

Run: python benchmarks/unknown_trips.py [--scenario shenzhen | city.npz] [--seeds 3]

Trips are drawn from where a uniform fleet serves them, without a fleet. The motion is known, so that trips are the only doubt.
Policies are to stay put, and a field of small random actions.
"""

from __future__ import annotations

import torch
import tyro

from mf_taxi_env import Scenario, TaxiMDP, load_scenario
from safe_m3_agent.certificate import CertificateConfig, Certifier
from safe_m3_agent.hallucination import HallucinatedMDP
from safe_m3_agent.model.dynamics_model import KnownModel
from safe_m3_agent.model.trip_model import TripConfig, make_trip_model
from safe_m3_agent.policy import FieldPolicy
from safe_m3_agent.transitions import Trips

#: Trips seen, in all.
SEEN = (100, 500, 1500, 5000, 20_000)


def main(scenario: str = "shenzhen", seeds: int = 3) -> None:
    """Print the table.

    Args:
        scenario: Name of a built-in scenario, or path of a file made by `mf-taxi build`, with constant trips.
        seeds: Repetitions.
    """
    torch.set_num_threads(1)
    city = TaxiMDP(Scenario.load(scenario) if scenario.endswith(".npz") else load_scenario(scenario), reward_timing="next")
    trips = torch.eye(city.grid.size) @ city.trips(0)  # dense, should they be sparse
    served = torch.minimum(city.initial(), city.demand(0))
    policies = [FieldPolicy(city), FieldPolicy(city)]
    with torch.no_grad():
        policies[1].logits += 0.04 * torch.randn(policies[1].logits.shape, generator=torch.Generator().manual_seed(1))
        truth = [float(city.rollout(policy).worst_margin) for policy in policies]
    print(
        "seed  trips  doubt  error  margins: (true, likeliest trips, worst plausible trips) for staying put; for a random field"
    )
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(100 + seed)
        model = make_trip_model(TripConfig(), city, torch.Generator().manual_seed(seed))
        for seen in SEEN:
            origins = torch.multinomial(served, seen - model.trips.size, replacement=True, generator=generator)
            destinations = torch.multinomial(trips[origins], 1, generator=generator).squeeze(1)
            model.fit(Trips(origins, destinations))
            learned = HallucinatedMDP(city, KnownModel(city.motion, city.noise.std), 3.5, model)
            row = []
            for policy, margin in zip(policies, truth, strict=True):
                with torch.no_grad():
                    nominal = float(learned.rollout(policy).worst_margin)
                none = city.initial().new_zeros(0, learned.directions)
                found = Certifier(CertificateConfig()).certify(learned, policy, none, torch.Generator().manual_seed(0))
                row.append(f"({margin:.3f}, {nominal:.3f}, {found.margin:.3f})")
            known = model.metrics(city)
            print(f"{seed:4d}  {seen:5d}  {known['doubt']:.3f}  {known['error']:.3f}  {'; '.join(row)}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
