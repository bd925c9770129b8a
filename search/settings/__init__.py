"""What commands are told: one source for their flags, their help, and settings.yaml."""
