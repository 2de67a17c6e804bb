"""The mean of the processes' gradients, on CPUs: after backward, in place.

Processes of one machine write to memory that all of them see, a part at a time that
fits their cache: a quarter of the time of Gloo, which sends everything through sockets.
"""

import contextlib
import logging
import mmap
import os
import stat
from collections.abc import Iterator, Sequence

import numpy as np
import paddle
import paddle.distributed as dist

from common.machine.distributed import (
    broadcast_texts,
    explain_lost_rank,
    gather_over_ranks,
    get_rank,
    get_world_size,
)
from common.machine.host_memory import share

logger = logging.getLogger(__name__)

CHUNK = 1 << 20             # numbers of a process at a time: 4 MB
ADDED_AT_ONCE = 1 << 17     # numbers added at a time, which stay in a core's own cache
TOKEN = 16                  # random bytes by which ranks know that they share the same memory


class GradientMean:
    """Calling it replaces every gradient of the parameters by its mean over ranks.

    Every rank must create it, and call it, at the same time, with the same parameters
    having gradients. shared: False leaves everything to Gloo.
    """

    def __init__(self, parameters: Sequence[paddle.Tensor], shared: bool = True) -> None:
        self.parameters = parameters
        self.slots = None
        if get_world_size() == 1:
            return
        if shared:
            self.slots = open_slots()
        logger.info('Gradients of %d processes are averaged %s.', get_world_size(),
                    'through Gloo' if self.slots is None else 'in shared memory')

    @paddle.no_grad()
    def __call__(self) -> None:
        if get_world_size() == 1:
            return
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        with explain_lost_rank():
            if self.slots is not None and all(fits(gradient) for gradient in gradients):
                average_in_slots([share(gradient).reshape(-1) for gradient in gradients],
                                 self.slots)
            else:
                average_through_gloo(gradients)


def fits(gradient: paddle.Tensor) -> bool:
    return (gradient.dtype == paddle.float32 and gradient.is_contiguous()
            and gradient.place.is_cpu_place())


def average_through_gloo(gradients: Sequence[paddle.Tensor]) -> None:
    for gradient in gradients:
        dist.all_reduce(gradient)
        gradient.scale_(1 / get_world_size())


def open_slots() -> np.ndarray | None:
    """Return float32 [2, ranks, CHUNK] in memory that all ranks share, or None without any.

    There is none where the ranks run on several machines or in containers of their own, or where
    the system has no memory files. Rank 0's has no name, so that nothing stays behind however
    the processes end, and none of /dev/shm is taken: the others open it by way of rank 0.
    """
    ranks = get_world_size()
    size = 4 * 2 * ranks * CHUNK + TOKEN
    memory = descriptor = None
    found = ['', '']
    if get_rank() == 0:
        secret = os.urandom(TOKEN)
        memory, descriptor = create_memory(size, secret)
        found = [f'/proc/{os.getpid()}/fd/{descriptor}' if memory else '', secret.hex()]
    path, token = broadcast_texts(found)
    if path and memory is None:
        memory = open_memory(path, size, bytes.fromhex(token))
    all_have_it = gather_over_ranks([memory is not None]).all()
    if descriptor is not None:
        os.close(descriptor)
    if not all_have_it:
        return None
    return np.frombuffer(memory, 'float32', 2 * ranks * CHUNK).reshape(2, ranks, CHUNK)


def create_memory(size: int, token: bytes) -> tuple[mmap.mmap | None, int | None]:
    """Return new shared memory that ends with the token, and its descriptor; or two None."""
    descriptor = None
    try:
        descriptor = os.memfd_create('gradients')
        os.posix_fallocate(descriptor, 0, size)         # a page missing later is a SIGBUS
        memory = mmap.mmap(descriptor, size)
    except (OSError, AttributeError, ValueError):       # no memory left; not Linux
        if descriptor is not None:
            os.close(descriptor)
        return None, None
    memory[-len(token):] = token
    return memory, descriptor


def open_memory(path: str, size: int, token: bytes) -> mmap.mmap | None:
    """Return the shared memory that rank 0 has made, or None.

    In another container the path may lead to anything: size and token are compared.
    """
    with contextlib.suppress(OSError, ValueError):
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            return None
        with open(path, 'r+b') as file:
            memory = mmap.mmap(file.fileno(), size)
            if memory[-len(token):] == token:
                return memory
    return None


def average_in_slots(arrays: Sequence[np.ndarray], slots: np.ndarray) -> None:
    """Replace flat float32 arrays by their means over ranks, bit-identical on all of them.

    Two slots take turns, so that one wait a chunk is enough: a rank that writes to a slot
    again has passed the wait that all others reach only after reading it.
    """
    ranks, rank = slots.shape[1], get_rank()
    token = paddle.zeros([1])

    def wait_for_all():         # the fastest of Gloo's calls that return only once all came
        dist.all_reduce(token)

    for number, pieces in enumerate(split(arrays, slots.shape[2])):
        slot = slots[number % 2]
        for start, piece in pieces:
            np.multiply(piece, np.float32(1 / ranks), out=slot[rank, start:start + len(piece)])
        wait_for_all()
        for start, piece in pieces:
            for first in range(0, len(piece), ADDED_AT_ONCE):
                part = piece[first:first + ADDED_AT_ONCE]
                theirs = slot[:, start + first:start + first + len(part)]
                np.add(theirs[0], theirs[1], out=part)
                for other in theirs[2:]:
                    part += other
    wait_for_all()          # the next call begins with the first slot again


def split(arrays: Sequence[np.ndarray], size: int) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Yield lists of (start, part of an array) that lie behind one another within `size`."""
    pieces, start = [], 0
    for array in arrays:
        while len(array):
            part, array = array[:size - start], array[size - start:]
            pieces.append((start, part))
            start += len(part)
            if start == size:
                yield pieces
                pieces, start = [], 0
    if pieces:
        yield pieces
