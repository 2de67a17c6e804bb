"""ViT's main scripts on a disk that fails, as a program for the tests.

FAULT=write:3:ENOSPC python tests/support/main_with_fault.py single|multi ARGUMENTS...
FAULT: see faulty_os.parse_fault. It holds in every process that the run starts.
RANK_1_ARGUMENTS, RANK_1_FOLDER: what rank 1 of a launched job gets otherwise than the others,
further arguments and another working folder.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from common.checkpoints import file as checkpoint_file
from common.checkpoints import store as checkpoint_store
from common.run.launch import run_multi, run_single
from tests.support.faulty_os import parse_fault
from ViT.project import PROJECT

if 'FAULT' in os.environ:
    checkpoint_file.os = checkpoint_store.os = parse_fault(os.environ['FAULT'])

if __name__ == '__main__':
    kind, *arguments = sys.argv[1:]
    if os.environ.get('PADDLE_TRAINER_ID') == '1':
        arguments = os.environ.get('RANK_1_ARGUMENTS', '').split() + arguments
        os.chdir(os.environ.get('RANK_1_FOLDER', '.'))
    sys.exit({'single': run_single, 'multi': run_multi}[kind](PROJECT, arguments))
