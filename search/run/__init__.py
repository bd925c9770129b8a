"""What works on a run folder: a search, a refit of its best, a look at where the time goes."""
