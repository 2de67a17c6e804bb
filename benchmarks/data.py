"""Input against torchvision and timm: JPEG files of 500 x 375 to batches of 224 x 224.

python benchmarks/data.py [--peer_python PATH] [--repetitions 7]

One process each, without workers, so a figure is per core; CPU seconds decide, because they
hardly feel what else the machine does. All sides use the same files and Pillow. The files
are crops of the photograph in tests/fixtures/preprocess, saved again at quality 95.

train       random crop, bicubic resize, flip, to a uint8 batch; "decoding": Image.open and
            load alone, of which 0.85 of the speed is to remain
augment     the same with rand-m9-mstd0.5-inc1, then normalised, erased, mixed (float32)
evaluate    resize 256, crop 224, bicubic, to a uint8 batch

torchvision without its compiled operators (no build for this PyTorch) still has all of
its image transforms: these are Python on Pillow, and tensors for "torchvision v2".
"""

import argparse
import os
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from PIL import Image, ImageOps, features  # noqa: E402

from benchmarks.contest import (  # noqa: E402
    Contestant,
    compare,
    describe_machine,
    keep_freed_memory,
    print_table,
    serve,
)
from benchmarks.torch_setup import prepare_torchvision  # noqa: E402

PHOTOGRAPH = os.path.join(ROOT, 'tests', 'fixtures', 'preprocess', 'full_640x427.jpg')
IMAGES, BATCH_SIZE, SIZE = 192, 64, 224
AUGMENT = 'rand-m9-mstd0.5-inc1'
HEAD = ('what', 'peer', 'ours', "peer's", 'ratio', 'target')
ROWS = {                                # {peer: ratio aimed at}
    'train': {'decoding': 0.85, 'torchvision': 2.0, 'timm': 2.0, 'torchvision v2': ''},
    'augment': {'timm': 1.5},
    'evaluate': {'torchvision': 1.8, 'timm': 1.8, 'torchvision v2': ''},
}


def measure(options):
    """Return the rows of the table (HEAD). options: peer_python, repetitions."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_images(folder)
        for what in getattr(options, 'rows', None) or ROWS:
            targets = ROWS[what]
            contestants = {
                name: start(options, what, name, folder) for name in ('ours', *targets)}
            results, failed = compare(contestants, options.repetitions)
            mine = results['ours']
            for name, target in targets.items():
                if name in failed:
                    rows.append((f'input, {what}', name, '', failed[name], '', target))
                    continue
                other = results[name]
                rows.append((
                    f'input, {what}', name, f'{IMAGES / mine.cpu:.0f}/s',
                    f'{IMAGES / other.cpu:.0f}/s',
                    f'{other.cpu / mine.cpu:.2f} (wall {other.wall / mine.wall:.2f})', target))
    return rows


def write_images(folder):
    """Write IMAGES JPEG files in two class folders below `folder`/train."""
    with Image.open(PHOTOGRAPH) as photograph:
        photograph.load()
    for number in range(IMAGES):
        left, top = number * 37 % 141, number * 23 % 53
        image = photograph.crop((left, top, left + 500, top + 375))
        name = os.path.join(folder, 'train', str(number % 2), f'{number}.jpg')
        os.makedirs(os.path.dirname(name), exist_ok=True)
        image.save(name, quality=95)


def start(options, what, name, folder):
    python = sys.executable if name in ('ours', 'decoding') else options.peer_python
    return lambda: Contestant(
        python, 'data.py', '--contestant', name, what, folder,
        environment={'OMP_NUM_THREADS': '1'})


def make_decoding(what, folder):
    """Return a function that decodes every file."""
    names = [os.path.join(path, name) for path, _, found in os.walk(folder) for name in found]

    def decode():
        for name in names:
            with Image.open(name) as image:
                image.load()
    return decode


def make_ours(what, folder):
    """Return a function that makes the batches of one epoch."""
    from common.machine.environment import tune_cpu
    tune_cpu()

    from common.data.batch import build_train_batch
    from common.data.pipeline import get_dataloader, get_dataset
    from ViT.config import get_config
    config = get_config(os.path.join(ROOT, 'ViT', 'configs', 'vit_base_patch16_224.yaml'))
    config.defrost()
    config.DATA.DATASET, config.DATA.DATA_PATH = 'imagefolder', folder
    config.DATA.VAL_FRACTION = 0.0
    config.DATA.BATCH_SIZE, config.DATA.NUM_WORKERS = BATCH_SIZE, 0
    config.DATA.CROP_PCT, config.DATA.INTERPOLATION = 0.875, 'bicubic'
    train = config.TRAIN
    train.CROP, train.INTERPOLATION, train.HFLIP = 'random_resized', 'bicubic', 0.5
    train.CROP_SCALE, train.CROP_RATIO = [0.08, 1.0], [3 / 4, 4 / 3]
    train.AUTO_AUGMENT, train.COLOR_JITTER = '', 0.0
    train.RANDOM_ERASE_PROB = train.MIXUP_ALPHA = train.CUTMIX_ALPHA = 0.0
    if what == 'augment':
        train.AUTO_AUGMENT, train.COLOR_JITTER, train.RANDOM_ERASE_PROB = AUGMENT, 0.4, 0.25
        train.MIXUP_ALPHA, train.CUTMIX_ALPHA = 0.8, 1.0
    dataset = get_dataset(config)
    if what == 'evaluate':
        from common.data.pipeline import get_val_transforms
        dataset.transform = get_val_transforms(config)
    finish = build_train_batch(config, IMAGES // BATCH_SIZE) if what == 'augment' else None
    epochs = iter(range(1000))

    def load():
        draw = finish.draw if finish is not None else None
        for batch in get_dataloader(config, dataset, epoch=next(epochs), draw=draw):
            if finish is not None:
                batch = finish(batch)
    return load


def make_peer(name, what, folder):
    """Return a function that makes the batches of one epoch with torchvision's or timm's code."""
    import torch

    torch.set_num_threads(1)
    prepare_torchvision()
    make_loader = make_timm if name == 'timm' else make_torchvision
    loader = make_loader(name, what, os.path.join(folder, 'train'))

    def load():
        for _ in loader:
            pass
    return load


def make_torchvision(name, what, folder):
    import torch
    from torchvision import datasets
    if name == 'torchvision':
        from torchvision import transforms
    else:
        from torchvision.transforms import v2 as transforms
    bicubic = transforms.InterpolationMode.BICUBIC
    if what == 'train':
        steps = [transforms.RandomResizedCrop(SIZE, interpolation=bicubic),
                 transforms.RandomHorizontalFlip()]
    else:
        steps = [transforms.Resize(256, interpolation=bicubic), transforms.CenterCrop(SIZE)]
    to_tensor = transforms.PILToTensor()
    steps = [*steps, to_tensor] if name == 'torchvision' else [to_tensor, *steps]
    dataset = datasets.ImageFolder(folder, transforms.Compose(steps))
    return torch.utils.data.DataLoader(dataset, BATCH_SIZE, shuffle=what == 'train')


def make_timm(name, what, folder):
    import torch
    from timm import data
    from timm.data.loader import fast_collate
    # Pillow 13 refuses the 0 bits that timm's highest level of this operation asks for.
    posterize = ImageOps.posterize
    ImageOps.posterize = lambda image, bits: posterize(image, max(1, bits))
    is_train = what != 'evaluate'
    dataset = data.ImageDataset(folder)
    if what == 'augment':
        mixup = data.FastCollateMixup(0.8, 1.0, num_classes=1000)
        return data.create_loader(
            dataset, SIZE, BATCH_SIZE, is_training=True, re_prob=0.25, re_mode='pixel',
            color_jitter=0.4, auto_augment=AUGMENT, interpolation='bicubic', num_workers=0,
            collate_fn=mixup, device=torch.device('cpu'), persistent_workers=False)
    dataset.transform = data.create_transform(
        SIZE, is_training=is_train, use_prefetcher=True, interpolation='bicubic',
        color_jitter=None, crop_pct=0.875)
    return torch.utils.data.DataLoader(
        dataset, BATCH_SIZE, shuffle=is_train, collate_fn=fast_collate)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--peer_python', default=sys.executable,
                        help='the Python that has benchmarks/requirements.txt')
    parser.add_argument('--repetitions', type=int, default=7)
    parser.add_argument('--rows', nargs='+', choices=ROWS)
    parser.add_argument('--contestant', nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        name, what, folder = options.contestant
        keep_freed_memory()             # for all sides; ours has it in training anyway
        if name == 'ours':
            serve(make_ours(what, folder))
        elif name == 'decoding':
            serve(make_decoding(what, folder))
        else:
            serve(make_peer(name, what, folder))
        return
    print(f'{describe_machine()}, Pillow {Image.__version__}, '
          f'libjpeg-turbo {features.version("libjpeg_turbo")}')
    print_table(HEAD, measure(options))


if __name__ == '__main__':
    main()
