"""A peer trains a recipe of this project: accuracy_peer.py RECIPE.json PICTURES.npz SEED METRICS

Run by benchmarks/accuracy.py with the Python that has benchmarks/requirements.txt. ViT is timm's;
T2T-ViT the official code, a checkout of which T2T_VIT names. Transforms, mixup, erasing, parameter
groups, optimizer, schedule, losses and averaged weights are timm's own for both, as in its train.py
without the prefetching loader (there erasing follows mixup; here, as in its plain loader and in
this project, it comes before). METRICS gets the events of this project's metrics.jsonl.
"""

import itertools
import json
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))

from benchmarks.contest import keep_freed_memory
from benchmarks.torch_setup import prepare_torchvision

keep_freed_memory()
prepare_torchvision()

import numpy as np  # noqa: E402
import timm.data  # noqa: E402
import timm.loss  # noqa: E402
import timm.optim  # noqa: E402
import timm.scheduler  # noqa: E402
import timm.utils  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

# What a recipe may not change, because the peer would not follow it.
FIXED = {
    'MODEL': {'DROPOUT': 0.0, 'ATTENTION_DROPOUT': 0.0, 'GELU': 'erf'},
    'TRAIN': {'ACCUM_ITER': 1, 'AFFINE_DEGREES': 0.0, 'AFFINE_TRANSLATE': 0.0, 'AFFINE_SHEAR': 0.0,
              'CLASS_WEIGHTS': None, 'COOLDOWN_EPOCHS': 0, 'HEAD_LR_SCALE': 1.0,
              'LOSS': 'cross_entropy', 'MODEL_EMA_WARMUP': False, 'REPEATED_AUGMENTS': 1,
              'LINEAR_SCALED_LR': None}}


class Pictures(torch.utils.data.Dataset):
    """Gray pictures [N, H, W] uint8 as RGB, transformed one by one."""

    def __init__(self, images, labels, transform):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = Image.fromarray(self.images[index]).convert('RGB')
        return self.transform(image), int(self.labels[index])


def check_recipe(recipe):
    """Raise SystemExit if a recipe asks for what is not done here."""
    for section, options in FIXED.items():
        for key, value in options.items():
            if recipe[section][key] != value:
                sys.exit(f'{section}.{key} {recipe[section][key]} is not in this peer.')
    if (recipe['TRAIN']['CROP'] == 'simple' or recipe['TRAIN']['OPTIMIZER']['NAME'] != 'AdamW'
            or recipe['TRAIN']['LR_SCHEDULER']['NAME'] != 'cosine'):
        sys.exit('This peer has AdamW, a cosine, and no crop "simple".')


def build_model(recipe):
    """Return the peer's model of a recipe."""
    model = recipe['MODEL']
    sizes = {'img_size': recipe['DATA']['IMAGE_SIZE'], 'num_classes': model['NUM_CLASSES'],
             'embed_dim': model['EMBED_DIM'], 'depth': model['DEPTH'],
             'num_heads': model['NUM_HEADS'], 'mlp_ratio': model['MLP_RATIO'],
             'qkv_bias': model['QKV_BIAS'], 'drop_path_rate': model['DROPPATH']}
    if model['TYPE'] == 'ViT':
        from timm.models.vision_transformer import VisionTransformer
        return VisionTransformer(patch_size=model['PATCH_SIZE'], **sizes)
    if 'T2T_VIT' not in os.environ:
        sys.exit('Set T2T_VIT to a checkout of yitu-opensource/T2T-ViT.')
    sys.path.insert(0, os.environ['T2T_VIT'])
    from models.t2t_vit import T2T_ViT
    return T2T_ViT(tokens_type=model['TOKEN_TYPE'], token_dim=model['TOKEN_DIM'], **sizes)


def build_transforms(recipe):
    """Return timm's transforms for training and for evaluation."""
    data, train = recipe['DATA'], recipe['TRAIN']
    whole = train['CROP'] == 'resize'
    shared = {'input_size': (3, data['IMAGE_SIZE'], data['IMAGE_SIZE']),
              'mean': tuple(data['IMAGENET_MEAN']), 'std': tuple(data['IMAGENET_STD'])}
    return timm.data.create_transform(
        is_training=True, scale=(1.0, 1.0) if whole else tuple(train['CROP_SCALE']),
        ratio=(1.0, 1.0) if whole else tuple(train['CROP_RATIO']), hflip=train['HFLIP'],
        color_jitter=train['COLOR_JITTER'] or None, auto_augment=train['AUTO_AUGMENT'] or None,
        interpolation=train['INTERPOLATION'], re_prob=train['RANDOM_ERASE_PROB'],
        re_mode=train['RANDOM_ERASE_MODE'], re_count=train['RANDOM_ERASE_COUNT'], **shared
    ), timm.data.create_transform(
        is_training=False, crop_pct=data['CROP_PCT'], interpolation=data['INTERPOLATION'],
        **shared)


def build_mixup(recipe):
    """Return timm's Mixup, or None where a recipe has neither mixup nor CutMix."""
    train = recipe['TRAIN']
    if not (train['MIXUP_ALPHA'] or train['CUTMIX_ALPHA'] or train['CUTMIX_MINMAX']):
        return None
    return timm.data.Mixup(
        train['MIXUP_ALPHA'], train['CUTMIX_ALPHA'], train['CUTMIX_MINMAX'], train['MIXUP_PROB'],
        train['MIXUP_SWITCH_PROB'], train['MIXUP_MODE'], label_smoothing=train['SMOOTHING'],
        num_classes=recipe['MODEL']['NUM_CLASSES'])


def build_optimizer(recipe, model):
    """Return timm's AdamW, with layer decay where the recipe has it."""
    train = recipe['TRAIN']
    decay = train['LAYER_DECAY']
    return timm.optim.create_optimizer_v2(
        model, 'adamw', lr=train['BASE_LR'], weight_decay=train['WEIGHT_DECAY'],
        layer_decay=None if decay == 1.0 else decay, betas=tuple(train['OPTIMIZER']['BETAS']),
        eps=train['OPTIMIZER']['EPS'])


def build_schedule(recipe, optimizer, updates_per_epoch):
    """Return (timm's cosine, counted in updates; their number)."""
    train = recipe['TRAIN']
    total = train['NUM_STEPS'] or train['NUM_EPOCHS'] * updates_per_epoch
    warmup = train['WARMUP_STEPS']
    if warmup is None:
        warmup = train['WARMUP_EPOCHS'] * updates_per_epoch
    from_start = train['LR_SCHEDULER']['FROM_START']
    return timm.scheduler.CosineLRScheduler(
        optimizer, t_initial=total if from_start else total - warmup, lr_min=train['END_LR'],
        warmup_t=warmup, warmup_lr_init=train['WARMUP_START_LR'], warmup_prefix=not from_start,
        t_in_epochs=False), total


def evaluate(model, loader):
    """Return (mean loss, accuracy in percent)."""
    model.eval()
    loss = correct = count = 0
    with torch.inference_mode():
        for images, labels in loader:
            logits = model(images)
            loss += torch.nn.functional.cross_entropy(logits, labels, reduction='sum').item()
            correct += (logits.argmax(1) == labels).sum().item()
            count += len(labels)
    return loss / count, 100 * correct / count


def load_pictures(pictures, part, transform, batch_size, **options):
    """Return a loader of {PART_images, PART_labels}."""
    return torch.utils.data.DataLoader(
        Pictures(pictures[f'{part}_images'], pictures[f'{part}_labels'], transform), batch_size,
        **options)


def build_criterion(recipe):
    """Return timm's loss for a recipe's targets."""
    if build_mixup(recipe) is not None:
        return timm.loss.SoftTargetCrossEntropy()
    return timm.loss.LabelSmoothingCrossEntropy(recipe['TRAIN']['SMOOTHING'])


def train(recipe, pictures, model, write):
    """Train a model by a recipe and report as this project does. write: (event, **values)."""
    options, batch_size = recipe['TRAIN'], recipe['DATA']['BATCH_SIZE']
    transform, eval_transform = build_transforms(recipe)
    loader = load_pictures(pictures, 'train', transform, batch_size, shuffle=True, drop_last=True)
    eval_loader = load_pictures(pictures, 'val', eval_transform, batch_size)
    mixup, criterion = build_mixup(recipe), build_criterion(recipe)
    optimizer = build_optimizer(recipe, model)
    schedule, total = build_schedule(recipe, optimizer, len(loader))
    ema = timm.utils.ModelEmaV2(model, options['MODEL_EMA_DECAY']) if options['MODEL_EMA'] else None
    update = epoch = 0
    while update < total:
        epoch += 1
        model.train()
        losses, started = [], time.perf_counter()
        for images, labels in itertools.islice(loader, total - update):
            if mixup is not None:
                images, labels = mixup(images, labels)
            rate = max(group['lr'] for group in optimizer.param_groups)
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(
                model.parameters(), options['GRAD_CLIP'] or float('inf'))
            optimizer.step()
            if ema is not None:
                ema.update(model)
            update += 1
            schedule.step_update(update)
            losses.append(loss.item())
            if update % recipe['REPORT_FREQ'] == 0:
                speed = len(losses) * batch_size / (time.perf_counter() - started)
                write('train_step', update=update, epoch=epoch, lr=rate, grad_norm=norm.item(),
                      loss=float(np.mean(losses[-recipe['REPORT_FREQ']:])),
                      images_per_second=speed)
        write('train_epoch', update=update, epoch=epoch, loss=float(np.mean(losses)), lr=rate)
        if epoch % recipe['VALIDATE_FREQ'] and update < total:
            continue
        for kind, network in (('model', model), ('ema', ema and ema.module)):
            if network is not None:
                mean_loss, acc1 = evaluate(network, eval_loader)
                write('eval', update=update, epoch=epoch, weights=kind, loss=mean_loss, acc1=acc1)


def main():
    recipe_path, pictures_path, seed, metrics = sys.argv[1:]
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS') or os.cpu_count()))
    with open(recipe_path, encoding='utf-8') as file:
        recipe = json.load(file)
    check_recipe(recipe)
    with open(metrics, 'w', encoding='utf-8') as file:
        def write(event, **values):
            file.write(json.dumps({'event': event, **values}) + '\n')
            file.flush()
        timm.utils.random_seed(int(seed), 0)
        train(recipe, dict(np.load(pictures_path)), build_model(recipe), write)


if __name__ == '__main__':
    main()
