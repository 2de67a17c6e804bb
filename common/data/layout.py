"""How a stranger's folder of pictures is laid out: which folders are parts, which are classes.

What is more likely meant otherwise is refused, or said, before a picture is read.
"""

import logging
import os
from collections.abc import Sequence
from typing import NoReturn

from common.data.folders import (
    Listing,
    find_part_in,
    guess_part,
    is_spelling,
    list_folder,
    walk,
)
from common.data.images import show_path
from common.errors import UserError

SHOWN = 5                       # names in a message
ARCHIVES = ('.zip', '.tar', '.tgz', '.gz', '.bz2', '.xz', '.7z', '.rar')

logger = logging.getLogger(__name__)


def refuse_path(path: str, root: str) -> NoReturn:
    """Raise UserError for what is no folder."""
    shown, wanted = show_path(path), 'The pictures must lie in a folder, one folder a class in it.'
    if not os.path.exists(root):
        raise UserError(f'No such folder: {shown}. {wanted}')
    if root.lower().endswith(ARCHIVES):
        raise UserError(f'{shown} is an archive: unpack it first and name the folder. {wanted}')
    raise UserError(f'{shown} is a file, not a folder of pictures. {wanted}')


def find_parts(root: str) -> dict[str, bool]:
    """Return {folder of a part: is it for training}; {'': True} where the root has the classes."""
    train, val = (find_part_in(root, part) for part in ('train', 'val'))
    beside = list_folder(root).folders
    if train is not None:
        unused = sorted(set(beside) - {train, val})
        if unused:
            logger.warning('Not used: %s beside %s in %s. Pictures to measure on lie in val.',
                           join_names(unused), show_path(train), show_path(root))
        return {train: True} if val is None else {train: True, val: False}
    if val is not None and all(is_spelling(name, 'val', 'test') for name in beside):
        raise UserError(f'{show_path(root)} has the folder {show_path(val)} and no train to learn '
                        'from.')
    return {'': True}


def refuse_classless(folder: str, listing: Listing) -> NoReturn:
    """Raise UserError for a folder without class folders."""
    if listing.pictures:
        raise UserError(f'{show_path(folder)} has pictures but no class folders, so their classes '
                        'are unknown. Sort them into one folder a class, such as cat/ and dog/.')
    raise UserError(f'{show_path(folder)} holds no class folders with pictures.')


def check_depth(root: str, parts: dict[str, bool], names: list[str]) -> None:
    """Raise UserError, or warn, where the classes seem to lie a folder deeper than is read.

    A class may have folders of its own, whose pictures count as its. So one folder alone that
    holds two or more with pictures is refused, since it would be the only class; so are several
    that are called like parts (seg_train, seg_test). Others are a warning.
    """
    inner = {}              # class folder: the folder in it that holds several with pictures, these
    has_pictures = False
    for part in parts:
        for name in names:
            folder = os.path.join(root, part, name)
            if os.path.isdir(folder):
                deepest, found = _descend(folder)
                if found:
                    inner[folder] = deepest, found
                elif list_folder(deepest).pictures:
                    has_pictures = True
    called = {guess_part(os.path.basename(folder)): deepest for folder, (deepest, _)
              in inner.items()}
    if 'train' in called and called.keys() - {'train', None}:
        raise UserError(f'{show_path(root)}: {join_names(sorted(map(os.path.basename, inner)))} '
                        'hold folders with pictures and are called like parts of the data, not '
                        f'like classes. Did you mean {show_path(called["train"])}?')
    if has_pictures or not inner:
        return
    folder, found = next(iter(inner.values()))
    names = sorted(set(map(os.path.basename, inner)))
    holds = f'{show_path(folder)} holds {len(found)} folders with pictures ' \
            f'({join_names(found)})'
    if len(names) > 1:
        logger.warning('%s, and no class folder has a picture of its own. The classes are the '
                       'outer folders (%s); if the inner ones are meant, name one outer folder, or '
                       'move the inner ones up.', holds, join_names(names))
    elif parts == {'': True}:
        raise UserError(f'{holds}: did you mean {show_path(folder)}?')
    else:
        raise UserError(f'{holds}, and would be the only class. Move these up into '
                        f'{show_path(os.path.dirname(folder))}.')


def _descend(folder):
    """Return (the folder that `folder` or its only folder ... is, those in it with pictures).

    The second is empty where the first has pictures itself, or nothing has.
    """
    while True:
        listing = list_folder(folder)
        found = [] if listing.pictures else [sub for sub in listing.folders if any(
            below.pictures for _, below in walk(os.path.join(folder, sub)))]
        if len(found) != 1:
            return folder, found
        folder = os.path.join(folder, found[0])


def join_names(names: Sequence[str]) -> str:
    """Return the first of some names, printable."""
    return ', '.join(map(show_path, names[:SHOWN])) + (', ...' if len(names) > SHOWN else '')
