"""Cost against size: images a second and peak memory, tiny to huge, 224 and 384, batch 1 to 64.

python -m benchmarks.size [--workload eval|train] [--models tiny,small,base,large,huge]
    [--batch_sizes 1,8,64] [--image_sizes 224,384] [--most_gflop 3000] [--plot size.png]

The last column is GFLOP/s: constant where nothing grows faster than the arithmetic. A point
that would need more memory than the machine has, or more arithmetic a batch than asked for, is
left out.
"""

import argparse
import itertools
import os
import sys

from benchmarks.contest import Contestant, describe_machine, print_table

# Width, depth, patch size and hidden width (ViT paper, Table 1; tiny and small as in DeiT).
MODELS = {'tiny': (192, 12, 16, 768), 'small': (384, 12, 16, 1536), 'base': (768, 12, 16, 3072),
          'large': (1024, 24, 16, 4096), 'huge': (1280, 32, 14, 5120)}


def count_work(model, image_size):
    """Return (multiply-adds of the forward pass of one image, parameters, tokens)."""
    width, depth, patch, hidden = MODELS[model]
    tokens = (image_size // patch) ** 2 + 1
    weights = depth * (4 * width ** 2 + 2 * width * hidden) + 3 * patch ** 2 * width
    return tokens * weights + depth * 2 * tokens ** 2 * width, weights, tokens


def estimate_memory(model, image_size, batch_size, workload):
    """Return bytes, roughly: weights, and in training their gradients, moments, activations."""
    width, depth, _, hidden = MODELS[model]
    _, weights, tokens = count_work(model, image_size)
    layer = tokens * (10 * width + hidden) + width // 64 * tokens ** 2 * 2
    if workload == 'train':
        return 4 * (4 * weights + batch_size * depth * layer)
    return 4 * (weights + 3 * batch_size * layer)


def measure(arguments):
    """Yield (model, image size, batch size, images a second, peak bytes, GFLOP/s)."""
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_AVPHYS_PAGES')
    for model in arguments.models.split(','):
        for image_size in map(int, arguments.image_sizes.split(',')):
            # A multiple of the patch size: 378 for patches of 14.
            size = image_size - image_size % MODELS[model][2]
            for batch_size in map(int, arguments.batch_sizes.split(',')):
                passes = 3 if arguments.workload == 'train' else 1
                flops = 2 * passes * batch_size * count_work(model, size)[0]
                needs = estimate_memory(model, size, batch_size, arguments.workload)
                if needs > 0.8 * memory or flops > 1e9 * arguments.most_gflop:
                    continue
                name = f'ViT/vit_{model}_patch{MODELS[model][2]}_224'
                options = ['fast'] if arguments.workload == 'train' else ['fast', 'float32']
                contestant = Contestant(sys.executable, 'ours.py', arguments.workload, name,
                                        batch_size, *options, size)
                results = [contestant.repeat() for _ in range(arguments.repetitions)]
                contestant.close()
                seconds = sorted(result['wall'] for result in results)[len(results) // 2]
                yield (model, size, batch_size, batch_size / seconds, results[-1]['peak'],
                       flops / seconds / 1e9)


def draw(points, workload, path):
    """Draw speed and memory against the model's arithmetic: a colour a batch size, named points.

    Pictures of 224 pixels have circles and full lines, larger ones squares and dashes.
    """
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5.2))
    batches = sorted({point[2] for point in points})
    for (number, batch_size), large in itertools.product(enumerate(batches), (False, True)):
        chosen = sorted((count_work(model, size)[0] / 1e9, speed, peak / 1e9)
                        for model, size, batch, speed, peak, _ in points
                        if batch == batch_size and (size > 300) == large)
        for axis, column in zip(axes, (1, 2)):
            if chosen:
                axis.loglog([point[0] for point in chosen], [point[column] for point in chosen],
                            's--' if large else 'o-', color=f'C{number}', markersize=5,
                            label=None if large else f'batch {batch_size}')
    # Names stand above the highest point; of larger pictures' speed, below the lowest.
    for axis, column, unit in zip(axes, (3, 4), (1, 1e9)):
        for model, size in dict.fromkeys((point[0], point[1]) for point in points):
            values = [point[column] / unit for point in points if point[:2] == (model, size)]
            below = column == 3 and size > 300
            axis.annotate(f'{model} {size}', (count_work(model, size)[0] / 1e9,
                          min(values) if below else max(values)), textcoords='offset points',
                          xytext=(-7, -9) if below else (5, 6), fontsize=7,
                          ha='right' if below else 'left' if column == 3 else 'center')
    axes[0].set_ylabel('images a second')
    axes[1].set_ylabel('peak memory, GB')
    for axis in axes:
        for direction in (axis.xaxis, axis.yaxis):
            direction.set_major_locator(LogLocator(subs=(1, 2, 5)))
            direction.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
            direction.set_minor_formatter(NullFormatter())
        axis.margins(y=0.12)
        axis.set_xlabel('GMACs an image, forward')
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle({'eval': 'Evaluation', 'train': 'Training step'}[workload]
                    + ' (circles: 224 pixels, squares: 384 or 378)')
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--workload', choices=('eval', 'train'), default='eval')
    parser.add_argument('--models', default='tiny,small,base,large,huge')
    parser.add_argument('--batch_sizes', default='1,8,64')
    parser.add_argument('--image_sizes', default='224,384')
    parser.add_argument('--repetitions', type=int, default=3)
    parser.add_argument('--most_gflop', type=float, default=3000)
    parser.add_argument('--plot', help='file for the picture (needs matplotlib)')
    arguments = parser.parse_args()
    print(describe_machine())
    points = []
    for point in measure(arguments):
        points.append(point)
        print('... {} {} pixels, batch {}: {:.2f} images/s'.format(*point[:4]), file=sys.stderr,
              flush=True)
    print_table(('model', 'pixels', 'batch', 'images/s', 'peak GB', 'GFLOP/s'),
                [(model, size, batch, f'{speed:.2f}', f'{peak / 1e9:.2f}', f'{rate:.0f}')
                 for model, size, batch, speed, peak, rate in points])
    if arguments.plot:
        draw(points, arguments.workload, arguments.plot)


if __name__ == '__main__':
    main()
