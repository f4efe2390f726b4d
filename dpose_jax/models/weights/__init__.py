"""Published weights: where they lie, how they are read, which names they have."""
