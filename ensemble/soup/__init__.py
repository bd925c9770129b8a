"""Averaging weights of one start."""
