"""Lets `import timm` work beside a CPU-only PyTorch, which no build of torchvision fits.

Call prepare_torchvision() before timm or torchvision is imported. Without torchvision a stand-in
gives timm the names that it imports; of a torchvision whose compiled operators do not load, the
image transforms (Python on Pillow and tensors) still work.
"""

import importlib.util
import sys
import types

_kept = []          # operators go away with the library object that declared them


class _Names(type):
    def __getattr__(cls, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return name


class _Stub(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return _Names(name, (), {})


class _StubFinder:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'torchvision':
            return importlib.util.spec_from_loader(name, self)
        return None

    def create_module(self, spec):
        return _Stub(spec.name)

    def exec_module(self, module):
        pass


def prepare_torchvision():
    if importlib.util.find_spec('torchvision') is None:
        sys.meta_path.append(_StubFinder())
        return
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, ImportError, OSError):
        for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
            del sys.modules[name]
        import torch
        operators = torch.library.Library('torchvision', 'FRAGMENT')
        for operator in ('nms', 'qnms'):
            if not hasattr(torch.ops.torchvision, operator):
                operators.define(f'{operator}(Tensor a, Tensor b, float c) -> Tensor')
        _kept.append(operators)
