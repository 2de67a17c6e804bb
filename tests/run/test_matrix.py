"""Every script over every kind of class set, record, path and file: right, or refused with reasons.

Nothing ends in a traceback, and what differs from the record is never silent.
"""

import os
import shutil
from pathlib import Path

import pytest

from common.checkpoints.content import read_checkpoint
from common.deploy import export, predict, visualize
from common.deploy.demo import analyse
from common.deploy.trained import load_trained
from common.run.launch import run_single
from common.tools import check_data, plot
from tests.support.colours import FRUIT, list_arguments, make_colours
from ViT.project import PROJECT

LATIN = os.fsdecode(b'caf\xe9')         # a name that is not UTF-8


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """Return (data, run folder) of a run that is right on every picture."""
    root = tmp_path_factory.mktemp('made')
    data = make_colours(root / 'data', each=8)
    assert run_single(PROJECT, ['-device=cpu', f'-data_path={data}', f'-output={root}/runs',
                                *list_arguments(TRAIN__NUM_EPOCHS=6)]) == 0
    return data, next((root / 'runs').glob('train-*'))


class Script:
    """Runs a script on weights and data; remembers exit code and what was printed."""

    def __init__(self, name, folder, capsys):
        self.name, self.folder, self.capsys = name, folder, capsys
        self.code, self.text = None, ''
        self.table = Path(folder) / 'table.csv'         # of predict.py

    def __call__(self, source, data, **options):
        self.capsys.readouterr()
        self.code = getattr(self, f'_{self.name}')(str(source), str(data), options)
        out, err = self.capsys.readouterr()
        self.text = out + err
        if self.name == 'predict' and self.table.exists():
            self.text += self.table.read_text(encoding='utf-8', errors='surrogateescape')
        assert 'Traceback' not in self.text, self.text
        assert self.code in (0, 1, 2), self.text
        if self.code == 2:
            lines = err.strip().splitlines()
            assert 'error: ' in err and len(lines) <= 6, err
        return self

    def _main(self, data, options, *flags):
        return run_single(PROJECT, ['-device=cpu', f'-data_path={data}', f'-output={self.folder}',
                                    *flags, *list_arguments(**{'TRAIN__NUM_EPOCHS': 1, **options})])

    def _train(self, source, data, options):
        return self._main(data, options)

    def _resume(self, source, data, options):
        return self._main(data, {'TRAIN__NUM_EPOCHS': 7, **options}, f'-resume={source}')

    def _eval(self, source, data, options):
        return self._main(data, options, '-eval', f'-pretrained={source}')

    def _pretrained(self, source, data, options):
        return self._main(data, options, f'-pretrained={source}')

    def _opts(self, options):
        return ['-opts', *(str(item) for key, value in options.items()
                           for item in (key.replace('__', '.'), value))] if options else []

    def _predict(self, source, data, options):
        os.makedirs(self.folder, exist_ok=True)
        return predict.main(PROJECT, [os.path.join(data, 'val'), f'-pretrained={source}',
                                      '-device=cpu', '-format=csv', '-topk=1',
                                      f'-output={self.table}',
                                      *self._opts(options)])

    def _export(self, source, data, options):
        return export.main(PROJECT, [f'-pretrained={source}', f'-output={self.folder}/exported',
                                     *self._opts(options)])

    def _visualize(self, source, data, options):
        first = sorted(path for path in Path(data, 'val').rglob('*.png'))[0]
        return visualize.main(PROJECT, [str(first), f'-pretrained={source}', '-device=cpu',
                                        f'-output={self.folder}', *self._opts(options)])

    def _check_data(self, source, data, options):
        return check_data.main(PROJECT, ['-dataset=imagefolder', f'-data_path={data}',
                                         '-num_classes=3', '-num_workers=1'])

    def _plot(self, source, data, options):
        return plot.main([source, '-o', str(self.folder / 'curves.png')])


WITH_DATA = ('train', 'resume', 'eval', 'pretrained')
WITH_WEIGHTS = ('resume', 'eval', 'pretrained', 'predict', 'export', 'visualize')


# Classes

CLASSES = {
    'renamed': {'zebra': 'red', 'banana': 'yellow', 'cherry': 'blue'},
    'reordered': FRUIT,                                     # by a labels file
    'fewer': {'apple': 'red', 'banana': 'yellow'},
    'more': {**FRUIT, 'kiwi': 'green'},
}
# Exit code, and a text that says why or what was done.
EXPECTED = {
    ('train', 'renamed'): (0, ''), ('train', 'reordered'): (0, ''),
    ('train', 'fewer'): (2, 'fewer than the model has, 3. Use -num_classes=2'),
    ('train', 'more'): (2, 'more than the model has, 3'),
    ('resume', 'renamed'): (2, 'only in the data: zebra; only in the checkpoint: apple'),
    ('resume', 'reordered'): (0, 'matched by name'),
    ('resume', 'fewer'): (2, 'only in the checkpoint: cherry'),
    ('resume', 'more'): (2, 'more than the model has, 3'),
    ('eval', 'renamed'): (2, 'only in the data: zebra; only in the checkpoint: apple'),
    ('eval', 'reordered'): (0, 'acc1 100.00'),
    ('eval', 'fewer'): (0, 'acc1 100.00'),
    ('eval', 'more'): (2, 'more than the model has, 3'),
    ('pretrained', 'renamed'): (0, 'other classes (only in the data: zebra'),
    ('pretrained', 'reordered'): (0, 'matched by name'),
    ('pretrained', 'fewer'): (0, 'has 2 of the 3 classes'),
    ('pretrained', 'more'): (2, 'more than the model has, 3'),
    ('check_data', 'more'): (2, 'more than the model has, 3'),
    ('check_data', 'renamed'): (0, 'zebra'), ('check_data', 'fewer'): (0, 'No problem'),
    ('check_data', 'reordered'): (0, 'No problem'),
}


@pytest.mark.parametrize('kind', CLASSES)
@pytest.mark.parametrize('name', (*WITH_DATA, 'check_data'))
def test_classes(name, kind, made, tmp_path, capsys):
    data = make_colours(tmp_path / 'data', CLASSES[kind], each=4)
    (tmp_path / 'labels.txt').write_text('cherry\napple\nbanana\n')
    options = {'DATA__LABELS': tmp_path / 'labels.txt'} if kind == 'reordered' else {}
    source = made[1] if name == 'resume' else made[1] / 'best'
    script = Script(name, tmp_path / 'runs', capsys)(source, data, **options)
    code, said = EXPECTED[name, kind]
    assert script.code == code and said in script.text, script.text


@pytest.mark.parametrize('name', ['predict', 'export', 'visualize'])
@pytest.mark.parametrize('kind', ['reordered', 'renamed', 'fewer', 'more', 'mixed'])
def test_labels_of_what_is_deployed(name, kind, made, tmp_path, capsys):
    names = {'reordered': ['cherry', 'apple', 'banana'], 'renamed': ['red', 'yellow', 'blue'],
             'fewer': ['apple', 'banana'], 'more': ['a', 'b', 'c', 'd'],
             'mixed': ['banana', 'apple', 'blue']}[kind]
    (tmp_path / 'labels.txt').write_text('\n'.join(names))
    script = Script(name, tmp_path, capsys)(
        made[1] / 'best', made[0], DATA__LABELS=tmp_path / 'labels.txt')
    assert script.code == (0 if kind in ('reordered', 'renamed') else 2), script.text
    if name == 'predict' and script.code == 0:
        rows = [line.split(',') for line in script.text.splitlines() if line.startswith(made[0])]
        shown = dict(zip(FRUIT, FRUIT)) if kind == 'reordered' else FRUIT
        assert len(rows) == 24
        assert all(row[3] == shown[row[0].split('/')[-2]] for row in rows)


# Options of the model

@pytest.mark.parametrize(('key', 'value', 'names'), [
    ('MODEL__NUM_HEADS', 4, ('2', '4')), ('MODEL__POOL', 'avg', ('token', 'avg')),
    ('DATA__IMAGENET_MEAN', '[0.1,0.1,0.1]', ('[0.5, 0.5, 0.5]', '[0.1, 0.1, 0.1]'))])
@pytest.mark.parametrize('name', WITH_WEIGHTS)
def test_options_that_contradict_the_record(name, key, value, names, made, tmp_path, capsys,
                                            caplog):
    source = made[1] if name == 'resume' else made[1] / 'best'
    with caplog.at_level('INFO', 'common'):
        script = Script(name, tmp_path, capsys)(source, made[0], **{key: value})
    text = script.text + caplog.text
    assert script.code == (0 if key.startswith('DATA') and name != 'resume' else 2), text
    assert all(side in text for side in names), text


@pytest.mark.parametrize('name', WITH_WEIGHTS)
def test_weights_without_a_record(name, made, tmp_path, capsys):
    import paddle
    path = tmp_path / 'bare.pdparams'
    paddle.save(read_checkpoint(str(made[1] / 'best.pdparams'))['model'], str(path))
    script = Script(name, tmp_path, capsys)(path, made[0], **(
        {} if name in WITH_DATA else {'MODEL__EMBED_DIM': 32, 'MODEL__DEPTH': 1,
                                      'MODEL__NUM_HEADS': 2, 'MODEL__NUM_CLASSES': 3,
                                      'DATA__IMAGE_SIZE': 32}))
    assert script.code == (2 if name == 'resume' else 0), script.text
    if name == 'predict':
        rows = [line.split(',') for line in script.text.splitlines() if line.startswith(made[0])]
        assert [row[3] for row in rows] == ['0'] * 8 + ['1'] * 8 + ['2'] * 8


# Paths

def list_sources(folder, tmp_path, monkeypatch):
    """Return {kind: how the run is named}."""
    spaced, letters, bytes_ = (tmp_path / name for name in ('a run, with blanks', '运行 é', LATIN))
    for place in (spaced, letters, bytes_):
        shutil.copytree(folder, place / 'run')
    monkeypatch.setenv('HOME', str(folder.parent))
    monkeypatch.chdir(folder.parent)
    link = tmp_path / 'link'
    link.symlink_to(folder)
    return {'run folder': folder, 'file': folder / 'best.pdparams', 'best': folder / 'best',
            'last': folder / 'last', 'home': f'~/{folder.name}/best', 'relative': folder.name,
            'blanks': spaced / 'run', 'letters': letters / 'run/best', 'bytes': bytes_ / 'run/last',
            'link': link, 'slash': f'{folder}/'}


@pytest.mark.parametrize('name', (*WITH_WEIGHTS, 'plot'))
def test_paths(name, made, tmp_path, capsys, monkeypatch):
    if name == 'plot':
        pytest.importorskip('matplotlib')
    for kind, source in list_sources(made[1], tmp_path, monkeypatch).items():
        if name == 'plot' and kind in ('file', 'best', 'last', 'home', 'letters', 'bytes'):
            continue                    # it takes run folders
        if name not in ('eval', 'predict', 'plot') and kind not in ('run folder', 'home', 'bytes'):
            continue                    # they find weights as these do
        script = Script(name, tmp_path / 'out' / kind, capsys)
        os.makedirs(script.folder)
        script(source, made[0])
        assert script.code == 0, (kind, script.text)
    assert Script(name, tmp_path, capsys)(tmp_path / 'nowhere', made[0]).code == 2


def test_a_demo_takes_what_the_others_take(made, tmp_path):
    from types import SimpleNamespace

    from common.data.images import read_image
    flags = SimpleNamespace(cfg=None, pretrained=str(made[1]), image_size=None, num_classes=None,
                            device='cpu', labels=None, opts=[])
    trained = load_trained(PROJECT, flags)
    for name in FRUIT:
        names, _ = analyse(trained, read_image(f'{made[0]}/val/{name}/0.png'), 'rollout', 1)
        assert max(names, key=names.get) == name


# Files

@pytest.mark.parametrize('name', (*WITH_DATA, 'predict', 'check_data'))
def test_class_folders_whose_names_are_not_utf_8(name, made, tmp_path, capsys):
    classes = {LATIN: 'red', '苹果 1': 'yellow', 'a\nb': 'blue'}
    data = make_colours(tmp_path / 'data', classes, each=8)
    assert Script('train', tmp_path / 'runs', capsys)('', data, TRAIN__NUM_EPOCHS=6).code == 0
    folder = next((tmp_path / 'runs').glob('train-*'))
    assert set(read_checkpoint(str(folder / 'last.pdparams'))['class_names']) == set(classes)
    source = folder if name == 'resume' else folder / 'best'
    script = Script(name, tmp_path / 'out', capsys)(source, data)
    assert script.code == 0, script.text
    if name == 'eval':
        assert 'acc1 100.00' in script.text


@pytest.mark.parametrize('name', (*WITH_DATA, 'predict', 'check_data'))
def test_hidden_and_linked_folders_are_read_alike(name, made, tmp_path, capsys):
    shutil.copytree(made[0], tmp_path / 'data')
    apple = tmp_path / 'data/val/apple'
    (apple / '.ipynb_checkpoints').mkdir()
    (apple / '.ipynb_checkpoints/0.png').write_bytes(b'no picture')
    (apple / '._0.png').write_bytes(b'no picture')
    shutil.move(tmp_path / 'data/val/cherry', tmp_path / 'elsewhere')
    (tmp_path / 'data/val/cherry').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'elsewhere/again').symlink_to('.')
    for part in ('train', 'val'):
        (tmp_path / f'data/{part}/__MACOSX').mkdir()
    source = made[1] if name == 'resume' else made[1] / 'best'
    script = Script(name, tmp_path / 'out', capsys)(source, tmp_path / 'data')
    assert script.code == 0, script.text
    said = {'predict': ('cherry', 8), 'check_data': ('24 validation images', 1)}
    text, count = said.get(name, ('24 validation images', 1))
    rows = [line for line in script.text.splitlines() if text in line.rsplit('/', 1)[0]]
    assert len(rows) >= count


@pytest.mark.parametrize('name', (*WITH_DATA, 'predict', 'check_data'))
def test_a_picture_that_cannot_be_read_is_named(name, made, tmp_path, capsys):
    shutil.copytree(made[0], tmp_path / 'data')
    (tmp_path / 'data/val/banana/3.png').write_bytes(b'')
    source = made[1] if name == 'resume' else made[1] / 'best'
    script = Script(name, tmp_path / 'out', capsys)(source, tmp_path / 'data')
    assert 'val/banana/3.png: the file is empty' in script.text
    assert script.code == (1 if name in ('predict', 'check_data') else 2), script.text
    if name in WITH_DATA:
        script(source, tmp_path / 'data', DATA__SKIP_CORRUPT=True)
        assert script.code == 0 and '1 unreadable image' in script.text, script.text
