"""One process's work on a run folder: search, report, refit, profile."""
