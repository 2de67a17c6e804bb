"""Scripts one after the other in one process, which spares the start of Paddle.

python tests/support/device_jobs.py < JOBS     a JSON list of [model directory, argument, ...]
The script is main_single_gpu.py, or the first argument: one of SCRIPTS. Prints after each on which
device it was. Stops at the first job that fails, with its exit code.
"""

import importlib
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from common.run.launch import run_single  # tunes the CPU before Paddle is imported

SCRIPTS = {'predict.py': 'predict', 'export_model.py': 'export',
           'extract_features.py': 'features', 'visualize_attention.py': 'visualize'}

if __name__ == '__main__':
    import paddle

    for directory, *arguments in json.load(sys.stdin):
        project = importlib.import_module(f'{directory}.project').PROJECT
        main = run_single
        if arguments[0] in SCRIPTS:
            script, *arguments = arguments
            main = importlib.import_module(f'common.deploy.{SCRIPTS[script]}').main
        code = main(project, arguments)
        print('Computed on', paddle.get_device(), flush=True)
        if code:
            sys.exit(code)
