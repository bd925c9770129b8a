"""What figures are worth: leaks in the data, unnamed kinds of forgery, altered images."""
