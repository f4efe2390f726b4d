"""From annotated images to batches: sources, crops and augmentation, the Grain pipeline."""
