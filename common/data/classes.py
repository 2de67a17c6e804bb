"""Classes are matched by name wherever both sides have names: data, checkpoints, labels files."""

import functools
import os
from collections.abc import Sequence

from common.data.images import show_path
from common.errors import UserError

IMAGENET = 'imagenet2012'
IMAGENET_CLASSES = 1000
ANY_LABEL = 2 ** 31 - 1         # a number of classes that no label exceeds
ASSETS = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'assets')
# Files in ASSETS with the names of the classes, by their number.
KNOWN_NAMES = {IMAGENET_CLASSES: 'imagenet_names.txt', 21_843: 'imagenet21k_names.txt'}


def read_class_names(path: str) -> list[str]:
    """Return the class names of a text file, one a line. Raises UserError naming the line."""
    try:
        with open(path, encoding='utf-8-sig') as file:
            names = [line.strip() for line in file.read().rstrip().splitlines()]
    except OSError as error:
        raise UserError(f'Cannot read the labels {path}: {error.strerror}.') from None
    except UnicodeDecodeError:
        raise UserError(f'The labels {path} are not a UTF-8 text file.') from None
    if names == [] or names == ['']:
        raise UserError(f'{path} is empty; one class name a line is expected.')
    if '' in names:
        raise UserError(f'{path}, line {names.index("") + 1}: an empty line between the names, of '
                        'which each line is one class. Remove the line, or write the name there.')
    return names


def match_classes(found: Sequence[str], recorded: Sequence[str], data: str, source: str
                  ) -> list[int]:
    """Return the label in `recorded` of each class that was found.

    found: names in the order of the data's labels. recorded: names in the order of the model's
    classes. data, source: what messages call the two. Raises UserError naming both sides where a
    class that was found is not among those recorded.
    """
    if list(found) == list(recorded):
        return list(range(len(recorded)))
    places = {name: label for label, name in enumerate(recorded)}
    for name in found:
        if list(recorded).count(name) > 1:
            raise UserError(f'{source}: two classes are called {show_path(name)}, so that the '
                            f'classes of {data}, which stand in another order, cannot be matched.')
    if set(found) <= set(places):
        return [places[name] for name in found]
    raise UserError(describe_difference(found, recorded, data, source))


def describe_difference(found: Sequence[str], recorded: Sequence[str], data: str, source: str
                        ) -> str:
    """Return the message for classes that are not the same. Arguments as for match_classes."""
    return (f'{data}, and {source}, have other classes: {compare_names(found, recorded)}. Labels '
            'are matched by name.')


def compare_names(found: Sequence[str], recorded: Sequence[str]) -> str:
    """Return in words which names only one side has."""
    only_found = [name for name in found if name not in set(recorded)]
    only_recorded = [name for name in recorded if name not in set(found)]
    parts = [f'only in the data: {_list_names(only_found)}'] if only_found else []
    parts += [f'only in the checkpoint: {_list_names(only_recorded)}'] if only_recorded else []
    return '; '.join(parts)


def rename_classes(known: Sequence[str] | None, names: Sequence[str], source: str
                   ) -> list[str]:
    """Return the names to show for classes known by other names, or by none.

    known: in the order of the labels, or None. names: of a labels file, called `source`. Where it
    holds the known names in another order, these stand; other names take their places line by
    line. Raises UserError for another number of names, or for some of the known names at places
    of other classes.
    """
    if known is None:
        return list(names)
    if set(known) == set(names):
        return list(known)
    if len(names) != len(known):
        raise UserError(f'{source} has {len(names)} class names; there are {len(known)} classes.')
    moved = [name for label, name in enumerate(names) if name in known and known[label] != name]
    if moved:
        line, place = names.index(moved[0]) + 1, list(known).index(moved[0]) + 1
        raise UserError(f'{source} names {show_path(moved[0])} in line {line}, which is the class '
                        f'in place {place}.')
    return list(names)


def list_known_names(recorded: Sequence[str] | None, num_classes: int,
                     found: Sequence[str] | None) -> list[str] | None:
    """Return the names of a model's classes: recorded, or by convention; None: not known.

    Models of 1000 classes that say nothing are of ImageNet where the data's folders are named by
    WordNet ids, or by labels as ImageNetV2's are, and have these in their order.
    """
    labels = [str(label) for label in range(num_classes)]
    if recorded is None and found and num_classes == IMAGENET_CLASSES and set(found) <= set(labels):
        return labels
    ids = read_imagenet_ids()
    are_ids = found and num_classes == IMAGENET_CLASSES and set(found) <= set(ids)
    if are_ids and (recorded is None or not set(found) <= set(recorded)):
        return list(ids)
    return None if recorded is None else list(recorded)


@functools.cache
def read_imagenet_ids() -> tuple[str, ...]:
    """Return the WordNet ids of ImageNet's classes (ILSVRC 2012), in the order of their labels."""
    with open(os.path.join(ASSETS, 'imagenet_ids.txt'), encoding='ascii') as file:
        return tuple(file.read().split())


@functools.cache
def read_imagenet_names(num_classes: int) -> tuple[str, ...] | None:
    """Return the English names of ImageNet's 1,000 or ImageNet-21k's 21,843 classes, else None."""
    if num_classes not in KNOWN_NAMES:
        return None
    with open(os.path.join(ASSETS, KNOWN_NAMES[num_classes]), encoding='ascii') as file:
        return tuple(file.read().splitlines())


def translate_ids(names: Sequence[str]) -> list[str]:
    """Return class names in English where all of them are WordNet ids of ImageNet's classes."""
    english = dict(zip(read_imagenet_ids(), read_imagenet_names(IMAGENET_CLASSES)))
    return [english[name] for name in names] if set(names) <= set(english) else list(names)


def _list_names(names):
    shown = ', '.join(show_path(name) for name in names[:3])
    return shown + (f' and {len(names) - 3} more' if len(names) > 3 else '')
