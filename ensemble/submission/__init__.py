"""What is handed in, and the proof that the rules hold."""
