"""Two small models trained on the digits, for the tests of what uses a trained model.

python tests/support/trained_digits.py RUN_FOLDER/best.pdparams NAME
writes the fixture from a checkpoint, without the optimizer. Their configs are inside.
"""

import functools
import os
import sys
from types import SimpleNamespace

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDER = os.path.join(TESTS, 'fixtures', 'trained_digits')
KEPT = ('model', 'config', 'class_names', 'numerics', 'preprocessing')


def fixture_path(name):
    """Return the checkpoint of "vit" or "t2t"."""
    return os.path.join(FOLDER, f'{name}.pdparams')


@functools.cache
def load_fixture(name):
    """Return (Project, Trained) of "vit" or "t2t"."""
    from common.deploy.trained import load_trained
    if name == 'vit':
        from ViT.project import PROJECT
    else:
        from T2T_ViT.project import PROJECT
    flags = SimpleNamespace(cfg=None, pretrained=fixture_path(name), image_size=None,
                            num_classes=None, device='cpu', labels=None, opts=[])
    return PROJECT, load_trained(PROJECT, flags)


def main():
    import paddle

    from common.checkpoints.content import read_checkpoint
    path, name = sys.argv[1:]
    checkpoint = read_checkpoint(path)
    os.makedirs(FOLDER, exist_ok=True)
    paddle.save({key: checkpoint[key] for key in KEPT}, fixture_path(name))


if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    main()
