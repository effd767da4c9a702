"""Algorithms of Stable-Baselines3 on the lifted MDP: an adapter, policies in return, a Lagrangian, settings and training.

Only :mod:`baselines.sb3.settings` does without Stable-Baselines3 (extra ``baselines``).
"""
