"""What a data set gives away before a network has seen it: leaks, copies, broken files."""
