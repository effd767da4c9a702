"""Planners: they improve a policy in the learned world, which equals the true one where motion and trips are given."""
