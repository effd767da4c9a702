"""Planners: they improve a policy in whichever mean-field MDP they are given."""
