"""What lies on disk: checkpoints, model folders, atomic files."""
