"""Policies: they start by staying put, stay in their bounds, and are one function seen from the field and from a taxi."""

from __future__ import annotations

import math

import pytest
import torch

from mf_taxi_env import FleetSimulator, TaxiMDP
from mf_taxi_env.fleet_policy import POLICY_CHUNK
from safe_m3_agent.policy import FieldPolicy, NetworkPolicy, Policy, PolicyConfig, make_policy

KINDS = [
    PolicyConfig("field"),
    PolicyConfig("field", per_step=True),
    PolicyConfig("network", hidden=(8,)),
    PolicyConfig("network", per_step=True, hidden=(8, 6)),
    PolicyConfig("network", hidden=(8,), residual=False),
    PolicyConfig("network", per_step=True, hidden=(8,), residual=False),
]


def disturbed(config: PolicyConfig, world: TaxiMDP, scale: float = 0.5) -> Policy:
    """A policy with random parameters."""
    generator = torch.Generator().manual_seed(3)
    policy = make_policy(config, world, generator)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return policy


def distributions(world: TaxiMDP, *batch: int) -> torch.Tensor:
    """Random distributions."""
    mass = torch.rand(*batch, world.grid.size, generator=torch.Generator().manual_seed(1), dtype=world.dtype)
    return mass / mass.sum(-1, keepdim=True)


@pytest.mark.parametrize("config", KINDS)
def test_new_policy_stays_put(config: PolicyConfig, world: TaxiMDP) -> None:
    """Safe learning starts from zero moves: exactly zero, everywhere, at every step."""
    policy = make_policy(config, world, torch.Generator().manual_seed(0))
    mu = distributions(world)
    for t in range(world.horizon):
        assert not policy.field(mu, t).any()
        assert not policy(torch.rand(7, 2), mu, t).any()


@pytest.mark.parametrize("config", KINDS)
def test_actions_stay_in_bounds(config: PolicyConfig, world: TaxiMDP) -> None:
    """Even wild parameters give actions in [-1, 1]."""
    actions = disturbed(config, world, scale=100.0).field(distributions(world), 0)
    assert (actions.abs() <= 1).all() and (actions.abs() > 0.9).any()


@pytest.mark.parametrize("config", KINDS)
def test_field_is_the_policy_at_the_centres(config: PolicyConfig, world: TaxiMDP) -> None:
    """The lifted MDP and a taxi see the same function."""
    policy, mu = disturbed(config, world), distributions(world)
    for t in range(world.horizon):
        torch.testing.assert_close(policy.field(mu, t), policy(world.centers, mu, t))


@pytest.mark.parametrize("config", KINDS)
def test_batch_equals_loop(config: PolicyConfig, world: TaxiMDP) -> None:
    """A batch of distributions gives what each of them gives alone."""
    policy, mu = disturbed(config, world), distributions(world, 2, 3)
    fields = policy.field(mu, 1)
    assert fields.shape == (2, 3, world.grid.size, 2)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(fields[i, j], policy.field(mu[i, j], 1))


@pytest.mark.parametrize("config", KINDS)
def test_only_per_step_policies_differ_between_steps(config: PolicyConfig, world: TaxiMDP) -> None:
    """``per_step`` gives every step of the episode a policy of its own; without it all steps are alike."""
    policy, mu = disturbed(config, world), distributions(world)
    fields = [policy.field(mu, t) for t in range(world.horizon)]
    same = [torch.equal(fields[0], field) for field in fields[1:]]
    assert not any(same) if config.per_step else all(same)


def test_only_the_network_sees_the_distribution(world: TaxiMDP) -> None:
    """A field is blind to mu, so that an adversary has nothing to exploit; a network is not."""
    first, second = distributions(world, 2)
    field, network = disturbed(KINDS[0], world), disturbed(KINDS[2], world)
    assert torch.equal(field.field(first, 0), field.field(second, 0))
    assert not torch.allclose(network.field(first, 0), network.field(second, 0))


def test_split_first_layer_is_the_whole_one(world: TaxiMDP) -> None:
    """Computing the distribution's part once per fleet gives what concatenating it to every taxi gives."""
    policy, mu, positions = disturbed(KINDS[3], world), distributions(world), torch.rand(9, 2)
    assert isinstance(policy, NetworkPolicy) and policy.residual is not None
    network = policy.network(2)
    whole = torch.nn.Linear(2 + world.grid.size, 8)
    with torch.no_grad():
        whole.weight.copy_(torch.cat([network.from_position.weight, network.from_mu.weight], 1))
        whole.bias.copy_(network.from_position.bias)
    inputs = torch.cat([positions, (world.grid.size * mu).expand(9, -1)], -1)
    hidden = torch.nn.functional.leaky_relu(whole(inputs))
    hidden = torch.nn.functional.leaky_relu(network.inner[0](hidden))
    expected = (network.out(hidden) + policy.residual.raw(2)[world.grid.index(positions)]).tanh()
    torch.testing.assert_close(policy(positions, mu, 2), expected)


def test_a_fleet_computes_the_distributions_part_once_a_step(world: TaxiMDP, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many chunks of taxis are asked."""
    policy = disturbed(KINDS[2], world)
    assert isinstance(policy, NetworkPolicy)
    calls: list[int] = []
    policy.network(0).from_mu.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setitem(POLICY_CHUNK, "cpu", 10)
    FleetSimulator(world, 100, resolution="continuous").rollout(policy)
    assert len(calls) == world.horizon


def test_policies_take_the_worlds_type(make_world: type) -> None:
    """A float64 world gets a float64 policy."""
    world = make_world(dtype=torch.float64)
    for config in KINDS:
        policy = make_policy(config, world, torch.Generator())
        assert policy.field(world.initial(), 0).dtype == torch.float64


def test_same_generator_same_network(world: TaxiMDP) -> None:
    """Initial weights come from the generator alone."""
    first, second, other = (
        make_policy(KINDS[2], world, torch.Generator().manual_seed(seed)).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["networks.0.from_mu.weight"], other["networks.0.from_mu.weight"])


def test_a_step_after_the_last_field_uses_the_last(world: TaxiMDP) -> None:
    """Asking for a step beyond the horizon is answered, not an index error."""
    policy = disturbed(KINDS[1], world)
    assert isinstance(policy, FieldPolicy)
    assert torch.equal(policy.raw(99), policy.raw(world.horizon - 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "tree"}, "'field' or 'network', got 'tree'"),
        ({"hidden": ()}, "hidden"),
        ({"hidden": (8, 0)}, r"policy.hidden\[1\] must be an integer >= 1, got 0"),
    ],
)
def test_settings_are_validated(options: dict[str, object], message: str) -> None:
    """Unknown kinds and empty layers are refused."""
    with pytest.raises(ValueError, match=message):
        PolicyConfig(**options)  # type: ignore[arg-type]


def test_a_field_of_given_actions(world: TaxiMDP) -> None:
    """It takes just these actions, one field for all steps or one per step; what no field can take is refused."""
    actions = 0.9 * (0.5 - world.centers)
    mu = world.initial()
    torch.testing.assert_close(FieldPolicy.of_actions(world, actions).field(mu, 2), actions)
    stepwise = FieldPolicy.of_actions(world, torch.stack([share * actions for share in (0.0, 0.5, 1.0)]))
    torch.testing.assert_close(stepwise.field(mu, 1), 0.5 * actions)
    with pytest.raises(ValueError, match=r"shape \(25, 2\) or \(3, 25, 2\), got \(24, 2\)"):
        FieldPolicy.of_actions(world, actions[1:])
    for size in (1.0, math.nan):
        with pytest.raises(ValueError, match=rf"lie in \(-1, 1\), got some of size {size:g}"):
            FieldPolicy.of_actions(world, torch.full_like(actions, size))
