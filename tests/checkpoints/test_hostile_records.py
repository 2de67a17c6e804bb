"""Checkpoints with a right checksum and wrong fields: resumed from, or refused in a line."""

import collections
import os
import resource
import signal

import numpy as np
import pytest

from common.checkpoints.content import read_checkpoint
from common.checkpoints.file import write_checkpoint
from common.checkpoints.find import find_resume, list_checkpoints
from common.checkpoints.store import CheckpointStore
from tests.support import resume_records
from ViT.config import get_config


def test_a_good_checkpoint_is_resumed_from(tmp_path):
    good = resume_records.save_good(str(tmp_path))
    state = resume_records.build_state()
    state.optimizer.set_lr(0.5)
    assert resume_records.try_resume(good, state, get_config()) == ''
    # A run that has only its last validation to do saves it again.
    assert state.optimizer.get_lr() == read_checkpoint(good)['learning_rate'] == 0.01
    for _ in resume_records.write_mutants(good, str(tmp_path / 'same.pdparams'), 0):
        raise AssertionError


@pytest.mark.parametrize('count', [
    120, pytest.param(2500, marks=pytest.mark.slow)], ids=['short', 'long'])
def test_mutated_records(tmp_path, count):
    good = resume_records.save_good(str(tmp_path))
    path, config = str(tmp_path / 'mutant.pdparams'), get_config()
    outcomes, words = collections.Counter(), collections.Counter()
    state = resume_records.build_state()
    try:
        for number, _ in enumerate(resume_records.write_mutants(good, path, count, seed=count)):
            if number % 50 == 0:                # refused halfway, a state is to be thrown away
                state = resume_records.build_state()
            signal.alarm(10)
            message = resume_records.try_resume(path, state, config)
            outcomes['refused' if message else 'resumed'] += 1
            words[message.replace(path, '')[:40]] += 1
            assert not message or len(message) < 1500 and message.count('\n') <= 2, message
            assert '/etc/passwd' not in message or 'BASE' in message, message
    finally:
        signal.alarm(0)
    assert outcomes['refused'] > count // 3 and outcomes['resumed'] > count // 50, outcomes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 << 20     # KiB
    print(count, outcomes, words.most_common(12))


@pytest.mark.parametrize('text', ['BASE: {path}', 'BASE: [{path}]', 'DATA: {{LABELS: {path}}}'])
def test_a_record_names_no_files_to_read(tmp_path, text):
    """What stands in a file that a record names shows nowhere."""
    secret = tmp_path / 'secret.yaml'
    secret.write_text('hunter2: [is the password')
    good = resume_records.save_good(str(tmp_path))
    content = resume_records.name_arrays(resume_records.safe_pickle.load(good, keep_names=True))
    content['config'] = text.format(path=secret)
    path = str(tmp_path / 'mutant.pdparams')
    resume_records.write_checkpoint(path, content, {'time': 1.0})
    assert read_checkpoint(path)['config'] == content['config']
    os.chmod(secret, 0)
    message = resume_records.try_resume(path, resume_records.build_state(), get_config())
    assert 'hunter2' not in message


NUMERICS = {'gelu': 'erf', 'layer_norm_eps': 1e-6}


@pytest.mark.parametrize('change, words', [
    *[({'numerics': {**NUMERICS, 'layer_norm_eps': value}}, 'epsilon')
      for value in ('abc', '1e-6', -1, 1e300, 0.01, True, [1])],
    ({'numerics': {**NUMERICS, 'gelu': 'x'}}, 'gelu'),
    ({'numerics': {**NUMERICS, 'gelu': [1]}}, 'gelu'),
    ({'data': {'training': {'x': 1}}}, 'data'), ({'data': {'validation': {'images': 1}}}, 'data'),
    ({'awaits_validation': True, 'loss': None}, 'has no loss'),
    ({'class_names': ['a', 'b', 'c', 'c']}, 'class')])
def test_fields_that_are_read_after_the_weights(tmp_path, change, words):
    """Each is of the right kind, and none is what a run writes."""
    good = resume_records.save_good(str(tmp_path))
    content = resume_records.name_arrays(resume_records.safe_pickle.load(good, keep_names=True))
    path = str(tmp_path / 'changed.pdparams')
    write_checkpoint(path, {**content, **change}, {'time': 1.0})
    message = resume_records.try_resume(path, resume_records.build_state(), get_config())
    assert words in message and len(message.splitlines()) == 1, message


@pytest.mark.parametrize('entry', ['model', 'model_ema'])
@pytest.mark.parametrize('value', [float('nan'), float('-inf')])
def test_weights_that_are_not_finite_are_not_resumed_from(tmp_path, entry, value):
    good = resume_records.save_good(str(tmp_path))
    content = resume_records.name_arrays(resume_records.safe_pickle.load(good, keep_names=True))
    array = content[entry]['classifier.bias'].array.copy()
    array[1] = value
    content[entry]['classifier.bias'] = resume_records.NamedArray('b', array)
    path = str(tmp_path / 'changed.pdparams')
    write_checkpoint(path, content, {'time': 1.0})
    message = resume_records.try_resume(path, resume_records.build_state(), get_config())
    assert f'NaN or infinity in classifier.bias of its {entry}.' in message, message


class Scaler:
    """A GradScaler, which on a CPU is turned off."""

    def __init__(self):
        self.state = {'scale': np.ones(1, np.float32), 'incr_count': 0}

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


@pytest.mark.parametrize('saved, is_right', [
    ({'scale': np.full(1, 8, np.float32), 'incr_count': 3}, True), ({'scale': 3.0}, False),
    ({'scale': 3.0, 'incr_count': 'x'}, False), ({'scale': 3.0, 'incr_count': 1, 'a': 1}, False),
    ({'scale': np.ones(2, np.float32), 'incr_count': 1}, False),
    ({'scale': np.ones(1, np.int64), 'incr_count': 1}, False)])
def test_a_loss_scale(tmp_path, saved, is_right):
    good = resume_records.save_good(str(tmp_path))
    content = resume_records.name_arrays(resume_records.safe_pickle.load(good, keep_names=True))
    path, state = str(tmp_path / 'changed.pdparams'), resume_records.build_state()
    state.scaler = Scaler()
    write_checkpoint(path, {**content, 'amp_grad_scaler': saved}, {'time': 1.0})
    message = resume_records.try_resume(path, state, get_config())
    assert message == '' if is_right else 'its amp_grad_scaler is no loss scale' in message
    assert (state.scaler.state['incr_count'] == 3) == is_right


@pytest.mark.parametrize('change', [
    {'time': None}, {'time': 'x'}, {'time': True}, {'time': float('nan')}, {'time': float('inf')},
    {'is_best': 'yes'}, {'epoch': ['a'] * 1000}, {'update': -1}, {'loss': 'x'}, {'model_name': 1}])
def test_a_summary_that_is_damaged_is_passed_over(tmp_path, change):
    """It stands behind the weights, and decides which file is the newest and which the best."""
    good = resume_records.save_good(str(tmp_path))
    content = resume_records.name_arrays(resume_records.safe_pickle.load(good, keep_names=True))
    summary = {'time': 5e9, 'is_best': True, 'epoch': 1, 'update': 2, 'loss': 0.5,
               'model_name': 'tiny'}
    newer = str(tmp_path / 'Epoch-9-Loss-1.pdparams')
    write_checkpoint(newer, content, {**summary, **change})
    problems = {entry.path: entry.problem for entry in list_checkpoints(str(tmp_path))}
    assert f'its summary is damaged: its {next(iter(change))} is' in problems[newer]
    assert problems[good] is None
    CheckpointStore(str(tmp_path))
    assert find_resume(str(tmp_path), '') == good or find_resume(
        str(tmp_path), '').endswith('last.pdparams')
    write_checkpoint(newer, content, {'time': 5e9})         # of a version that says no more
    CheckpointStore(str(tmp_path))
    assert find_resume(str(tmp_path), '') == newer
