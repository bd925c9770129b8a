"""Forgery methods that no file names: fakes described by their traces, and clustered."""
