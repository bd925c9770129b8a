"""The candidates that may be merged, and their scores."""
