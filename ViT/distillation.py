"""The loss of a distilled ViT: DeiT's two heads, with or without a teacher.

DeiT (Touvron et al., 2020, Sec. 4): the class head learns the labels, the head of the distillation
token what the teacher says, as labels (hard) or as probabilities (soft).
"""

import os
from collections.abc import Callable
from types import SimpleNamespace

import paddle
from paddle.nn import functional as F
from yacs.config import CfgNode

from common.errors import UserError
from common.project import FILE_NAME, ComputeLoss, build_default_loss, load_project
from common.training.losses import compute_log_softmax


def build_loss(config: CfgNode, criterion: Callable) -> ComputeLoss:
    """Return compute_loss(model, images, targets) for MODEL.DISTILLED and TRAIN.TEACHER.

    criterion: of logits and targets. Without a teacher both heads learn the labels.
    """
    if not config.MODEL.DISTILLED:
        return build_default_loss(config, criterion)
    train = config.TRAIN
    teacher = load_teacher(config) if train.TEACHER else None

    def compute_loss(model, images, targets):
        logits, distilled = model(images)
        if teacher is None:
            return (criterion(logits, targets) + criterion(distilled, targets)) / 2
        with paddle.no_grad():
            wanted = teacher(images)
        taught = hard_loss(distilled, wanted) if train.DISTILLATION == 'hard' else \
            soft_loss(distilled, wanted, train.DISTILLATION_TEMPERATURE)
        share = train.DISTILLATION_SHARE
        return (1 - share) * criterion(logits, targets) + share * taught
    return compute_loss


def hard_loss(logits: paddle.Tensor, teacher_logits: paddle.Tensor) -> paddle.Tensor:
    """Cross entropy of logits [B, C] with the teacher's best class (DeiT, Eq. 3)."""
    best = F.one_hot(teacher_logits.argmax(axis=-1), logits.shape[-1])
    return -(best * compute_log_softmax(logits)).sum(axis=-1).mean()


def soft_loss(logits: paddle.Tensor, teacher_logits: paddle.Tensor,
              temperature: float) -> paddle.Tensor:
    """Divergence from the teacher's probabilities, softened by the temperature (DeiT, Eq. 2).

    As in DeiT's code it is the mean over samples and classes, not the sum over the classes.
    """
    log_probs = compute_log_softmax(logits / temperature)
    wanted = compute_log_softmax(teacher_logits / temperature)
    return temperature ** 2 * (wanted.exp() * (wanted - log_probs)).mean()


def load_teacher(config: CfgNode) -> paddle.nn.Layer:
    """Return the model of the checkpoint TRAIN.TEACHER, in eval mode, without gradients.

    The teacher sees the student's batches. Raises UserError for other classes, channels, sizes
    or another normalisation than the student's.
    """
    from common.deploy.trained import load_trained  # here: it takes seconds
    project = load_project(os.path.join(os.path.dirname(os.path.abspath(__file__)), FILE_NAME))
    source = config.TRAIN.TEACHER
    trained = load_trained(project, SimpleNamespace(
        pretrained=source, cfg=config.TRAIN.TEACHER_CFG or None, image_size=None, labels=None,
        num_classes=config.MODEL.NUM_CLASSES, device=config.DEVICE, opts=[]))
    for key in ('IMAGE_SIZE', 'IMAGE_CHANNELS', 'IMAGENET_MEAN', 'IMAGENET_STD'):
        wanted, found = config.DATA[key], trained.config.DATA[key]
        if wanted != found:
            raise UserError(f'The teacher {source} has DATA.{key} {found}, and this run {wanted}: '
                            'both see the same batches. Set the run\'s to the teacher\'s.')
    for parameter in trained.model.parameters():
        parameter.stop_gradient = True
    return trained.model
