"""Sources of examples, one file each; they know modalities and rasters only, and nothing of training."""
