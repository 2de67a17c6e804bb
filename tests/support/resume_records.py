"""A good checkpoint of a tiny run, its fields changed one by one, signed with a right checksum."""

import copy
import random

import numpy as np
import paddle

from common.checkpoints.content import read_checkpoint
from common.checkpoints.file import NamedArray, write_checkpoint
from common.config import dump_config
from common.errors import UserError
from common.run.records import match_continued
from common.run.training import resume, settle_end
from common.training.ema import ModelEma
from common.training.loop import TrainState
from common.training.schedule import Plan
from common.weights import describe_numerics, safe_pickle
from tests.support.recipe import fill_by_recipe
from tests.support.saving import save
from ViT.config import get_config
from ViT.project import PROJECT
from ViT.vit import VisionTransformer

PLAN = Plan(batches_per_epoch=4, accum_steps=2, total_updates=10, warmup_updates=0,
            decay_updates=10)

VALUES = (None, True, -1, 0, 1, 10 ** 30, 1 << 62, -(1 << 40), 1.5, 1e308, float('nan'),
          float('inf'), -0.0, '', 'x', 'nan', '1', 'a: [b', 'BASE: /etc/passwd', '\x00', [], [[]],
          [1, 2], {}, {'value': 1}, {'a': {'b': []}}, {'images': 1}, (), (1,), np.zeros(0),
          np.zeros((2, 2)), 3.0, 1e-4, np.array([7]), np.full(3, np.nan, np.float32))


def name_arrays(tree):
    """Return the content of a checkpoint as `capture` made it: (name, array) as NamedArray."""
    if isinstance(tree, dict):
        return {key: name_arrays(value) for key, value in tree.items()}
    if isinstance(tree, tuple) and len(tree) == 2 and isinstance(tree[1], np.ndarray):
        return NamedArray(*tree)
    return tree


def copy_branches(tree):
    return {key: copy_branches(value) for key, value in tree.items()} if isinstance(
        tree, dict) else tree


def mutate(content, generator):
    """Return a copy with one to three fields, on any level, changed, missing or added."""
    content = copy_branches(content)
    for _ in range(generator.choice([1, 1, 1, 2, 3])):
        branch, key = content, None
        while True:
            keys = sorted(branch, key=str)
            if not keys:
                break
            key = generator.choice(keys)
            if isinstance(branch[key], dict) and branch[key] and generator.random() < 0.7:
                branch = branch[key]
                continue
            break
        how = generator.random()
        if key is None or how < 0.1:
            branch[generator.choice(['more', 7, '', 'model', 'x' * 5000])] = pick(generator)
        elif how < 0.25:
            del branch[key]
        elif how < 0.35 and isinstance(branch[key], NamedArray):
            array = branch[key].array
            branch[key] = NamedArray(branch[key].name, generator.choice([
                array[..., None], array[:0], array.astype('int32'), array.astype('float16'),
                np.full_like(array, np.nan), np.full_like(array, np.inf)]))
        else:
            branch[key] = pick(generator)
    return content


def pick(generator):
    return copy.deepcopy(generator.choice(VALUES))


def write_mutants(good, path, count, seed=0):
    """Write mutants of the checkpoint `good` to `path`, one after the other, yielding each."""
    content = name_arrays(safe_pickle.load(good, keep_names=True))
    generator = random.Random(seed)
    for _ in range(count):
        mutant = mutate(content, generator)
        write_checkpoint(path, mutant, {'time': 1.0, 'epoch': 1})
        yield mutant


def build_state():
    """Return the TrainState of a run that has not begun: a tiny ViT, AdamW, EMA, loss scaling."""
    model = VisionTransformer(image_size=16, patch_size=8, num_classes=3, embed_dim=8, depth=1,
                              num_heads=2)
    fill_by_recipe(model)
    optimizer = paddle.optimizer.AdamW(0.01, parameters=model.parameters())
    return TrainState(model, optimizer, paddle.amp.GradScaler(enable=True), ModelEma(model, 0.9))


def save_good(folder):
    """Return the path of a checkpoint after one update."""
    state = build_state()
    state.model(paddle.ones([2, 3, 16, 16])).sum().backward()
    state.optimizer.step()
    return save(folder, state, 2, epoch=1, seed=7, updates_per_epoch=2, micro_batch=0,
                meter=state.meter.state_dict(), best={'value': 50.0, 'epoch': 1},
                config=dump_config(get_config()), class_names=['a', 'b', 'c'],
                data={'training': {'images': 8, 'checksum': 1, 'sizes': 2}}, metrics_size=10,
                numerics=describe_numerics(state.model), preprocessing={'image_size': 16})


class Data:
    """Three pictures of three classes, which a run that goes on compares with its record."""

    class_names, name = ['a', 'b', 'c'], 'imagefolder'

    def __init__(self, is_train):
        self.is_train = is_train

    def __len__(self):
        return 3

    def describe(self):
        return 'three pictures'

    def checksum(self):
        return 1

    def find_file(self, index):
        return None

    def relabel(self, mapping, names):
        assert sorted(mapping) == [0, 1, 2]


def try_resume(path, state, config):
    """Resume a run in this process as training does; return the UserError's text, '' if it goes.

    Anything else that is raised is a defect. What has been resumed can compute, and be saved.
    """
    try:
        checkpoint = read_checkpoint(path)
        resume(state, checkpoint, PLAN, config)
        match_continued(checkpoint, [Data(True), Data(False)], config, PROJECT)
        settle_end(state, PLAN, config)
    except UserError as error:
        return str(error)
    state.model(paddle.ones([1, 3, 16, 16]))
    if state.awaits_validation:
        assert f'{state.epoch_loss:.6g}'            # in the name of the next checkpoint
    return ''
