"""Merge a run's best candidates into the one model that may be submitted."""
