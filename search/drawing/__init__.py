"""What every figure and page of onefold shares: the look, and how it is written."""
