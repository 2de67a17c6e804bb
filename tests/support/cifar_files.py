"""Small CIFAR archives in the official form, pickles of Python 2 included."""

import io
import pickle
import struct
import tarfile

import numpy as np

from common.data.cifar import LAYOUTS


class Python2Pickler(pickle._Pickler):
    """Writes protocol 2 as Python 2 did, byte strings and NumPy's old module names included."""

    dispatch = pickle._Pickler.dispatch.copy()

    def __init__(self, file):
        super().__init__(file, protocol=2)

    def save_bytes(self, value):
        if len(value) < 256:
            self.write(b'U' + struct.pack('<B', len(value)) + value)
        else:
            self.write(b'T' + struct.pack('<I', len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def dump_python2(tree):
    file = io.BytesIO()
    Python2Pickler(file).dump(tree)
    return file.getvalue().replace(b'numpy._core', b'numpy.core')


def make_contents(name, count=6, dump=dump_python2, seed=0):
    """Return {file name: bytes} and {file name: (pixels, labels)} of a small CIFAR."""
    layout, rng = LAYOUTS[name], np.random.default_rng(seed)
    files, arrays = {}, {}
    for file in layout.train_files + layout.val_files:
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = rng.integers(0, layout.num_classes, count).tolist()
        arrays[file] = pixels, labels
        files[file] = dump({
            b'batch_label': b'part', b'data': pixels, layout.label_key.encode(): labels,
            b'filenames': [b'%d.png' % i for i in range(count)]})
    names = [b'class %d' % i for i in range(layout.num_classes)]
    files[layout.names_file] = dump({layout.names_key.encode(): names, b'num_vis': 3072})
    return files, arrays


def write_archive(name, path, files):
    with tarfile.open(path, 'w:gz') as archive:
        for file, content in files.items():
            info = tarfile.TarInfo(f'{LAYOUTS[name].folder}/{file}')
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)
