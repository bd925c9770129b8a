"""Images and labels: tables, splits, canvases, augmentation, batches. Knows no network, no Optuna."""
