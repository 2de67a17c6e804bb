"""Checkpoints with a right checksum and wrong fields: resumed from, or refused in a line."""

import collections
import os
import resource
import signal

import pytest

from common.checkpoints.content import read_checkpoint
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
