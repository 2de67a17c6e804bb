"""Names of any bytes: trained, continued, evaluated, exported; they command no terminal."""

import contextlib
import csv
import io
import os
import re
from pathlib import Path

import pytest

from common.checkpoints.content import read_checkpoint
from common.data.classes import read_class_names
from common.data.preprocessing import Preprocessing
from common.deploy import export, predict, visualize
from common.deploy.pictures import Picture
from common.deploy.preprocessing import load_preprocessing
from common.deploy.trained import read_record
from common.run import finetune
from common.run.launch import run_single
from common.tools import check_data, convert_weights
from tests.support.colours import make_colours
from tests.support.data_folders import make_folders
from ViT.project import PROJECT

CLASSES = [os.fsdecode(b'caf\xe9'), 'katze', '苹果']


def run(*flags):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = run_single(PROJECT, [
            '-cfg=configs/vit_digits.yaml', '-dataset=imagefolder', '-num_classes=3',
            '-batch_size=4', '-num_workers=0', '-image_size=16', *flags])
    assert code == 0, errors.getvalue()


@pytest.mark.parametrize('folder', ['here', os.fsdecode(b'l\xe0')])
def test_names_that_are_not_utf8(tmp_path, folder):
    root = tmp_path / folder
    try:
        data = make_folders(root / 'images', CLASSES)
    except OSError:
        pytest.skip('this file system takes UTF-8 only')
    options = ('MODEL.DEPTH', '1', 'MODEL.EMBED_DIM', '16', 'MODEL.NUM_HEADS', '2')
    for epochs in ('1', '2'):
        run(f'-data_path={data}', f'-output={root / "runs"}', '-resume=auto', '-opts', *options,
            'TRAIN.NUM_EPOCHS', epochs, 'TRAIN.WARMUP_EPOCHS', '0')
    run_folder, = (root / 'runs').glob('train-*')
    checkpoint = read_checkpoint(str(run_folder / 'last.pdparams'))
    assert (checkpoint['epoch'], checkpoint['class_names']) == (2, CLASSES)
    assert b'caf\xe9' in (run_folder / 'per_class.csv').read_bytes()
    run(f'-data_path={data}', f'-output={root / "evaluated"}', '-eval',
        f'-pretrained={run_folder / "best"}', '-opts', *options)
    assert list(Path(root / 'evaluated').rglob('metrics.jsonl'))


# Names of strangers: blanks at their ends, commands to terminals, line ends of every kind, bytes
# that are not UTF-8, quotes.
NAMES = [' a', 'a', 'a ', 'esc\x1b[31m\x9b2J', 'lf\nerror: forged', 'caf\udce9', 'para\u2029',
         '"q"', '\u202erev', '-rf']
HOSTILE = dict(zip(NAMES, ['red', 'yellow', 'blue', 'green'] * 3))
COMMANDS = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]|^error: forged',
                      re.MULTILINE)


class Watch:
    """Runs scripts; what they print and log holds no command to a terminal."""

    def __init__(self, capsys, root):
        self.capsys, self.root = capsys, root

    def __call__(self, main, *arguments, code=0):
        self.capsys.readouterr()
        assert main(PROJECT, [*map(str, arguments)]) == code, self.capsys.readouterr()
        out, err = self.capsys.readouterr()
        logs = [path.read_bytes().decode() for path in self.root.rglob('log.txt')]
        for text in (out, err, *logs):
            found = COMMANDS.search(text)
            assert found is None, text[max(0, found.start() - 200):found.end() + 20]
        return out + err


@pytest.mark.runs
def test_every_name_goes_the_whole_way_and_commands_no_terminal(tmp_path, capsys):
    watch = Watch(capsys, tmp_path)
    data = Path(make_colours(tmp_path / 'da\x1bta', HOSTILE, each=2))
    small = ['-cfg=configs/vit_digits.yaml', '-device=cpu', '-num_workers=0', '-image_size=16',
             '-opts', 'MODEL.DEPTH', '1', 'MODEL.EMBED_DIM', '16', 'MODEL.NUM_HEADS', '2',
             'TRAIN.WARMUP_EPOCHS', '0', 'DATA.BATCH_SIZE', '4', 'TRAIN.NUM_STEPS', '3']
    names = sorted(HOSTILE)
    assert '\\x1b[31m\\x9b2J' in watch(check_data.main, '-dataset=imagefolder', '-num_workers=1',
                                       f'-data_path={data}')
    said = watch(finetune.main, data, f'-output={tmp_path}/r\nuns', *small)
    assert "$'" in said and 'predict.py' in said            # the command still works in bash
    run_folder, = (tmp_path / 'r\nuns').glob('train-*')
    best = run_folder / 'best'
    assert read_checkpoint(f'{best}.pdparams')['class_names'] == names
    with open(run_folder / 'pictures.csv', encoding='utf-8', errors='surrogateescape',
              newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * len(names)
    for row in rows:
        path = data / row['path']
        assert path.is_file() and path.parent.name == names[int(row['label'])]
    for name in ('confusion.png', 'confusion.csv', 'mistakes.csv', 'augmented.png'):
        assert (run_folder / name).exists(), name
    flags = ['-device=cpu', '-num_workers=0']
    out = f'-output={tmp_path}/evaluated'
    given = [f'-cfg={run_folder}/config.yaml', f'-pretrained={best}']
    watch(run_single, *given, *flags, '-eval', out)
    watch(run_single, *given, *flags, '-eval', out, '-dataset=imagefolder', f'-data_path={data}',
          '-opts', 'DATA.TABLE', '', 'DATA.LABELS', '')
    exported = tmp_path / 'exported'
    watch(export.main, f'-pretrained={best}', f'-output={exported}')
    assert load_preprocessing(str(exported)).class_names == names
    assert read_class_names(exported / 'labels.txt') == names
    theirs = tmp_path / 'theirs/model.safetensors'
    watch(convert_weights.main, f'{best}.pdparams', '-to', 'huggingface', '-o', theirs)
    assert read_record(str(theirs), PROJECT)['class_names'] == names
    picture = data / rows[0]['path']
    for source in (f'-pretrained={best}', f'-model={exported}'):
        device = ['-device=cpu'] if 'pre' in source else ['-engine=plain']
        watch(predict.main, picture, source, *device, f'-save_dir={tmp_path}/drawn{len(source)}')
        for form in ('csv', 'jsonl'):
            watch(predict.main, picture, source, *device, f'-output={tmp_path}/x.{form}')
    with open(tmp_path / 'x.csv', encoding='utf-8', errors='surrogateescape', newline='') as file:
        assert {row['name'] for row in csv.DictReader(file)} < set(names)
    watch(visualize.main, picture, f'-pretrained={best}', '-device=cpu', f'-output={tmp_path}/seen')
    (data / 'val/esc\x1b[31m\x9b2J').rename(data / 'val/other\x1b[2J')
    said = watch(run_single, *given, *flags, out, '-dataset=imagefolder', f'-data_path={data}',
                 '-opts', 'DATA.TABLE', '', 'DATA.LABELS', '', code=2)
    assert 'different class folders' in said and 'only in val: other\\x1b[2J' in said


@pytest.mark.parametrize('form', ['table', 'csv', 'jsonl'])
def test_names_command_no_terminal_in_any_format(tmp_path, form):
    terminal = io.TextIOWrapper(io.BytesIO(), 'utf-8')
    terminal.isatty = lambda: True
    preprocessing = Preprocessing(8, 1.0, 'bicubic', [0.5] * 3, [0.5] * 3, list(HOSTILE))
    with contextlib.redirect_stdout(terminal), predict.open_output(None) as file:
        writer = predict.WRITERS[form](file, preprocessing)
        picture = Picture('p\x1b[2J\x9b.png', 'p.png')
        reading = predict.Reading(picture, None, None)
        writer.write(reading, [(index, 0.1) for index in range(len(HOSTILE))])
        writer.write_error(reading._replace(error='p\x1b[2J'))
    terminal.flush()
    with predict.open_output(str(tmp_path / 'out')) as file:        # of JSON: no file's name
        predict.WRITERS[form](file, preprocessing.replace_names(['\ud800', 'caf\udce9'])).write(
            reading, [(0, 0.5), (1, 0.5)])
    assert {b'\\ud800', b'caf\xe9'} <= set(re.findall(
        rb'caf\xe9|\\ud800', (tmp_path / 'out').read_bytes())) or form == 'table'
    shown = terminal.buffer.getvalue().decode()
    assert COMMANDS.search(shown.replace('\nerror: forged', '')) is None
