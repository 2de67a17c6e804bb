"""timm transfers a small ViT: transfer_peer.py RECIPES.json PICTURES.npz SEED

RECIPES: {name: config} of transfer.py, the pretraining first. PICTURES: {SET_train_images, ...} of
its sets. Prints one JSON line a recipe, {"way": name, "acc1": percent}. Model, new classifier,
freezing, layer decay and training are timm's own, see accuracy_peer.py.
"""

import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))

from benchmarks import accuracy_peer as peer  # noqa: I001 (makes timm ready to be imported)

import numpy as np
import timm
import torch


def prepare(recipe, weights):
    """Return the model that a recipe starts from. weights: of the pretraining."""
    model = peer.build_model(recipe)
    # As ours and Google's; PyTorch's default is a point ahead after 200 updates from scratch.
    timm.layers.lecun_normal_(model.patch_embed.proj.weight)
    torch.nn.init.zeros_(model.patch_embed.proj.bias)
    if recipe['MODEL']['PRETRAINED']:
        model.load_state_dict(weights)
        model.reset_classifier(recipe['MODEL']['NUM_CLASSES'])
        torch.nn.init.trunc_normal_(model.head.weight, std=0.02)
        torch.nn.init.zeros_(model.head.bias)
    if recipe['MODEL']['FREEZE'] == 'backbone':
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith('head.')
    return model


def main():
    recipes_path, pictures_path, seed = sys.argv[1:]
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS') or os.cpu_count()))
    with open(recipes_path, encoding='utf-8') as file:
        recipes = json.load(file)
    arrays = dict(np.load(pictures_path))
    weights = None
    for name, recipe in recipes.items():
        peer.check_recipe(recipe)
        timm.utils.random_seed(int(seed), 0)
        model = prepare(recipe, weights)
        prefix = recipe['DATA']['DATA_PATH'] + '_'
        pictures = {key.removeprefix(prefix): array for key, array in arrays.items()
                    if key.startswith(prefix)}
        accuracies = []

        def write(event, **values):
            if event == 'eval':
                accuracies.append(values['acc1'])           # noqa: B023 (called within the turn)
        peer.train(recipe, pictures, model, write)
        weights = model.state_dict() if weights is None else weights
        print(json.dumps({'way': name, 'acc1': accuracies[-1]}), flush=True)


if __name__ == '__main__':
    main()
