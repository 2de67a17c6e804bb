"""Ranks, and the few collectives that training and evaluation need.

One process is world size 1: every function works there and does nothing.
"""

import os

import numpy as np
import paddle
import paddle.distributed as dist


def get_rank():
    """Return this process's rank, 0 to world size - 1."""
    return dist.get_rank()


def get_world_size():
    """Return the number of training processes."""
    return dist.get_world_size()


def is_launched():
    """Whether paddle.distributed.launch started this process."""
    return 'PADDLE_TRAINERS_NUM' in os.environ and 'PADDLE_TRAINER_ID' in os.environ


def sum_over_ranks(values):
    """Return the sums over ranks of a list of numbers, as float64 NumPy values."""
    values = np.asarray(values, dtype='float64')
    if get_world_size() == 1:
        return values
    total = paddle.to_tensor(values, dtype='float64')
    dist.all_reduce(total)
    return total.numpy()


def max_over_ranks(value):
    """Return the largest value of an integer over the ranks, on every rank."""
    if get_world_size() == 1:
        return value
    largest = paddle.to_tensor([value], dtype='int64')
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest.numpy()[0])


def agree_on(name, value):
    """Raise RuntimeError on every rank unless `value` (an int64) is the same on all.

    name: what the value stands for, for the message.
    """
    if get_world_size() == 1:
        return
    gathered = []
    dist.all_gather(gathered, paddle.to_tensor([value], dtype='int64'))
    values = [int(item.numpy()[0]) for item in gathered]
    if len(set(values)) > 1:
        raise RuntimeError(f'The processes disagree on {name}: {values} on ranks 0 to '
                           f'{len(values) - 1}. Give every process the same files and options.')


def wait_for_all():
    """Block until every rank has come here."""
    if get_world_size() > 1:
        max_over_ranks(0)       # unlike dist.barrier, works with every backend
