"""A training run's checkpoints: what they hold, how they are written, kept and found again."""
