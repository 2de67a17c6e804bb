"""Fine-tuning: which parameters are frozen, and the learning-rate factor of each.

A model is a list of layers from the input to the output. Unless its directory counts otherwise
(Project.number_layers), layer 0 is everything before the first block (patch embedding, stem,
class token, position embedding), layers 1 to `depth` are the blocks, and layer `depth` + 1 is
what follows them (last norm, pre-logits, classifier), as masked autoencoders are fine-tuned.
"""

import logging

from yacs.config import CfgNode

from common.errors import UserError
from common.project import Model, find_project

logger = logging.getLogger(__name__)

BACKBONE = 'backbone'


def freeze(model: Model, what: str) -> int:
    """Stop the training of a part of the model; return the number of frozen parameters.

    what: MODEL.FREEZE: '' (nothing), 'backbone' (all but the classifier: a linear
    probe), or a number N as text (layer 0 and the first N blocks). Frozen parameters
    get no gradient, no weight decay and no place in the optimizer. Their blocks still
    drop out: set MODEL.DROPOUT, ATTENTION_DROPOUT and DROPPATH to 0 for fixed features.
    Raises UserError for anything else.
    """
    if not what:
        return 0
    names = _list_frozen(model, what)
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.stop_gradient = True
    return len(names)


def number_layers(model: Model) -> dict[str, int]:
    """Return {parameter name: layer}, 0 to depth + 1, for all parameters of the model.

    By the model's directory, or else by `model.blocks`, for parameters that are listed from the
    input to the output.
    """
    project = find_project(model)
    if project.number_layers is not None:
        return project.number_layers(model)
    in_blocks = {id(parameter): number for number, block in enumerate(model.blocks, 1)
                 for parameter in block.parameters()}
    layers, passed_blocks = {}, False
    for name, parameter in model.named_parameters():
        number = in_blocks.get(id(parameter))
        passed_blocks = passed_blocks or number is not None
        if number is None:
            number = len(model.blocks) + 1 if passed_blocks else 0
        layers[name] = number
    return layers


def scale_learning_rates(model: Model, layer_decay: float = 1.0,
                         head_lr_scale: float = 1.0) -> dict[str, float]:
    """Return {parameter name: factor of the learning rate}.

    layer_decay ** (depth + 1 - layer) (arXiv 2111.06377, Appendix A.1; from ELECTRA), and for
    the classifier head_lr_scale as well.
    """
    layers = number_layers(model)
    last = len(model.blocks) + 1
    heads = find_project(model).heads
    return {name: layer_decay ** (last - layer) *
            (head_lr_scale if name.startswith(heads) else 1.0)
            for name, layer in layers.items()}


def log_frozen(config: CfgNode, frozen: int, total: int) -> None:
    """Log how much is frozen, and what still makes the frozen features random."""
    if not frozen:
        return
    logger.info('Frozen (MODEL.FREEZE %s): %d of %d parameter tensors.', config.MODEL.FREEZE,
                frozen, total)
    rates = [f'MODEL.{key} {config.MODEL[key]:g}'
             for key in ('DROPOUT', 'ATTENTION_DROPOUT', 'DROPPATH') if config.MODEL[key]]
    if rates:
        logger.warning('Frozen blocks drop out as the others do: %s. Set 0 for fixed features.',
                       ', '.join(rates))


def _list_frozen(model, what):
    """Return the names of the parameters that MODEL.FREEZE stands for."""
    layers = number_layers(model)
    if what == BACKBONE:
        heads = find_project(model).heads
        return {name for name in layers if not name.startswith(heads)}
    if not (what.isascii() and what.isdigit()) or int(what) > len(model.blocks):
        raise UserError(f'MODEL.FREEZE must be "{BACKBONE}" or a number of blocks from 0 to '
                        f'{len(model.blocks)}, not {what!r}.')
    return {name for name, layer in layers.items() if layer <= int(what)}
