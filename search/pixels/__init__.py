"""Images: canvases, their cache, augmentation, batches. It knows no network."""
