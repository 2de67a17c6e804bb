"""What to do when memory runs out."""

import re

from yacs.config import CfgNode

# Paddle's allocators, CUDA with cuBLAS and cuDNN 8 and 9, XPUs, the C++ runtime, NumPy, Linux.
SIGNS = re.compile(r'out of memory|ResourceExhausted|bad_alloc|unable to allocate|'
                   r'cannot allocate memory|_ALLOC_FAILED|_ALLOCATION_FAILED|XPUERR_NOMEM|'
                   r'no enough memory|not enough memory', re.IGNORECASE)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory, of the GPU or the machine, ran out.

    Our own errors, which may speak of memory too, have types of their own.
    """
    if isinstance(error, MemoryError):
        return True
    return type(error) in (RuntimeError, SystemError, OSError) and bool(SIGNS.search(str(error)))


def advise(config: CfgNode, device: str) -> str:
    """Return the message for a run that ran out of memory: what else to try, and its effect."""
    where = 'memory' if device == 'cpu' else f'memory of {device}'
    data = config.DATA
    batch = data.BATCH_SIZE
    if config.EVAL:
        batch = data.BATCH_SIZE_EVAL or batch
        return (f'Out of {where} with {batch} images of {data.IMAGE_SIZE} pixels a batch. '
                f'Try -batch_size_eval={max(1, batch // 2)}; results stay the same.')
    tips = []
    if batch > 1:
        accumulate = config.TRAIN.ACCUM_ITER * 2
        tips.append(f'-batch_size={batch // 2} -accum_iter={accumulate} halves the activations '
                    'at the same effective batch')
    if not config.MODEL.RECOMPUTE:
        tips.append('-opts MODEL.RECOMPUTE True keeps one activation a block, for about a third '
                    'more time')
    if not config.AMP and device != 'cpu':
        tips.append('-amp halves the activations (AMP_LEVEL O2 the weights in use too)')
    tips.append(f'-image_size below {data.IMAGE_SIZE}: activations go with its square')
    return (f'Out of {where} with {batch} images of {data.IMAGE_SIZE} pixels a micro-batch. Try, '
            f'in this order: {"; ".join(tips)}.')
