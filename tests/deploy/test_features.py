"""extract_features.py: what the classifier reads, as arrays, and the two probes of it."""

import numpy as np
import paddle
import pytest

from common.deploy import features
from common.deploy.features import (
    build_extractor,
    classify_by_neighbours,
    classify_by_regression,
    fit_regression,
)
from tests.support.picture_folders import add_odd_files, make_digit_folders
from tests.support.trained_digits import fixture_path, load_fixture


@pytest.mark.parametrize('name, head', [('vit', 'classifier'), ('t2t', 'head')])
def test_features_are_what_the_classifier_reads(name, head):
    project, trained = load_fixture(name)
    size = trained.preprocessing.image_size
    images = np.random.default_rng(0).standard_normal([3, 3, size, size]).astype('float32')
    found = build_extractor(project, trained.model)(images)
    linear = getattr(trained.model, head)
    with paddle.no_grad():
        logits = trained.model(paddle.to_tensor(images)).numpy()
    np.testing.assert_allclose(found @ linear.weight.numpy() + linear.bias.numpy(), logits,
                               rtol=0, atol=1e-4)
    tokens = build_extractor(project, trained.model, tokens=True)(images)
    rows, columns = trained.model.grid_size
    assert tokens.shape == (3, trained.model.num_prefix_tokens + rows * columns, found.shape[1])


def test_a_folder_of_classes(tmp_path, capsys):
    folder = make_digit_folders(tmp_path / 'data', {0: 20, 1: 20, 7: 20})
    add_odd_files(f'{folder}/zero')
    output = tmp_path / 'features.npz'
    project, _ = load_fixture('vit')
    assert features.main(project, [folder, f'-pretrained={fixture_path("vit")}', '-device=cpu',
                                   f'-output={output}', '-batch_size=7']) == 0
    said = capsys.readouterr().out
    with np.load(output) as arrays:
        assert list(arrays['class_names']) == ['one', 'seven', 'zero']
        assert arrays['features'].shape[0] == len(arrays['names']) == len(arrays['labels']) == 60
        assert all(name.startswith(arrays['class_names'][label]) for name, label in
                   zip(arrays['names'], arrays['labels']))
    # The backbone was trained on digits.
    assert '5 nearest neighbours (cosine): 100.0 % of 12 pictures held back, 48 to learn' in said
    assert 'Logistic regression: 100.0 %' in said and 'Left out: 5 files' in said


def test_pictures_without_classes_and_tokens(tmp_path, capsys):
    folder = make_digit_folders(tmp_path / 'data', {0: 3})
    output = tmp_path / 'tokens.npz'
    project, trained = load_fixture('t2t')
    code = features.main(project, [f'{folder}/zero/0.png', f'{folder}/zero/nothing.png',
                                   f'-pretrained={fixture_path("t2t")}', '-device=cpu', '-tokens',
                                   f'-output={output}'])
    assert code == 1 and 'nothing.png' in capsys.readouterr().out
    with np.load(output) as arrays:
        assert set(arrays) == {'names', 'features'} and arrays['features'].ndim == 3


@pytest.mark.parametrize('more, said', [
    (['-output=a.txt'], '.npz'), (['-output=/no/such/a.npz'], 'no such folder'),
    (['-batch_size=0'], '-batch_size')])
def test_wrong_input(more, said, tmp_path, capsys):
    project, _ = load_fixture('vit')
    assert features.main(project, [str(tmp_path), f'-pretrained={fixture_path("vit")}',
                                   *more]) == 2
    assert said in capsys.readouterr().err


def make_blobs(count, seed):
    """Return (features [N, 6], labels) of three classes around centres at distance 4."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    return 4 * np.eye(6)[labels] + rng.standard_normal([count, 6]), labels


def test_probes_find_classes_apart_and_no_others():
    train, labels = make_blobs(300, 0)
    val, truth = make_blobs(200, 1)
    for classify in (classify_by_neighbours, classify_by_regression):
        assert (classify(train, labels, val) == truth).mean() > 0.93
        noise = np.random.default_rng(2).standard_normal([200, 6])
        assert 0.2 < (classify(np.random.default_rng(3).standard_normal([300, 6]), labels, noise)
                      == truth).mean() < 0.47


def test_the_regression_is_at_its_minimum():
    """Where the gradient of its loss is zero, by differences of the loss itself."""
    inputs, labels = make_blobs(80, 0)
    decay = 0.01
    weights = fit_regression(inputs, labels, 3, decay)

    def measure_loss(weights):
        logits = inputs @ weights[:-1] + weights[-1]
        shares = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return -shares[np.arange(80), labels].mean() + decay / 2 * (weights ** 2).sum()

    best = measure_loss(weights)
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert measure_loss(weights + 0.01 * rng.standard_normal(weights.shape)) > best
