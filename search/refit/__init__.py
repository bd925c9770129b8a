"""A chosen recipe, trained for longer on more."""
