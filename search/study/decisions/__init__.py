"""What is tried, what is trained further and how far: pure functions of what is known."""
