"""Files that survive faults, kills and damage at any moment."""

import errno
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from common.checkpoints import file as checkpoint_file
from common.checkpoints import store as checkpoint_store
from common.checkpoints.content import read_checkpoint
from common.checkpoints.file import NamedArray, write_checkpoint
from common.checkpoints.find import BEST, LAST, find_resume
from common.checkpoints.store import CheckpointStore
from common.errors import RunError, UserError
from common.weights.containers import open_container
from common.weights.trailer import CheckpointError, read_summary, verify_checkpoint
from tests.support.faulty_os import FaultyOs
from tests.support.saving import Log, list_files, make_progress, save
from tests.support.tiny_run import build_run, train


def test_no_mutation_is_accepted(tmp_path):
    run = build_run()
    train(run, 0, 1)
    path = Path(save(tmp_path, run, 1))
    good = path.read_bytes()
    bits = random.Random(0)
    cuts = {0, 1, 7, 8, 9, len(good) - 1, len(good) - 24}
    cuts |= {bits.randrange(len(good)) for _ in range(150)}
    mutations = [good[:cut] for cut in cuts]
    mutations += [good + b'\0', good + good[-24:], good[:-24] + bytes(24)]
    positions = list(range(len(good) - 60, len(good)))      # every byte of the trailer's end
    positions += [bits.randrange(len(good)) for _ in range(500 - len(positions))]
    for position in positions:
        flipped = bytearray(good)
        flipped[position] ^= 1 << bits.randrange(8)
        mutations.append(bytes(flipped))
    assert len(mutations) >= 500
    path = tmp_path / 'mutated.pdparams'
    for mutated in mutations:
        path.write_bytes(mutated)
        with pytest.raises(CheckpointError):
            verify_checkpoint(path)
        with pytest.raises(UserError):
            read_checkpoint(path)
    path.write_bytes(good)
    read_checkpoint(path)


def save_with_fault(monkeypatch, folder, run, function, at, error):
    """Save update 1, then update 2 with a fault. Returns (store, log, fault, first path)."""
    folder.mkdir()
    log = Log()
    store = CheckpointStore(folder, 2, log)
    first = store.save(run, make_progress(1))
    store.wait()
    fault = FaultyOs(function, at, error)
    monkeypatch.setattr(checkpoint_file, 'os', fault)
    monkeypatch.setattr(checkpoint_file, 'CHUNK', 1 << 15)         # many writes
    store.save(run, make_progress(2))
    store.join()
    monkeypatch.setattr(checkpoint_file, 'os', os)
    return store, log, fault, first


@pytest.mark.parametrize('function', ['open', 'write', 'fsync', 'replace'])
@pytest.mark.parametrize('error', [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT])
def test_a_fault_at_any_call_leaves_the_old_one_good(
        tmp_path, monkeypatch, trained_run, function, error):
    failures = 0
    for at in range(1, 1000):
        folder = tmp_path / str(at)
        store, log, fault, first = save_with_fault(
            monkeypatch, folder, trained_run, function, at, error)
        if fault.calls < at:
            break                                   # every call has had its turn
        path = find_resume(str(folder), None, logger=log)
        if store.error:
            failures += 1
            assert f'Could not save {folder}' in log.text
            assert f'{os.strerror(error)}. The last good one is {first}.' in log.text
            with pytest.raises(RunError, match='Could not save'):
                store.wait()
        else:                                       # only the links failed: the save is good
            assert 'could not be put in order' in log.text
        assert not [name for name in list_files(folder) if name.endswith('.writing')]
        for name in list_files(folder):
            verify_checkpoint(folder / name)
        assert read_checkpoint(path)['update'] in (1, 2)
        store.save(trained_run, make_progress(3))   # the disk works again
        store.wait()
        assert read_checkpoint(find_resume(str(folder), None))['update'] == 3
    assert failures >= 1
    if function == 'write':
        assert failures > 15                        # the writes of one save, each once


@pytest.mark.parametrize('error, is_last, expected', [
    ('nothing', False, 'takes no more bytes'),
    ('lost', False, 'the disk returned other bytes than were written'),
    ('lost', True, 'the disk returned other bytes than were written'),
    ('cut', True, 'the disk returned fewer bytes than were written')])
def test_a_disk_that_loses_bytes_is_noticed(
        tmp_path, monkeypatch, trained_run, error, is_last, expected):
    at = 5
    if is_last:
        _, _, fault, _ = save_with_fault(
            monkeypatch, tmp_path / 'counted', trained_run, 'write', 10 ** 6, error)
        at = fault.calls
    store, log, _, first = save_with_fault(
        monkeypatch, tmp_path / 'run', trained_run, 'write', at, error)
    assert expected in log.text
    assert find_resume(str(tmp_path / 'run'), None).endswith(os.path.basename(first))


@pytest.mark.parametrize('payload, expected', [
    ({'config': {b'%d' % level: None for level in range(3)} | {(): 1}}, 'a dictionary key'),
    ({'format_version': 99}, 'has format 99'),
    ({'model': None}, 'lacks "model"')])
def test_a_file_that_our_own_reader_does_not_take_is_not_good(
        tmp_path, monkeypatch, trained_run, payload, expected):
    """Though every byte of it is as it was written."""
    capture = checkpoint_store.capture
    first = save(tmp_path, trained_run, 1)
    monkeypatch.setattr(checkpoint_store, 'capture',
                        lambda *arguments: {**capture(*arguments), **payload})
    with pytest.raises(CheckpointError, match=expected):
        save(tmp_path, trained_run, 2)
    assert find_resume(str(tmp_path), None) == first
    assert not [name for name in list_files(tmp_path) if 'Epoch-2' in name]


def test_names_that_are_not_utf8_are_read_again(tmp_path, trained_run):
    """A folder's name as Python holds it, where the file system has other bytes than UTF-8."""
    names = [os.fsdecode(b'caf\xe9'), 'kat\u017e\u0451']
    path = save(tmp_path, trained_run, 1, class_names=names)
    assert read_checkpoint(path)['class_names'] == names
    assert open_container(path).tree['class_names'] == names


@pytest.mark.parametrize('how, expected', [
    ('flipped', 'its checksum does not match'), ('cut', 'the checksum, is missing|cut short')])
def test_every_reader_refuses_a_damaged_checkpoint_of_ours(tmp_path, trained_run, how, expected):
    path = Path(save(tmp_path, trained_run, 1))
    content = bytearray(path.read_bytes())
    if how == 'flipped':
        content[len(content) // 3] ^= 4         # in the weights: the pickle stays readable
    else:
        del content[-24:]                       # the trailer's end: the pickle is whole
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        open_container(path)
    with pytest.raises(UserError, match=expected):
        read_checkpoint(path)


def test_short_writes_are_continued(tmp_path, monkeypatch, trained_run):
    for at in (1, 2, 5, 20):
        store, _, _, _ = save_with_fault(
            monkeypatch, tmp_path / str(at), trained_run, 'write', at, 'short')
        store.wait()
        assert read_checkpoint(find_resume(str(tmp_path / str(at)), None))['update'] == 2


def test_a_folder_that_disappears_does_not_stop_training(tmp_path, trained_run):
    folder = tmp_path / 'run'
    folder.mkdir()
    log = Log()
    store = CheckpointStore(folder, 2, log)
    folder.rmdir()
    store.save(trained_run, make_progress(1))
    store.join()
    assert 'No such file or directory. There is no earlier one.' in log.text
    folder.mkdir()
    store.save(trained_run, make_progress(2))
    store.wait()


def kill_saving_loop(folder, rounds, monkeypatch):
    """Kill a process that saves without pause, `rounds` times; it continues where it was."""
    weights = np.random.default_rng(0).standard_normal(200_000).astype('float32')
    random_times = random.Random(0)
    monkeypatch.setattr(checkpoint_store, 'capture', lambda state, progress, buffers: {
        **{'world_size': 1, 'format_version': 1}, **progress,
        'model': {'w': NamedArray('w', weights + progress['update'])}})
    for _ in range(rounds):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                store = CheckpointStore(folder, 2, Log())
                newest = find_resume(folder, None, logger=Log()) if list_files(folder) else None
                first = read_summary(newest)['update'] + 1 if newest else 1
                for update in range(first, first + 10_000):
                    store.save(None, make_progress(update), is_best=update % 7 == 0)
                    store.wait()
                    os.write(writer, b'%d\n' % update)
            finally:
                os._exit(3)
        os.close(writer)
        acknowledged = b''
        while b'\n' not in acknowledged:
            acknowledged += os.read(reader, 1000)
        time.sleep(random_times.random() * 0.05)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        while more := os.read(reader, 1000):
            acknowledged += more
        os.close(reader)
        last = max(int(line) for line in acknowledged.split())
        for name in list_files(folder):
            if name.endswith('.pdparams'):
                verify_checkpoint(os.path.join(folder, name))
        log = Log()
        assert read_summary(find_resume(folder, None, logger=log))['update'] >= last
        assert 'Passed over' not in log.text


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_ten_kills_while_saving_lose_nothing(tmp_path, monkeypatch):
    kill_saving_loop(str(tmp_path), 10, monkeypatch)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_300_kills_while_saving_lose_nothing(tmp_path, monkeypatch):
    kill_saving_loop(str(tmp_path), 300, monkeypatch)


def save_up_to(folder, fault, last, monkeypatch):
    """Go on from the newest checkpoint to update `last` in a process; return how it ended."""
    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(checkpoint_file, 'os', fault)
            monkeypatch.setattr(checkpoint_store, 'os', fault)
            store = CheckpointStore(folder, 1, Log())
            first = read_summary(store.last_good)['update'] + 1 if store.last_good else 1
            for update in range(first, last + 1):
                store.save(None, make_progress(update), is_best=update in (1, last))
                store.wait()
            os._exit(0)
        finally:
            os._exit(3)
    return os.waitpid(child, 0)[1]


def describe_folder(folder):
    return {name: (summary['update'], summary['is_best']) for name in list_files(folder)
            for summary in [verify_checkpoint(os.path.join(folder, name))]}


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_kill_at_every_call_of_a_run_leaves_what_no_kill_leaves(tmp_path, monkeypatch):
    """Best, last, and which files are kept: after the next start alone, if all was saved."""
    monkeypatch.setattr(checkpoint_store, 'capture', lambda state, progress, buffers: {
        **{'world_size': 1, 'format_version': 1}, **progress, 'model': {}})
    whole = tmp_path / 'whole'
    whole.mkdir()
    assert save_up_to(whole, FaultyOs('any', -1, 'kill'), 3, monkeypatch) == 0
    expected = describe_folder(whole)
    assert expected[BEST] == expected[LAST] == (3, True)
    assert sorted(value[0] for value in expected.values()) == [2, 3, 3, 3]
    kills = 0
    for call in range(1, 1000):
        folder = tmp_path / str(call)
        folder.mkdir()
        status = save_up_to(folder, FaultyOs('any', call, 'kill'), 3, monkeypatch)
        if status == 0:
            break
        assert status == signal.SIGKILL
        kills += 1
        assert save_up_to(folder, FaultyOs('any', -1, 'kill'), 3, monkeypatch) == 0
        assert describe_folder(folder) == expected, call
    assert kills > 35


def test_what_a_kill_left_behind_is_put_in_order(tmp_path, trained_run):
    save(tmp_path, trained_run, 1, is_best=True)
    path = save(tmp_path, trained_run, 2, is_best=True)
    old = [name for name in list_files(tmp_path) if name.startswith('Epoch-1-')][0]
    for name in (BEST, LAST):                       # killed after the rename, before the links
        (tmp_path / name).unlink()
        os.link(tmp_path / old, tmp_path / name)
    (tmp_path / f'.x.pdparams{checkpoint_file.TEMPORARY}').write_bytes(b'half')
    log = Log()
    store = CheckpointStore(tmp_path, 2, log)
    assert 'Removed 1 unfinished' in log.text
    assert store.last_good == path
    for name in (BEST, LAST):
        assert read_summary(tmp_path / name)['update'] == 2
    assert sorted(list_files(tmp_path)) == sorted([old, os.path.basename(path), BEST, LAST])


def test_without_hard_links_best_and_last_are_copies(tmp_path, monkeypatch, trained_run):
    def refuse(source, target):
        raise OSError(errno.EPERM, 'Operation not permitted')
    monkeypatch.setattr(os, 'link', refuse)
    path = save(tmp_path, trained_run, 1, is_best=True)
    for name in (BEST, LAST):
        assert (tmp_path / name).read_bytes() == Path(path).read_bytes()
        assert not os.path.samefile(tmp_path / name, path)


def test_writing_over_an_existing_name_replaces_it_in_one_step(tmp_path):
    path = tmp_path / 'a.pdparams'
    write_checkpoint(path, {'x': 1}, {'time': 1})
    write_checkpoint(path, {'x': 2}, {'time': 2})
    assert verify_checkpoint(path) == {'time': 2}
    assert list_files(tmp_path) == ['a.pdparams']
