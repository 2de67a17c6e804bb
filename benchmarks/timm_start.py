"""timm up to the first update, from its library: python timm_start.py FOLDER

The steps of timm's train.py for a ViT-Ti/16 on the CPU, in its order, and nothing else: data set
and loader with its transforms, model, AdamW, cosine schedule, one update of 8 images. Prints
"first update". A stand-in for train.py, which timm's packages do not hold.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))

from benchmarks.torch_setup import prepare_torchvision

prepare_torchvision()

import timm  # noqa: E402
import timm.data  # noqa: E402
import timm.loss  # noqa: E402
import timm.optim  # noqa: E402
import timm.scheduler  # noqa: E402
import timm.utils  # noqa: E402
import torch  # noqa: E402


def main():
    folder = sys.argv[1]
    timm.utils.random_seed(42, 0)
    model = timm.create_model('vit_tiny_patch16_224', num_classes=2)
    settings = timm.data.resolve_data_config({}, model=model)
    optimizer = timm.optim.create_optimizer_v2(model, opt='adamw', lr=1e-3, weight_decay=0.05)
    loaders = [timm.data.create_loader(
        timm.data.create_dataset('', folder, split=split, is_training=split == 'train',
                                 batch_size=8),
        settings['input_size'], 8, is_training=split == 'train', num_workers=2,
        interpolation=settings['interpolation'], mean=settings['mean'], std=settings['std'],
        crop_pct=settings['crop_pct'], device=torch.device('cpu'), use_prefetcher=True)
        for split in ('train', 'val')]
    scheduler, _ = timm.scheduler.create_scheduler_v2(optimizer, num_epochs=300)
    loss_function = torch.nn.CrossEntropyLoss()
    model.train()
    scheduler.step(0)
    images, labels = next(iter(loaders[0]))
    loss = loss_function(model(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f'first update, loss {loss.item():.3f}', flush=True)


if __name__ == '__main__':
    main()
