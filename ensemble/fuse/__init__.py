"""Several candidates inside one module."""
