"""Scripts beside training: curves, model sizes, data checks, weight conversion."""
