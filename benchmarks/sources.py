"""Data sources: speed a core against folders and against timm's wds reader; how indexes open.

python -m benchmarks.sources [--peer_python PATH] [--repetitions 7] [--members 1200000 14000000]

The same JPEG files of 500 x 375 as folders, CSV, .zip, .tar, shards and parquet, all in the
page cache, to training batches of 224 x 224 in one process each: CPU seconds decide.
timm reads the same shards; its default transform does the same work as ours.

The indexes are synthetic, of archives that consist of a hole: names as ImageNet has them, a
thousand images a class. A fresh process opens one and asks for a sample's place; its
seconds, and what its memory grew by. Linux.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks.contest import (  # noqa: E402
    Contestant,
    compare,
    describe_machine,
    keep_freed_memory,
    print_table,
    serve,
)
from benchmarks.data import BATCH_SIZE, IMAGES, SIZE, write_images  # noqa: E402
from benchmarks.torch_setup import prepare_torchvision  # noqa: E402

HEAD = ('what', 'peer', 'ours', "peer's", 'ratio', 'target')
TARGETS = {'list': '', 'csv': '', 'zip': 0.95, 'tar': 0.95, 'shards': 0.95, 'parquet': 0.9}
TIMM_TARGET = 1.5
LIMITS = {1_200_000: (3, 100), 14_000_000: (40, 1000)}      # {members: (seconds, MB)}
PICTURE = 110_000                                           # bytes of a synthetic member
CLASS_SIZE = 1000


def measure(options):
    """Return the rows of both tables (HEAD)."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ['VIT_CACHE'] = os.path.join(folder, 'cache')
        rows = measure_speed(options, folder) if options.repetitions else []
        return rows + [measure_index(count, folder) for count in options.members]


def measure_speed(options, folder):
    """Return rows on pictures a second of CPU time."""
    from tests.support.sources import write_all, write_shards

    root = os.path.join(folder, 'root')
    write_images(root)
    os.symlink('train', os.path.join(root, 'val'))          # the writers want both parts
    forms = write_all(root, os.path.join(folder, 'forms'))
    numbered = write_shards(root, os.path.join(folder, 'numbered'), ending='cls')
    forms['shards'] = {'DATA.DATASET': 'shards', 'DATA.DATA_PATH': numbered}
    environment = {'OMP_NUM_THREADS': '1'}

    def start(python, name, values):
        return lambda: Contestant(python, 'sources.py', '--contestant', name, json.dumps(values),
                                  environment=environment)

    contestants = {form: start(sys.executable, 'ours', forms[form])
                   for form in ('folders', *TARGETS)}
    contestants['timm'] = start(options.peer_python, 'timm', forms['shards'])
    results, failed = compare(contestants, options.repetitions)
    rows = []
    for form, target in TARGETS.items():
        rows.append(describe_speed(form, 'folders', results[form], results['folders'], target))
    if 'timm' in failed:
        rows.append(('shards', 'timm wds', '', failed['timm'], '', TIMM_TARGET))
    else:
        rows.append(describe_speed('shards', 'timm wds', results['shards'], results['timm'],
                                   TIMM_TARGET))
    return rows


def describe_speed(what, peer, mine, other, target):
    return (what, peer, f'{IMAGES / mine.cpu:.0f}/s', f'{IMAGES / other.cpu:.0f}/s',
            f'{other.cpu / mine.cpu:.2f} (wall {other.wall / mine.wall:.2f})', target)


def measure_index(count, folder):
    """Return a row on opening the index of `count` members."""
    path = os.path.join(folder, f'{count}.tar')
    write_index(path, count)
    done = subprocess.run([sys.executable, os.path.abspath(__file__), '--open', path],
                          stdout=subprocess.PIPE, check=True, text=True)
    seconds, growth = json.loads(done.stdout.splitlines()[-1])
    limit = LIMITS.get(count, ('', ''))
    os.remove(path)
    return (f'index of {count:,}', 'limit', f'{seconds:.1f} s, {growth / 1e6:.0f} MB', '', '',
            f'{limit[0]} s, {limit[1]} MB')


def write_index(path, count):
    """Write a .tar that is a hole, and the index that it would have."""
    import numpy as np

    from common.data.archives import PLACES
    from common.data.index_file import Index, open_index
    from common.data.table import SampleTable

    with open(path, 'wb') as file:
        file.truncate(count * PICTURE)
    classes = [f'n{number:08}' for number in range(count // CLASS_SIZE)]
    names = b''.join(b'train/n%08d/n%08d_%05d.JPEG' % (row // CLASS_SIZE, row // CLASS_SIZE,
                                                       row % CLASS_SIZE)
                     for row in range(count))
    size = len(names) // count
    table = SampleTable(np.frombuffer(names, np.uint8), np.full(count, size, np.uint16),
                        (np.arange(count) // CLASS_SIZE).astype(np.int32))
    places = {'offset': np.arange(count, dtype=np.int64) * PICTURE,
              'size': np.full(count, PICTURE, np.uint32)}
    header = {'prefix': '', 'parts': {'train': [0, count, classes]}, 'lists': {}, 'loose': [],
              'endings': {'train': {}}}
    open_index('archive tar', [path], PLACES['tar'], lambda: Index(table, places, header),
               lambda index: True)


def open_one(path):
    """Open an index in this process; print its seconds and the growth of memory in bytes."""
    import common.data.archives

    before, started = read_own_peak(), time.perf_counter()
    tree = common.data.archives.ArchiveTree(path)
    reader = tree.scan('train', tree.scan_classes('train'))
    last = len(reader.table) - 1
    assert reader.describe(last).endswith('.JPEG') and reader.places['offset'][last] > 0
    print(json.dumps([time.perf_counter() - started, read_own_peak() - before]))


def read_own_peak():
    """Return the peak memory of this program in bytes; getrusage's is its parent's, if larger."""
    with open('/proc/self/status', encoding='ascii') as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith('VmHWM'))


def make_ours(values):
    """Return a function that makes the batches of one epoch."""
    from common.machine.environment import tune_cpu
    tune_cpu()

    from common.data.pipeline import get_dataloader, get_dataset
    from ViT.config import get_config
    config = get_config(os.path.join(ROOT, 'ViT', 'configs', 'vit_base_patch16_224.yaml'), flags={
        **values, 'DATA.BATCH_SIZE': BATCH_SIZE, 'DATA.NUM_WORKERS': 0, 'TRAIN.AUTO_AUGMENT': '',
        'TRAIN.CROP': 'random_resized', 'TRAIN.INTERPOLATION': 'bicubic'})
    dataset = get_dataset(config)
    epochs = iter(range(1000))

    def load():
        for _ in get_dataloader(config, dataset, epoch=next(epochs)):
            pass
    return load


def make_timm(values):
    """Return a function that makes the batches of one epoch with timm's reader of shards."""
    import torch

    torch.set_num_threads(1)
    prepare_torchvision()
    from timm import data
    from timm.data.loader import fast_collate
    folder = values['DATA.DATA_PATH']
    count = IMAGES
    names = sorted(name for name in os.listdir(folder) if 'train' in name)
    with open(os.path.join(folder, '_info.json'), 'w', encoding='utf-8') as file:
        json.dump({'splits': {'train': {'name': 'train', 'num_samples': count, 'filenames': names,
                                        'shard_lengths': [count // len(names)] * len(names)}}},
                  file)
    dataset = data.create_dataset(
        'wds/x', folder, split='train', is_training=True, batch_size=BATCH_SIZE, num_samples=count)
    dataset.transform = data.create_transform(
        SIZE, is_training=True, use_prefetcher=True, interpolation='bicubic', color_jitter=None)
    loader = torch.utils.data.DataLoader(dataset, BATCH_SIZE, collate_fn=fast_collate)

    def load():
        seen = sum(len(images) for images, _ in loader)
        assert abs(seen - count) <= BATCH_SIZE, seen
    return load


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--peer_python', default=sys.executable,
                        help='the Python that has benchmarks/requirements.txt, and webdataset')
    parser.add_argument('--repetitions', type=int, default=7, help='0: the indexes only')
    parser.add_argument('--members', type=int, nargs='*', default=list(LIMITS))
    parser.add_argument('--contestant', nargs=2, help=argparse.SUPPRESS)
    parser.add_argument('--open', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        open_one(options.open)
    elif options.contestant:
        name, values = options.contestant
        keep_freed_memory()             # for all sides; ours has it in training anyway
        serve((make_ours if name == 'ours' else make_timm)(json.loads(values)))
    else:
        print(describe_machine())
        print_table(HEAD, measure(options))


if __name__ == '__main__':
    main()
