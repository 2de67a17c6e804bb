"""The same pictures in every form that data sets come in; each writer returns -data_path."""

import io
import os
import tarfile
import zipfile

PARTS = ('train', 'val')


def list_files(root):
    """Return the relative paths of all files below a folder, sorted, '/' between names."""
    found = []
    for folder, _, names in os.walk(root):
        found += [os.path.relpath(os.path.join(folder, name), root).replace(os.sep, '/')
                  for name in names]
    return sorted(found)


def write_zip(root, path, method=zipfile.ZIP_STORED, prefix='', names=None):
    """Pack a folder. names: in this order; by default the reverse of the sorted one."""
    with zipfile.ZipFile(path, 'w', method) as archive:
        for name in names or reversed(list_files(root)):
            archive.write(os.path.join(root, name), prefix + name)
    return str(path)


def write_tar(root, path, prefix='', names=None, **options):
    """Pack a folder, as write_zip does."""
    with tarfile.open(path, 'w', **options) as archive:
        for name in names or reversed(list_files(root)):
            archive.add(os.path.join(root, name), prefix + name)
    return str(path)


def add_to_tar(archive, name, data=b'', **fields):
    """Add a member made of bytes to an open tarfile. fields: of its TarInfo."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(data))
