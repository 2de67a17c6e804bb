"""The contract between a model directory and common/: what the directory gives, what a model has.

A model directory is a folder with a `project.py` that holds `PROJECT`, a Project. Everything that
a model's paper or family decides is there or in files beside it; what is optional has a default
that suits any model that satisfies Model. common/ learns of a directory in two ways: a script
passes its PROJECT, or find_project looks beside the file that defines a model's class.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from common.config import Options

if TYPE_CHECKING:
    import paddle
    from yacs.config import CfgNode

    from common.deploy.attention import TokenModule
    from common.weights.read import Weights
    from common.weights.registry import Released
    from common.weights.rules import Format, Tensor, Written

FILE_NAME = 'project.py'


class Model(Protocol):
    """What common/ uses of a model, a paddle.nn.Layer: images [B, C, height, width] -> logits.

    blocks: the blocks, from the input to the output. grid_size: (rows, columns) of the image's
    tokens. num_prefix_tokens: tokens before those of the image (class token, registers).
    num_prefix_positions: rows of the position table that belong to them.
    """

    blocks: Sequence[paddle.nn.Layer]
    grid_size: tuple[int, int]
    num_prefix_tokens: int
    num_prefix_positions: int

    def forward(self, images: paddle.Tensor) -> paddle.Tensor: ...

    def state_dict(self) -> dict[str, paddle.Tensor]: ...

    def named_parameters(self) -> Iterator[tuple[str, paddle.Tensor]]: ...

    def no_weight_decay(self) -> set[str]:
        """Return names of the state dict that do not decay, beside biases and norms."""

    def attention_macs(self) -> int:
        """Return an image's multiply-accumulates in products without parameters."""

    def get_numerics(self) -> dict[str, Any]:
        """Return what differs between the sources of checkpoints, {} for a model of one source."""

    def set_numerics(self, **numerics: Any) -> None:
        """Change some of what get_numerics returns. Raises ValueError for an unknown value."""


ComputeLoss = Callable[['paddle.nn.Layer', 'paddle.Tensor', Any], 'paddle.Tensor']


def build_default_loss(config: CfgNode, criterion: Callable) -> ComputeLoss:
    """Return compute_loss(model, images, targets) = criterion(model(images), targets)."""
    def compute_loss(model: paddle.nn.Layer, images: paddle.Tensor, targets: Any) -> paddle.Tensor:
        return criterion(model(images), targets)
    return compute_loss


def list_nothing(model: Model) -> tuple:
    """The default of list_token_modules: no token module."""
    return ()


def count_heads(model: Model) -> int | None:
    """The default of count_heads: `num_heads` of the first block's attention, if it has one."""
    blocks = getattr(model, 'blocks', None)
    attention = getattr(blocks[0], 'attn', None) if blocks else None
    return getattr(attention, 'num_heads', None)


def fit_nothing(tensors: dict[str, Tensor], shapes: dict[str, list]) -> dict[str, str]:
    """The default of fit_weights."""
    return {}


def list_no_weights() -> dict:
    """The default of list_released: no released weights."""
    return {}


@dataclass(frozen=True)
class Project:
    """What a model directory gives to common/, from its project.py.

    name: for messages. folder: the model directory. get_config: (path, flags, opts) -> config.
    get_dataset: (config, is_train) -> data set. build_model: (config) -> Model.
    example_configs: for -h, (a config that needs no data, the usual one). options: the class of
    the options that get_config reads, for flags, tables and what a run says of unused ones.

    own_format: the Format of files with the model's own names that record no numerics (from
    another project, say); None: nothing is known of them. formats: of other people's files, in
    the order in which they are tried. targets: {name: Format, or (Weights, {our name: ndarray})
    -> Written} that convert_weights.py -to writes beside `paddle`. list_released: () ->
    {name: Released}, what -pretrained=NAME downloads.
    heads: beginnings of the names of the classifier's parameters, which another number of
    classes replaces. before_head: of layers between features and head that a file may lack.
    optional_layers: of layers that a model may do without where a file has them.
    positions: names of the position table, the first that the model has. count_heads: (model)
    -> attention heads, for comparison with what files say. fit_weights: ({our name: Tensor},
    {name: shape}) changes a file's tensors to fit a model, and returns {their name: why it was left
    out}. fixed_options: what weights are trained
    for and shapes do not show, beside heads and pooling: a contradiction is refused. read_options:
    (Weights) -> {key: value} of the model that a file is of, for commands without a yaml file;
    None: they need one. choose_small: (pixels of the pictures' shorter side) -> {key: value} of a
    small model to train from scratch on few pictures; None: there is none.
    describe_shape: ({name: shape}) -> "vit_base_patch16 (embed_dim 768, depth 12)", for messages.

    build_loss: (config, criterion) -> compute_loss(model, images, targets), which returns a
    scalar; criterion takes logits and targets. number_layers: (model) -> {parameter: number},
    from 0 to depth + 1, for layer decay and freezing; None: by `model.blocks`.
    list_token_modules: (model) -> TokenModules of a stem that attends too.
    tiny_models: {name: options}, small models of every kind, which gpu_check.py compares with the
    CPU. timed_configs: the yaml files whose speed it measures, the first also through the loader.
    """

    name: str
    folder: str
    get_config: Callable[..., CfgNode]
    get_dataset: Callable[[CfgNode, bool], Any]
    build_model: Callable[[CfgNode], Model]
    example_configs: tuple[str, str]
    options: type[Options] = Options

    own_format: Format | None = None
    formats: tuple[Format, ...] = ()
    targets: Mapping[str, Format | Callable[[Weights, dict], Written]] = field(
        default_factory=dict)
    list_released: Callable[[], dict[str, Released]] = list_no_weights
    heads: tuple[str, ...] = ('head.', 'classifier.')
    before_head: tuple[str, ...] = ()
    optional_layers: tuple[str, ...] = ()
    positions: tuple[str, ...] = ('pos_embed', 'position_embedding')
    count_heads: Callable[[Model], int | None] = count_heads
    fixed_options: tuple[str, ...] = ()
    fit_weights: Callable[[dict[str, Tensor], dict[str, list]], dict[str, str]] = fit_nothing
    read_options: Callable[[Weights], dict[str, Any]] | None = None
    choose_small: Callable[[int], dict[str, Any]] | None = None
    describe_shape: Callable[[dict[str, list]], str] | None = None

    build_loss: Callable[[CfgNode, Callable], ComputeLoss] = build_default_loss
    number_layers: Callable[[Model], dict[str, int]] | None = None
    list_token_modules: Callable[[Model], Sequence[TokenModule]] = list_nothing
    tiny_models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    timed_configs: tuple[str, ...] = ()

    def describe(self, shapes: dict[str, list]) -> str:
        """Return what a model with tensors of these shapes is called."""
        if self.describe_shape is not None:
            return self.describe_shape(shapes)
        return f'a {self.name} of {len(shapes)} tensors'


def find_project(model: Model) -> Project:
    """Return the Project of the directory whose file defines the model's class, or a base of it.

    A subclass in a notebook belongs to its base's directory. A class without one gets a Project
    of defaults, which names no files and builds nothing.
    """
    for kind in type(model).__mro__:
        file = getattr(sys.modules.get(kind.__module__), '__file__', None)
        if file and os.path.isfile(path := os.path.join(os.path.dirname(file), FILE_NAME)):
            return load_project(path)
    return Project(type(model).__name__, '', _refuse, _refuse, _refuse, ('', ''))


def list_projects() -> list[Project]:
    """Return the Projects of the model directories beside common/, by folder."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return [load_project(path) for path in sorted(glob.glob(os.path.join(root, '*', FILE_NAME)))
            if path != os.path.abspath(__file__)]


def load_project(path: str) -> Project:
    """Return PROJECT of a project.py, which is run only if it has not been imported yet."""
    path = os.path.realpath(path)
    for module in list(sys.modules.values()):
        file = getattr(module, '__file__', None)
        if file and os.path.basename(file) == FILE_NAME and os.path.realpath(file) == path:
            return module.PROJECT
    name = f'{os.path.basename(os.path.dirname(path))}.project'
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module.PROJECT


def _refuse(*arguments: Any) -> Any:
    raise NotImplementedError('The model belongs to no model directory: there is no '
                              f'{FILE_NAME} beside the file of its class.')
