"""Feeding a network: which images come when, read by workers and collated into batches."""
