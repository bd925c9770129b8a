"""Labels: tables, groups, splits, the demo set. It decodes no image."""
