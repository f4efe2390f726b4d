"""State, step, loop and checkpoints of a training run."""
