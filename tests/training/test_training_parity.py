"""The training loop follows two reference runs: timm's ViT trained in PyTorch on the digits."""

import pytest

from tests.support import reference_training as reference


@pytest.fixture(scope='module', params=list(reference.RUNS))
def runs(request):
    return reference.train_as_reference(request.param)


def test_losses(runs):
    reference.check_losses(*runs)


def test_learning_rates(runs):
    reference.check_learning_rates(*runs)


def test_gradient_norms(runs):
    reference.check_gradient_norms(*runs)


def test_final_weights_and_logits(runs):
    reference.check_final_weights_and_logits(*runs)


def test_averaged_weights(runs):
    reference.check_averaged_weights(*runs)
