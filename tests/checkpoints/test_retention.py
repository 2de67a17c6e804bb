"""Which checkpoints a run keeps, and which one it goes on from."""

import logging
import os
import threading
import time

import pytest

from common.checkpoints import store as checkpoint_store
from common.checkpoints.content import read_checkpoint
from common.checkpoints.find import BEST, LAST, find_resume
from common.checkpoints.store import CheckpointStore
from common.errors import UserError
from common.weights.trailer import read_summary, verify_checkpoint
from tests.support.saving import Log, list_files, make_progress, save


@pytest.mark.parametrize('keep', [0, 1, 3])
def test_retention_keeps_the_newest_and_never_loses_the_best(tmp_path, trained_run, keep):
    store = CheckpointStore(tmp_path, keep)
    for update in range(1, 9):
        store.save(trained_run, make_progress(update), is_best=update in (1, 2))
        store.wait()
        updates = sorted(read_summary(tmp_path / name)['update'] for name in list_files(tmp_path)
                         if name.startswith('Epoch-'))
        best = min(update, 2)
        others = [u for u in range(1, update) if u != best]
        assert updates == sorted({update, best, *others[max(0, len(others) - keep):]})
        assert read_summary(tmp_path / LAST)['update'] == update
        assert read_summary(tmp_path / BEST)['update'] == best
    # A damaged file is neither counted nor deleted.
    damaged = tmp_path / 'Epoch-9-Loss-0.1.pdparams'
    damaged.write_bytes(b'x')
    store.save(trained_run, make_progress(10))
    store.wait()
    assert damaged.exists()
    verify_checkpoint(tmp_path / BEST)


def test_a_clock_set_back_does_not_make_a_new_checkpoint_old(tmp_path, monkeypatch, trained_run):
    save(tmp_path, trained_run, 1, keep=0)
    monkeypatch.setattr(time, 'time', lambda: 1e9)
    path = save(tmp_path, trained_run, 2, keep=0)
    assert find_resume(str(tmp_path), None) == path


def test_one_save_at_a_time_and_training_goes_on_meanwhile(tmp_path, monkeypatch, trained_run):
    write = checkpoint_store.write_checkpoint
    running, most, finished, may_write = [], [], [], threading.Event()

    def slow_write(path, *arguments):
        running.append(path)
        most.append(len(running))
        may_write.wait(300)
        write(path, *arguments)
        running.remove(path)
        finished.append(path)
    monkeypatch.setattr(checkpoint_store, 'write_checkpoint', slow_write)
    store = CheckpointStore(tmp_path)
    store.save(trained_run, make_progress(1))
    assert not finished                             # it did not wait for the writing
    threading.Timer(0.3, may_write.set).start()
    store.save(trained_run, make_progress(2))       # waits for the first
    store.wait()
    assert most == [1, 1]
    assert read_checkpoint(find_resume(str(tmp_path), None))['update'] == 2


def test_without_a_further_thread_it_is_saved_all_the_same(tmp_path, monkeypatch, trained_run):
    def refuse(thread):
        raise RuntimeError("can't start new thread")
    monkeypatch.setattr(threading.Thread, 'start', refuse)
    path = save(tmp_path, trained_run, 1)
    assert read_checkpoint(path)['update'] == 1


def test_auto_takes_the_newest_that_is_good_of_this_model(tmp_path, trained_run):
    log = Log()
    assert find_resume('auto', tmp_path / 'nowhere', 'tiny', log) is None
    assert find_resume('auto', tmp_path, 'tiny', log) is None
    assert 'starting from the beginning' in log.text
    for name in ('train-1', 'train-2', 'train-3', 'train-4'):
        (tmp_path / name).mkdir()
    save(tmp_path / 'train-1', trained_run, 50)
    older = save(tmp_path / 'train-2', trained_run, 5)
    newest = save(tmp_path / 'train-2', trained_run, 6)
    save(tmp_path / 'train-3', trained_run, 7, model_name='another')
    log = Log()
    assert find_resume('auto', tmp_path, 'tiny', log) == newest     # by time, not by update
    assert f'Resuming from {newest} (epoch 6, update 6)' in log.text

    with open(newest, 'r+b') as file:               # last.pdparams is the same file
        file.seek(1000)
        file.write(b'\xff\x00\xff')
    log = Log()
    assert find_resume('auto', tmp_path, 'tiny', log) == older
    assert f'Passed over {newest}: its checksum does not match' in log.text
    os.truncate(newest, 500)
    log = Log()
    assert find_resume('auto', tmp_path, 'tiny', log) == older
    assert f'Passed over {newest}: has no checksum at its end: cut short' in log.text


def test_a_path_may_be_a_file_a_stem_or_a_run_directory(tmp_path, trained_run):
    path = save(tmp_path, trained_run, 3)
    assert find_resume(path, None) == path
    assert find_resume(path[:-len('.pdparams')], None) == path
    assert find_resume(str(tmp_path), None) == path
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='has no good checkpoint'):
        find_resume(str(tmp_path / 'empty'), None)
    with pytest.raises(UserError, match='no file or folder .*nothing, nor .*nothing.pdparams'):
        find_resume(str(tmp_path / 'nothing'), None)


def test_the_best_of_a_run_is_taken_over_by_the_folder_that_continues_it(tmp_path, trained_run):
    (tmp_path / 'old').mkdir()
    (tmp_path / 'new').mkdir()
    save(tmp_path / 'old', trained_run, 3, is_best=True)
    store = CheckpointStore(tmp_path / 'new')
    store.adopt_best(tmp_path / 'old')
    store.save(trained_run, make_progress(4))
    store.wait()
    assert read_summary(tmp_path / 'new' / BEST)['update'] == 3
    store.save(trained_run, make_progress(5), is_best=True)
    store.wait()
    assert read_summary(tmp_path / 'new' / BEST)['update'] == 5


def test_the_log_goes_to_the_runs_logger_by_default(tmp_path, trained_run):
    assert isinstance(CheckpointStore(tmp_path).logger, logging.Logger)
