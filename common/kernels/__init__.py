"""Arithmetic on a CPU by other means than the framework's own operators."""
