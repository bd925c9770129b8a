"""All models side by side on report, and the one to submit."""
