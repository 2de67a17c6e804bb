"""ViT and T2T-ViT in Python, from any folder or notebook after `pip install -e .`:

    from vit_paddle import Classifier, create_model, list_models

    Classifier('output/train-20260101-10-00-00/best')('cat.jpg')
    create_model('vit_base_patch16_224', pretrained=True, num_classes=5)
    list_models('t2t*')
"""

from common.machine.environment import tune_cpu

tune_cpu()      # before Paddle is imported

from vit_paddle.models import Classifier, Prediction, create_model, list_models

__all__ = ['Classifier', 'Prediction', 'create_model', 'list_models']
