"""Samples generated from the training images, so that the same bytes can be made again."""
