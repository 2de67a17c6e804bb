"""Released weights: any checkpoint into a model, without running what a file asks for."""

from common.weights.load import (
    LoadReport,
    describe_numerics,
    find_preprocessing,
    load_from_config,
    load_pretrained,
    open_weights,
)

__all__ = ['LoadReport', 'describe_numerics', 'find_preprocessing', 'load_from_config',
           'load_pretrained', 'open_weights']
