"""A 2048-cubed float32 matmul in a bare Paddle process, and after this project's import.

    python benchmarks/matmul.py

Each side runs in a process of its own, in turns, with none of the settings that the
project chooses in the environment; the best of the repeats counts.
"""

import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIZE = 2048
REPEATS = 10
ROUNDS = 3
CHOSEN_HERE = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'MKL_DEBUG_CPU_TYPE')

CODE = """
import time
{preparation}
import paddle
matrix = paddle.rand([{size}, {size}])
best = float('inf')
for _ in range({repeats}):
    started = time.perf_counter()
    float((matrix @ matrix)[0, 0])
    best = min(best, time.perf_counter() - started)
print(best)
"""


def time_matmul(preparation):
    """Return the best time of a matmul in seconds, in a new process after `preparation`."""
    environment = {name: value for name, value in os.environ.items()
                   if name not in CHOSEN_HERE and not name.startswith('VIT_CPU')}
    code = CODE.format(preparation=preparation, size=SIZE, repeats=REPEATS)
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=environment, check=True,
                          capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main():
    best = {'bare Paddle': float('inf'), 'after import ViT.config': float('inf')}
    for _ in range(ROUNDS):
        for name, preparation in zip(best, ('', 'import ViT.config')):
            best[name] = min(best[name], time_matmul(preparation))
    for name, seconds in best.items():
        print(f'{name:24} {1000 * seconds:7.1f} ms  {2 * SIZE ** 3 / seconds / 1e9:6.0f} GFLOP/s')
    bare, tuned = best.values()
    print(f'{bare / tuned:.1f} times as fast')


if __name__ == '__main__':
    main()
