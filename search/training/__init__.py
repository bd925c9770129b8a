"""Training one network from one Recipe. Knows no Optuna and no study."""
