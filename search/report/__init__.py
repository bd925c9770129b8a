"""Projections of what lies on disk, for people; never part of a trial."""
