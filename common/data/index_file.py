"""Indexes of archives: made once, kept in the cache, used for as long as the archives are the same.

An index file is data: NumPy arrays and one JSON text, checked when it is read.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from common.data.images import show_path
from common.data.table import SampleTable
from common.errors import UserError
from common.machine.cache import cache_folder, locked

logger = logging.getLogger(__name__)

VERSION = 2                     # of what an index holds; another one is made anew
TABLE = {'names': np.uint8, 'lengths': np.uint16, 'labels': np.int32}
MAX_HEADER = 64 << 20           # bytes of the JSON text


class Index:
    """table: names and labels. places: {name: array [N]}, where the bytes lie. header: the rest."""

    def __init__(self, table: SampleTable, places: dict[str, np.ndarray], header: dict[str, Any]):
        self.table = table
        self.places = places
        self.header = header


def open_index(kind: str, paths: list[str], dtypes: Mapping[str, type],
               build: Callable[[], Index], check: Callable[[Index], bool],
               is_cache_needed: bool = False) -> Index:
    """Return the index of files, from the cache if they have not changed since, else by build().

    kind: what is indexed, and with which options: part of the index's name. dtypes: of the
    places. check(index): whether what was read from the cache can be true.
    Of several processes that ask at once one builds. Raises UserError for a file that cannot be
    read; a cache that cannot be written costs a line in the log, unless it is needed.
    """
    sources = [_identify(path) for path in paths]
    path = index_path(kind, paths)
    with contextlib.ExitStack() as stack:
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            stack.enter_context(locked(f'{path}.lock'))
        except OSError as error:
            text = f'Cannot write {show_path(path)}: {error.strerror}.'
            if is_cache_needed:
                raise UserError(f'{text} VIT_CACHE names another folder.') from None
            logger.info('%s The index is not kept.', text)
            path = ''
        index = _load(path, sources, dtypes, check) if path else None
        if index is None:
            index = build()
            if path:
                _save(path, sources, index)
    return index


def index_path(kind: str, paths: list[str]) -> str:
    """Return where the index of files is kept: a hash of their paths, in the cache."""
    names = '\n'.join([kind, *map(os.path.realpath, paths)])
    digest = hashlib.sha256(names.encode('utf-8', 'surrogateescape')).hexdigest()[:32]
    return os.path.join(cache_folder(), 'indexes', f'{digest}.npz')


def _identify(path):
    try:
        info = os.stat(path)
    except OSError as error:
        raise UserError(f'Cannot read {show_path(path)}: {error.strerror}.') from None
    return [os.path.realpath(path), info.st_size, info.st_mtime_ns]


def _save(path, sources, index):
    header = json.dumps({'version': VERSION, 'sources': sources, **index.header})
    part = f'{path}.part'
    try:
        with open(part, 'wb') as file:
            np.savez(file, header=np.frombuffer(header.encode(), np.uint8),
                     names=index.table.names, lengths=index.table.lengths,
                     labels=index.table.labels, **index.places)
        os.replace(part, path)
    except OSError as error:
        logger.info('Cannot keep the index %s: %s.', show_path(path), error.strerror)
        with contextlib.suppress(OSError):
            os.remove(part)


def _load(path, sources, dtypes, check):
    """Return the Index in a file; None if it is missing, of other sources, or damaged."""
    if not os.path.exists(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            header = file['header']
            if header.dtype != np.uint8 or header.size > MAX_HEADER:
                raise ValueError('its header is wrong')
            header = json.loads(header.tobytes())
            if header['version'] != VERSION or header['sources'] != sources:
                return None
            arrays = {name: file[name] for name in (*TABLE, *dtypes)}
        _check_arrays(arrays, dtypes)
        table = SampleTable(*(arrays[name] for name in TABLE))
        index = Index(table, {name: arrays[name] for name in dtypes}, header)
        if not check(index):
            raise ValueError('its numbers are impossible')
        return index
    except Exception as error:      # np.load and what a wrong file makes of it raise many kinds
        logger.info('The index %s is damaged (%s) and is made again.', show_path(path), error)
        return None


def _check_arrays(arrays, dtypes):
    count = arrays['lengths'].shape[0]
    for name, dtype in {**TABLE, **dtypes}.items():
        array = arrays[name]
        if array.dtype != dtype or array.ndim != 1 or name != 'names' and len(array) != count:
            raise ValueError(f'{name}: {array.dtype} {array.shape}')
    if int(arrays['lengths'].sum(dtype=np.int64)) != len(arrays['names']):
        raise ValueError('names and their lengths differ')
