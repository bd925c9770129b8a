"""Images and labels: tables, splits, canvases, augmentation, batches. It knows no network."""
