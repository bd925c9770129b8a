"""Images and labels: tables, splits, augmentation, loaders. Knows no network and no Optuna."""
