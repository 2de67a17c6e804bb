"""From batches to weights: the loop, its losses and optimizers, evaluation, checkpoints."""
