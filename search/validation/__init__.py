"""What figures are worth: leaks in the data, methods held out, images that were altered."""
