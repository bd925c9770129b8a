"""One student learns from many."""
