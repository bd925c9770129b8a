"""What the process runs on: device, files, clock, signals, terminal."""
