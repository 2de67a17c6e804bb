"""What the models of benchmarks/coverage.py have in common: their size and their images."""

import numpy as np

IMAGE_SIZE, PATCH_SIZE, WIDTH, DEPTH, HEADS, CLASSES = 32, 8, 64, 2, 4, 5


def make_images():
    """Return the images [2, 3, 32, 32] that every peer is asked about, float64."""
    generator = np.random.default_rng(0)
    return generator.standard_normal((2, 3, IMAGE_SIZE, IMAGE_SIZE))


def randomize(model):
    """Give every parameter of a PyTorch model random numbers that leave no layer without effect."""
    import torch
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter) + (parameter == 1))


def attempt(write, *arguments):
    """Call a function that writes a case; return why it could not be made, '' where it was."""
    try:
        write(*arguments)
    except Exception as error:          # a size that the peer refuses, a class that it lacks
        return f'{type(error).__name__}: {error}'[:100]
    return ''
