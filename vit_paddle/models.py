"""Models by name, and trained ones that classify pictures."""

import fnmatch
import glob
import os
from argparse import Namespace
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle
from PIL import Image

from common.data.images import ImageError, read_image, show_path, to_rgb
from common.deploy import engine as engines
from common.deploy.predict import get_forward, make_dynamic_predictor
from common.deploy.preprocessing import FILE_NAME, load_preprocessing
from common.deploy.ranking import rank_classes
from common.deploy.trained import load_trained
from common.errors import UserError, suggest
from common.project import Project, list_projects
from common.weights.load import load_pretrained, open_weights

BATCH = 16                      # pictures computed at once


class Prediction(NamedTuple):
    """A class of a picture. label: its name, or its number as text where names are not known."""

    label: str
    probability: float


def list_models(pattern: str = '*', pretrained: bool = False) -> list[str]:
    """Return the names that create_model takes, sorted; those with released weights alone.

    pattern: such as 'vit_*_384'.
    """
    names = [name for name, (project, _) in _list_configs().items()
             if not pretrained or _find_released(project, name)]
    return fnmatch.filter(sorted(names), pattern)


def create_model(name: str, pretrained: bool | str = False, num_classes: int | None = None,
                 image_size: int | None = None, **options: Any) -> paddle.nn.Layer:
    """Return a model: images float32 [B, 3, S, S] -> logits [B, num_classes].

    name: one of list_models(). pretrained: True for its released weights, which are downloaded
    once; or a file, a folder, a run folder or a released name. num_classes: another number than
    the weights have makes the head anew. options: of the config's MODEL group in small letters,
    such as droppath=0.1. Raises UserError for what does not fit.
    """
    configs = _list_configs()
    if name not in configs:
        raise UserError(f'No model is called {name!r}.{suggest(name, configs)}')
    project, path = configs[name]
    flags = {f'MODEL.{key.upper()}': value for key, value in options.items()}
    if num_classes is not None:
        flags['MODEL.NUM_CLASSES'] = num_classes
    if image_size is not None:
        flags['DATA.IMAGE_SIZE'] = image_size
    config = project.get_config(path, flags=flags)
    source = '' if isinstance(pretrained, bool) else pretrained
    if pretrained is True:
        source = _find_released(project, name)
        if source is None:
            raise UserError(f'There are no released weights of {name}. With some: '
                            'list_models(pretrained=True).')
    model = project.build_model(config)
    if source:
        load_pretrained(model, source)
    return model


class Classifier:
    """A trained model that says what is on a picture.

    source: a checkpoint, a run folder or its `best`, weights of any known format, a released name,
    or the folder of an exported model. labels: file with class names, one a line. device: auto,
    cpu, gpu or gpu:N. Raises UserError for what is no model.
    """

    def __init__(self, source: str | os.PathLike, labels: str | os.PathLike | None = None,
                 device: str = 'auto'):
        source = os.path.expanduser(os.fspath(source))
        if os.path.isfile(os.path.join(source, FILE_NAME)):
            self.preprocessing = load_preprocessing(source)
            self.predict: engines.Run = engines.load_engine(source, 'auto', 'float32')
            return
        project = open_weights(source, None).project
        trained = load_trained(project, Namespace(
            pretrained=source, cfg=None, labels=labels and os.fspath(labels), opts=[],
            image_size=None, num_classes=None, device=device))
        self.preprocessing = trained.preprocessing
        self.predict = make_dynamic_predictor(get_forward(trained.model))

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes, None where they are not known."""
        return self.preprocessing.class_names

    def __call__(self, pictures: Any, topk: int = 5) -> list[Prediction] | list[list[Prediction]]:
        """Return the most likely classes of a picture, the first first; of a list, one list each.

        pictures: a path, a PIL image or uint8 [height, width, 3]; or a list of these. Raises
        ImageError for one that cannot be read.
        """
        if not isinstance(pictures, (list, tuple)):
            return self._classify([pictures], topk)[0]
        return [found for first in range(0, len(pictures), BATCH)
                for found in self._classify(pictures[first:first + BATCH], topk)]

    def _classify(self, pictures: Sequence, topk: int) -> list[list[Prediction]]:
        crops = [self.preprocessing.crop(_read(
            picture, self.preprocessing.exif_orientation)) for picture in pictures]
        logits = self.predict(self.preprocessing.normalize(crops))
        return [[Prediction(self.preprocessing.name_class(index), share)
                 for index, share in classes] for classes in rank_classes(logits, topk)]


def _read(picture, upright):
    """Return a picture as a PIL image in mode RGB; upright, if asked for and EXIF tells how."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    if isinstance(picture, Image.Image):
        name = getattr(picture, 'filename', '') or 'a PIL image'
        try:
            return to_rgb(picture, upright, name)
        except Exception as error:          # Pillow's decoders raise a dozen kinds
            raise ImageError(f'{show_path(name)} cannot be read: {error}.') from None
    return read_image(os.fspath(picture), upright)


def _list_configs() -> dict[str, tuple[Project, str]]:
    """Return {name: (project, yaml file)} of the models that the directories have."""
    found = {}
    for project in list_projects():
        for path in glob.glob(os.path.join(project.folder, 'configs', '[!_]*.yaml')):
            found[os.path.splitext(os.path.basename(path))[0]] = project, path
    return found


def _find_released(project: Project, name: str) -> str | None:
    """Return the released name of a model's weights, or None."""
    return next((released for released in project.list_released()
                 if released.rsplit('/', 1)[-1] == name), None)
