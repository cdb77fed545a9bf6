"""Ranking, noise and compilation."""
