"""Names of released weights: from a name to a file, which is downloaded once.

The names and addresses themselves are the model directories': Project.list_released.
"""

import glob
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import UserError, suggest
from common.machine.cache import cache_folder
from common.machine.download import HUGGING_FACE, download
from common.project import Project, list_projects
from common.weights.containers import open_container

RUN_FILES = ('best.pdparams', 'last.pdparams')      # as common.checkpoints.store names them
# ModelScope keeps copies of these organisations' repositories, under the same names.
MODELSCOPE = 'https://modelscope.cn/models'
COPIED = ('timm', 'google', 'facebook')
# What stands for a checkpoint of a run, behind its folder's name or alone: of the newest run.
RUN_WORDS = {'best': RUN_FILES[:1], 'last': RUN_FILES[1:], 'latest': RUN_FILES[1:]}
RUN_PARENT = 'output'           # where runs are made unless -output says otherwise

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Released:
    """urls: the same weights, the best source first. extra_urls: small files that belong beside
    them. sha256: hexadecimal, or its first digits; '' where it is not published. licence: one that
    restricts use, for the list and the log; '' for others."""

    urls: tuple[str, ...]
    extra_urls: tuple[str, ...] = ()
    sha256: str = ''
    licence: str = ''


def list_all_released(project: Project | None = None) -> dict[str, Released]:
    """Return {name: Released} of every model directory, the given one's first."""
    released = dict(project.list_released()) if project else {}
    for other in list_projects():
        for name, entry in other.list_released().items():
            released.setdefault(name, entry)
    return released


def resolve(source: str | os.PathLike, project: Project | None = None) -> str:
    """Return the path of a file, a folder, or the weights of a released name (downloaded).

    A file's ending .pdparams may be left off, and a run folder stands for its best checkpoint, or
    its last; a folder of runs for its newest run. `best`, `last` and `latest`, behind a folder or
    alone, are RUN_WORDS. project: whose names to know beside those of the model directories next
    to common/. Raises UserError if there is none.
    """
    source = os.fspath(source)
    if not source:
        raise UserError('No weights given: an empty path.')
    for path in (os.path.expanduser(source), os.path.expanduser(source) + '.pdparams'):
        if os.path.isdir(path):
            return find_in_run(path) or path
        if os.path.exists(path):
            return path
    folder, word = os.path.split(os.path.expanduser(source))
    if word in RUN_WORDS and (found := find_in_run(folder or RUN_PARENT, RUN_WORDS[word])):
        return found
    released = list_all_released(project)
    if source in released:
        return fetch(source, released[source])
    if word in RUN_WORDS:
        raise UserError(f'{source}: there is no such file, and no checkpoint of a run in '
                        f'{folder or RUN_PARENT}. Give the run folder, as <run folder>/best.')
    near = suggest(source, released)
    hint = near if near.startswith(' Did') else ' "python weights.py list" lists all names.'
    raise UserError(f'{source}: no such file or folder, with or without .pdparams, and no name '
                    f'of released weights.{hint}')


def find_in_run(folder: str, names: Sequence[str] = RUN_FILES) -> str | None:
    """Return a checkpoint of a run folder, or of the newest run in a folder of runs; else None.

    names: of the file, the preferred one first.
    """
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    runs = glob.glob(os.path.join(glob.escape(folder), 'train-*', ''))
    found = [path for run in runs for name in names
             if os.path.isfile(path := os.path.join(run, name))]
    newest = max(found, key=os.path.getmtime, default=None)
    return newest and find_in_run(os.path.dirname(newest), names)


def cached_path(name: str, released: Released) -> str | None:
    """Return where the weights of a released name lie, or None before they are fetched."""
    folder = os.path.join(cache_folder(), *name.split('/'))
    for url in released.urls:
        path = os.path.join(folder, _file_name(url))
        if os.path.isfile(path):
            return path
    return None


def fetch(name: str, released: Released) -> str:
    """Return the path of a released name's weights, downloading what is not in the cache.

    Raises UserError or RunError if no source delivers them whole.
    """
    path = cached_path(name, released)
    if path is None:
        if released.licence:
            logger.warning('%s has a licence that restricts use: %s', name, released.licence)
        folder = os.path.join(cache_folder(), *name.split('/'))
        for url in released.extra_urls:
            download(_list_targets([url], folder))
        path = download(_list_targets(released.urls, folder), released.sha256, open_container)
    return path


def list_sources(url: str) -> list[str]:
    """Return an address, and that of ModelScope's copy where it is Hugging Face's."""
    match = re.fullmatch(
        rf'{re.escape(_find_endpoint())}/((\w+)/[\w.-]+)/resolve/main/([\w./-]+)', url)
    if not match or match[2] not in COPIED:
        return [url]
    return [url, f'{MODELSCOPE}/{match[1]}/resolve/master/{match[3]}']


def _list_targets(urls, folder):
    """Return [(address, path)] of every source of the addresses."""
    return [(source, os.path.join(folder, _file_name(source)))
            for url in urls for source in list_sources(url)]


def hugging_face_url(repository: str, file: str) -> str:
    """Return a file's address; HF_ENDPOINT names a mirror, as it does for Hugging Face's tools."""
    return f'{_find_endpoint()}/{repository}/resolve/main/{file}'


def _find_endpoint():
    return (os.environ.get('HF_ENDPOINT') or HUGGING_FACE).rstrip('/')


def _file_name(url):
    return url.rsplit('/', 1)[-1]
