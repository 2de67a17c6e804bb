"""From files to batches: reading, transforming, ordering and loading images."""
