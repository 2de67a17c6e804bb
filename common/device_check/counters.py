"""What an update costs beside arithmetic: waits for the device, and operators to start on it."""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator

import paddle
from paddle.profiler import Profiler, ProfilerTarget

from common.project import FILE_NAME

OWN_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OWN_FOLDER = os.path.dirname(os.path.abspath(__file__))
# What reads a tensor's values, or makes a tensor of the host's.
READING = ('numpy', 'item', 'tolist', '__array__', '__bool__', '__nonzero__', '__int__',
           '__long__', '__float__', '__index__', '__format__', '__str__')


class CopyCounter:
    """Counts copies between host and device that the program waits for, by source line.

    They are those that Python asks for: a tensor's values that are read, and tensors made of
    arrays and numbers. What the loader sends ahead is none. `lines`: {"file:line": count}, the
    innermost line of this project.
    """

    def __init__(self):
        self.lines: Counter[str] = Counter()
        self.is_inside = False          # one call may be made of others

    def __enter__(self):
        kind = paddle.base.core.eager.Tensor
        self.undo = [(kind, name, getattr(kind, name)) for name in READING if hasattr(kind, name)]
        self.undo.append((paddle, 'to_tensor', paddle.to_tensor))
        for owner, name, function in self.undo:
            setattr(owner, name, self._count(function, makes=name == 'to_tensor'))
        return self

    def __exit__(self, *exception):
        for owner, name, function in self.undo:
            setattr(owner, name, function)

    def _count(self, function, makes):
        def call(*arguments, **options):
            if self.is_inside:
                return function(*arguments, **options)
            self.is_inside = True
            try:
                result = function(*arguments, **options)
            finally:
                self.is_inside = False
            tensor = result if makes else arguments[0]
            if not tensor.place.is_cpu_place():
                self.lines[find_line()] += 1
            return result
        return call


def find_line() -> str:
    """Return "file:line" of the innermost caller within this project, this package left out."""
    frame = sys._getframe(1)
    while frame is not None:
        path = os.path.abspath(frame.f_code.co_filename)
        if path.startswith(OWN_ROOT + os.sep) and not path.startswith(OWN_FOLDER + os.sep) \
                and 'site-packages' not in path and os.path.basename(path) != FILE_NAME:
            return f'{os.path.relpath(path, OWN_ROOT)}:{frame.f_lineno}'
        frame = frame.f_back
    return 'elsewhere'


@contextlib.contextmanager
def count_operators() -> Iterator[Counter]:
    """Within the block operators are counted; at its end the Counter holds {operator: calls}.

    They are those of the forward and the backward pass and of the update, from the events of
    Paddle's profiler; those of its older interface are counted together.
    """
    counts: Counter[str] = Counter()
    profiler = Profiler(targets=[ProfilerTarget.CPU], on_trace_ready=lambda profiler: None)
    profiler.start()
    try:
        yield counts
    finally:
        profiler.stop()
    nodes = list(profiler.profiler_result.get_data().values())
    while nodes:
        node = nodes.pop()
        nodes += node.children_node
        if node.name.endswith(' infer_meta'):
            counts[node.name.removesuffix(' infer_meta')] += 1
        elif node.name == 'infer_shape':
            counts['older interface'] += 1


def list_missing_kernels(operators: Iterable[str], kind: str) -> list[str]:
    """Return those of the operators that this build of Paddle cannot compute on a kind of device.

    There Paddle copies to the CPU and back, or ends. Operators without kernels of their own,
    which are made of others, are not among them.
    """
    kernels = paddle.base.core._get_registered_phi_kernels('all')
    names = sorted({operator.rstrip('_') for operator in operators} & set(kernels))
    return [name for name in names
            if not any(key.lower().startswith(f'({kind}') for key in kernels[name])]
