"""The same pictures in every form that data sets come in; each writer returns -data_path."""

import io
import json
import os
import shutil
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
        for name in reversed(list_files(root)) if names is None else names:
            archive.write(os.path.join(root, name), prefix + name)
    return str(path)


def write_tar(root, path, prefix='', names=None, **options):
    """Pack a folder, as write_zip does."""
    with tarfile.open(path, 'w', **options) as archive:
        for name in reversed(list_files(root)) if names is None else names:
            archive.add(os.path.join(root, name), prefix + name)
    return str(path)


def add_to_tar(archive, name, data=b'', **fields):
    """Add a member made of bytes to an open tarfile. fields: of its TarInfo."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(data))


def write_lists(root):
    """Write train_list.txt and val_list.txt of a folder's pictures into it."""
    for part, rows in find_rows(root).items():
        with open(os.path.join(root, f'{part}_list.txt'), 'w', encoding='utf-8') as file:
            file.writelines(f'{name} {label}\n' for name, label, _ in rows)
    return str(root)


def write_csv(root, path):
    """Write one table with a split column; paths are relative to the root."""
    with open(path, 'w', encoding='utf-8') as file:
        file.write('path,label,split\n')
        file.writelines(f'{name},{class_name},{part}\n' for part, rows in find_rows(root).items()
                        for name, _, class_name in rows)
    return str(path)


def write_shards(root, folder, count=3, ending='txt'):
    """Write `count` shards a part, labels as text, or as numbers if the ending is "cls"."""
    os.makedirs(folder)
    for part, rows in find_rows(root).items():
        for number in range(count):
            with tarfile.open(os.path.join(folder, f'x-{part}-{number:05}.tar'), 'w') as archive:
                for name, label, class_name in rows[number * len(rows) // count:
                                                    (number + 1) * len(rows) // count]:
                    archive.add(os.path.join(root, name), name)
                    text = str(label) if ending == 'cls' else class_name
                    add_to_tar(archive, f'{name.partition(".")[0]}.{ending}', text.encode())
    return str(folder)


def write_parquet(root, folder, group=20):
    """Write one parquet file a part, with Hugging Face's metadata."""
    import pyarrow
    import pyarrow.parquet

    os.makedirs(folder)
    for part, rows in find_rows(root).items():
        names = sorted({class_name for _, _, class_name in rows})
        pictures = []
        for name, _, _ in rows:
            with open(os.path.join(root, name), 'rb') as file:
                pictures.append({'bytes': file.read(), 'path': name})
        metadata = {'info': {'features': {'label': {'names': names, '_type': 'ClassLabel'}}}}
        table = pyarrow.table({'image': pictures, 'label': [label for _, label, _ in rows]})
        table = table.replace_schema_metadata({'huggingface': json.dumps(metadata)})
        pyarrow.parquet.write_table(
            table, os.path.join(folder, f'{part}-00000-of-00001.parquet'), row_group_size=group)
    return str(folder)


def find_rows(root):
    """Return {part: [(relative path, label, class name)]} of ROOT/PART/CLASS/NAME, in order."""
    rows = {}
    for part in PARTS:
        classes = sorted(os.listdir(os.path.join(root, part)))
        rows[part] = [(f'{part}/{name}/{file}', label, name)
                      for label, name in enumerate(classes)
                      for file in list_files(os.path.join(root, part, name))]
    return rows


def write_all(root, folder):
    """Return {form: {config key: value}} of a folder of pictures in every form."""
    os.makedirs(folder)
    listed = os.path.join(folder, 'listed')
    shutil.copytree(root, listed)
    paths = {
        'folders': ('imagefolder', str(root)),
        'list': ('imagefolder', write_lists(listed)),
        'csv': ('csv', write_csv(listed, os.path.join(listed, 'table.csv'))),
        'zip': ('imagefolder', write_zip(root, os.path.join(folder, 'x.zip'))),
        'deflated zip': ('imagefolder', write_zip(root, os.path.join(folder, 'y.zip'),
                                                  zipfile.ZIP_DEFLATED)),
        'tar': ('imagefolder', write_tar(root, os.path.join(folder, 'x.tar'))),
        'shards': ('shards', write_shards(root, os.path.join(folder, 'shards'))),
        'parquet': ('parquet', write_parquet(root, os.path.join(folder, 'parquet')))}
    return {form: {'DATA.DATASET': name, 'DATA.DATA_PATH': path}
            for form, (name, path) in paths.items()}
