"""Planners: they improve a policy in the learned world, which where the motion is given is the true one."""
