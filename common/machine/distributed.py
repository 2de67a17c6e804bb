"""Ranks, and the few collectives that training and evaluation need.

One process is world size 1: every function works there and does nothing.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence

import numpy as np
import paddle
import paddle.distributed as dist

from common.errors import RunError


def get_rank() -> int:
    """Return this process's rank, 0 to world size - 1."""
    return dist.get_rank()


def get_world_size() -> int:
    """Return the number of training processes."""
    return dist.get_world_size()


def is_launched() -> bool:
    """Whether paddle.distributed.launch started this process."""
    return 'PADDLE_TRAINERS_NUM' in os.environ and 'PADDLE_TRAINER_ID' in os.environ


@contextlib.contextmanager
def explain_lost_rank() -> Iterator[None]:
    """Turn what Gloo raises when another process is gone into a RunError."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        if 'gloo' not in str(error):
            raise
        raise RunError('Lost another process, whose own message tells why '
                       f'({str(error).strip().splitlines()[-1]})') from None


def gather_over_ranks(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return every rank's numbers: float64 array [world size, len(values)]."""
    array = np.ascontiguousarray(values, dtype='float64')
    if get_world_size() == 1:
        return array[None]
    gathered = []
    with explain_lost_rank():       # as integers: not every accelerator has float64
        dist.all_gather(gathered, paddle.to_tensor(array.view('int32')))
    return np.stack([item.numpy().view('float64') for item in gathered])


def broadcast_texts(texts: Sequence[str]) -> Sequence[str]:
    """Return rank 0's list of texts on every rank."""
    if get_world_size() == 1:
        return texts
    texts = list(texts)
    dist.broadcast_object_list(texts, src=0)
    return texts


def agree_on(name: str, value: int) -> None:
    """Raise RunError on every rank unless the number `value` is the same on all.

    name: what the value stands for, for the message.
    """
    if get_world_size() == 1:
        return
    values = [int(rank[0]) for rank in gather_over_ranks([value])]
    if len(set(values)) > 1:
        raise RunError(f'The processes disagree on {name}: {values} on ranks 0 to '
                       f'{len(values) - 1}. Give every process the same files and options.')


def wait_for_all() -> None:
    """Block until every rank has come here."""
    if get_world_size() > 1:
        gather_over_ranks([0])      # unlike dist.barrier, the same call on every backend
