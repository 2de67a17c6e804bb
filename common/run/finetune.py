"""finetune.py: from a folder of pictures to a model in use, in one command.

A thin script over the same recipe, config and loop as the main scripts: the run folder's
config.yaml runs again with -cfg.
"""

import argparse
import glob
import logging
import os
import sys
from typing import Any

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from common.cli import FlagParser, add_option_flag, build_config, find_config, list_flags
from common.config import get_value, list_unset
from common.data.classes import write_class_names
from common.data.images import ImageError, show_path
from common.data.survey import Survey, count_reasons, survey_folder, write_rows, write_table
from common.deploy.drawing import Panel, make_figure
from common.errors import RunError, UserError, report_errors
from common.option import list_options
from common.project import Project
from common.run.job import evaluate_checkpoint, run
from common.run.log import discard_run_folder, make_run_folder, start_logging
from common.run.side_matter import go_on
from common.terminal import quote_words
from common.training.confusion import describe_certainty
from common.training.recipe import WIDE, choose_recipe, schedule_updates
from common.weights.registry import find_in_run
from common.yaml_text import read_yaml

VAL_FRACTION = 0.2
TABLE, LABELS, LEFT_OUT = 'pictures.csv', 'labels.txt', 'left_out.csv'
SHOWN = 8                       # classes, and files left out, that are listed
FEW_PICTURES = 10               # of a class, below which what it looks like is hardly learnt
SHEET_COLUMNS, SHEET_ROWS, PANEL = 6, 4, 160
# Survey.measure_mirroring from which mirror images teach what there is not.
ONE_WAY = 1.2
# Options that the folder and this script decide.
TAKEN = ('DATA.DATASET', 'DATA.DATA_PATH', 'DATA.TABLE', 'DATA.LABELS', 'DATA.VAL_FRACTION',
         'MODEL.NUM_CLASSES', 'TRAIN.LAST_EPOCH', 'EVAL', 'NPROCS')

EXAMPLES = """examples:
  python finetune.py /my/pictures
  python finetune.py /my/pictures -pretrained=timm/{model}
  python finetune.py /my/pictures -pretrained=./model.safetensors -image_size=384 \\
      -opts TRAIN.NUM_STEPS 2000 TRAIN.HFLIP 0

The folder holds one folder a class, or train/ and val/ with these. Any option of config.py can be
set with -opts KEY VALUE; what is set wins over what would be chosen. To go on with a run that was
stopped: the same command with -resume=auto, or -resume=RUN, its folder.
"""

logger = logging.getLogger(__name__)


def main(project: Project, argv: list[str] | None = None) -> int:
    """Train a classifier of a folder's pictures; return the exit code.

    argv: arguments without the script's name; None: sys.argv's.
    """
    return report_errors(_run, project, sys.argv[1:] if argv is None else argv)


def _run(project, argv):
    arguments = _parse(project, argv)
    start_logging()
    flags = {key: getattr(arguments, option.flags[0]) for key, option in _list_flags(project)
             if getattr(arguments, option.flags[0]) not in (None, False)}
    wrong = [key for key in arguments.opts[::2] if key in TAKEN]
    if wrong:
        raise UserError(f'finetune.py decides {wrong[0]} by the folder. The main scripts take it.')
    path = find_config(arguments.cfg, project.folder) if arguments.cfg else None
    given = project.get_config(path, flags=flags, opts=arguments.opts)  # before the pictures
    survey = survey_folder(arguments.folder, arguments.val_fraction)
    folder = find_stopped(given.MODEL.RESUME, given.SAVE, survey.root) if given.MODEL.RESUME \
        else None
    if folder is not None:
        if path is not None:
            logger.info('Not used: -cfg (the run goes on with its own config.yaml)')
        config = build_config(project, os.path.join(folder, 'config.yaml'),
                              {**flags, 'MODEL.RESUME': 'auto'}, arguments.opts)
        run(project, config, folder)
        return finish(project, config, survey, folder)
    flags.pop('MODEL.RESUME', None)
    config, chosen = plan_run(project, survey, path, flags, arguments.opts)
    folder = make_run_folder(config)
    config = _set_files(config, survey, folder)
    try:
        start_logging(folder)
        say_found(survey, folder, arguments.val_fraction)
        say_plan(config, survey, chosen)
        draw_training_pictures(project, config, folder)
        run(project, config, folder)
    except UserError:
        if os.path.isdir(folder):
            discard_run_folder(folder)
        raise
    return finish(project, config, survey, folder)


def find_stopped(target: str, run_parent: str, root: str) -> str | None:
    """Return the run folder that -resume=target means for the pictures in `root`.

    target: a run folder, or "auto": the newest in `run_parent` that has a checkpoint; None where
    there is none, which the log says. Raises UserError for a folder that is no such run.
    """
    folders = [os.path.dirname(path) for path in glob.glob(
        os.path.join(glob.escape(run_parent), '*', TABLE))] if target == 'auto' else [target]
    found = [folder for folder in folders if is_run_of(folder, root)]
    if not found and target != 'auto':
        raise UserError(f'-resume: {show_path(target)} is no folder of a run of finetune.py on '
                        f'{show_path(root)} that has saved a checkpoint.')
    if not found:
        logger.info('-resume=auto: no run on %s has saved a checkpoint in %s; starting from the '
                    'beginning.', show_path(root), show_path(run_parent))
    return max(found, key=os.path.getmtime, default=None)


def is_run_of(folder: str, root: str) -> bool:
    """Tell whether a folder is that of a run of this script, with a checkpoint, on `root`."""
    path = os.path.join(folder, 'config.yaml')
    if not os.path.isfile(os.path.join(folder, TABLE)) or not os.path.isfile(path) \
            or find_in_run(folder) is None:
        return False
    try:
        recorded = read_yaml(path)
    except UserError:           # another run's damaged file is no reason to end this one
        return False
    data = recorded.get('DATA')
    return 'BASE' not in recorded and isinstance(data, dict) and data.get('DATA_PATH') == root


def plan_run(project: Project, survey: Survey, path: str | None, flags: dict[str, Any],
             opts: list[str]) -> tuple[CfgNode, bool]:
    """Return (config of the run, whether it is a small model from scratch).

    path: yaml file or None. flags, opts: what the user has set, which wins over what is chosen
    here. Raises UserError for weights that do not tell their model.
    """
    given = {'DATA.DATASET': 'csv', 'DATA.DATA_PATH': survey.root, 'DATA.VAL_FRACTION': 0.0,
             'MODEL.NUM_CLASSES': len(survey.class_names)}
    config = build_config(project, path, {**flags, **given}, opts)
    is_scratch = path is None and not config.MODEL.PRETRAINED
    chosen = {}
    if is_scratch:
        if project.choose_small is None:
            raise UserError('Which model? Name weights (-pretrained=X) or a yaml file (-cfg=FILE).')
        chosen = project.choose_small(survey.measure_sides()[0])
    counts = survey.count(is_train=True)
    recipe = choose_recipe(counts.tolist(), bool(config.MODEL.PRETRAINED),
                           get_value(config, 'MODEL.EMBED_DIM') or WIDE,
                           int(survey.count(is_train=False).sum()))
    if survey.measure_mirroring() > ONE_WAY:
        recipe['TRAIN.HFLIP'] = 0.0
    chosen |= {key: value for key, value in recipe.items()
               if path is None or key in list_unset(project.options, path, [key])}
    # A length or a batch that the user has set goes into what is counted by it.
    config = build_config(project, path, {**chosen, **flags, **given}, opts)
    if counts.sum() < config.DATA.BATCH_SIZE:
        raise UserError(f'-batch_size={config.DATA.BATCH_SIZE}: there are {counts.sum()} training '
                        'pictures.')
    if config.TRAIN.NUM_STEPS and path is None:
        chosen |= schedule_updates(int(counts.sum()), config.DATA.BATCH_SIZE,
                                   config.TRAIN.NUM_STEPS)
        config = build_config(project, path, {**chosen, **flags, **given}, opts)
    return config, is_scratch


def _set_files(config: CfgNode, survey: Survey, folder: str) -> CfgNode:
    """Write what the run reads of the pictures to its folder; return the config that names it."""
    folder = os.path.abspath(folder)
    write_table(survey, os.path.join(folder, TABLE))
    write_class_names(os.path.join(folder, LABELS), survey.class_names)
    if survey.left_out:
        write_rows(os.path.join(folder, LEFT_OUT), ('path', 'reason'), survey.left_out)
    config = config.clone()
    config.defrost()
    config.DATA.TABLE, config.DATA.LABELS = (os.path.join(folder, name)
                                             for name in (TABLE, LABELS))
    config.freeze()
    return config


def say_found(survey: Survey, folder: str, val_fraction: float) -> None:
    """Log what the folder holds, what is left out and what is held back."""
    train, val = survey.count(is_train=True), survey.count(is_train=False)
    both = train + val
    order = np.argsort(-both, kind='stable')
    shown = ', '.join(f'{show_path(survey.class_names[label])} {both[label]:,}'
                      for label in order[:SHOWN])
    logger.info('Found in %s: %d classes, %s pictures: %s%s', show_path(survey.root),
                len(both), f'{both.sum():,}', shown,
                f', ... (down to {both.min():,})' if len(both) > SHOWN else '')
    if survey.left_out:
        reasons = ', '.join(f'{count:,} {reason}' for reason, count in
                            count_reasons(survey.left_out).most_common(SHOWN))
        logger.warning('Left out: %s files (%s); listed in %s', f'{len(survey.left_out):,}',
                       reasons, os.path.join(folder, LEFT_OUT))
    how = f'{val_fraction:.0%} of each class, by the names (-val_fraction=X)' \
        if survey.is_split else 'as the folders are'
    logger.info('To learn from: %s pictures. Held back to measure on: %s, %s', f'{train.sum():,}',
                f'{val.sum():,}', how)
    lacking = [survey.class_names[label] for label in np.flatnonzero(val == 0)]
    if lacking:
        logger.warning('No picture is held back of %d classes, which have too few: %s%s. How well '
                       'these are known is not measured.', len(lacking),
                       ', '.join(map(show_path, lacking[:SHOWN])), ', ...' if lacking[SHOWN:]
                       else '')
    few = np.flatnonzero((train < FEW_PICTURES) & (val > 0)).tolist()
    if few:
        logger.warning('Few pictures to learn from: %s%s. Expect mistakes there, whatever the '
                       'accuracy below says; more pictures help most.', ', '.join(
                           f'{show_path(survey.class_names[label])} {train[label]}'
                           for label in few[:SHOWN]), ', ...' if few[SHOWN:] else '')


def say_plan(config: CfgNode, survey: Survey, is_scratch: bool) -> None:
    """Log what will be done, with the flag that changes each choice."""
    train, data = config.TRAIN, config.DATA
    updates = train.NUM_STEPS or 0
    pictures = int(survey.count(is_train=True).sum())
    source = 'a small one from scratch: weights that know pictures need fewer examples' \
        if is_scratch else f'from {config.MODEL.PRETRAINED}' if config.MODEL.PRETRAINED \
        else 'of the yaml file, from scratch'
    weighted = 'weighted by their counts (-opts TRAIN.CLASS_WEIGHTS None)' \
        if train.CLASS_WEIGHTS else 'of equal weight (-opts TRAIN.CLASS_WEIGHTS balanced)'
    mixed = ' 0 '.join(f'-opts TRAIN.{key}' if not number else f'TRAIN.{key}' for number, key in
                       enumerate(key for key in ('MIXUP_ALPHA', 'CUTMIX_ALPHA') if train[key]))
    turned = ', turned and moved a little (-opts TRAIN.AFFINE_DEGREES 0 TRAIN.AFFINE_TRANSLATE 0)' \
        if train.AFFINE_DEGREES or train.AFFINE_TRANSLATE else ''
    mirrored = 'mirrored (-opts TRAIN.HFLIP 0 where left and right matter)' \
        if train.HFLIP else 'not mirrored, since all look one way (-opts TRAIN.HFLIP 0.5)' \
        if survey.measure_mirroring() > ONE_WAY else 'not mirrored (-opts TRAIN.HFLIP 0.5)'
    lines = [
        f'model     {config.MODEL.NAME}, {source} (-pretrained=X)',
        f'size      {data.IMAGE_SIZE} x {data.IMAGE_SIZE} pixels (-image_size=N); the pictures '
        'have {} x {}'.format(*survey.measure_sides()),
        f'length    {updates:,} updates of {data.BATCH_SIZE} pictures, each seen about '
        f'{updates * data.BATCH_SIZE / max(1, pictures):.0f} times (-opts TRAIN.NUM_STEPS N, '
        '-batch_size=N)',
        f'rate      {train.BASE_LR:.1e}{_describe_factors(train)} (-opts TRAIN.BASE_LR X, '
        'TRAIN.LAYER_DECAY X, TRAIN.HEAD_LR_SCALE X)',
        f'pictures  cut to {train.CROP_SCALE[0]:.0%} of their area or more '
        f'(-opts TRAIN.CROP_SCALE [X,1]){turned}, {mirrored}'
        + (f', mixed ({mixed} 0)' if mixed else ''),
        f'classes   {weighted}']
    if not updates:
        lines[2] = f'length    {train.NUM_EPOCHS} epochs in batches of {data.BATCH_SIZE} ' \
            '(-opts TRAIN.NUM_EPOCHS N, -batch_size=N)'
    logger.info('Plan, and what changes it:')
    for line in lines:
        logger.info('  %s', line)


def _describe_factors(train):
    """Return how the rate differs between the parts of the model, '' where it does not."""
    texts = []
    if train.LAYER_DECAY != 1:
        texts.append(f', {train.LAYER_DECAY:g} times that for each block towards the input')
    if train.HEAD_LR_SCALE != 1:
        texts.append(f', {train.HEAD_LR_SCALE:g} times in the head')
    return ''.join(texts)


def draw_training_pictures(project: Project, config: CfgNode, folder: str) -> None:
    """Write augmented.png: training pictures as the model gets them, with their classes."""
    dataset = project.get_dataset(config, True)
    order = choose_shown(dataset.labels, config.SEED)
    path = os.path.join(folder, 'augmented.png')
    with go_on('augmented.png'):
        _draw_sheet([(dataset.class_names[label], Image.fromarray(array)) for array, label, _ in (
            dataset[0, int(index)] for index in order)], path)
        logger.info('Training pictures as the model gets them: %s', path)


def choose_shown(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return the indices of the pictures on the sheet, the classes in turn, each at random.

    labels: int [N]. A class of few pictures is seen too.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    turns = np.zeros(len(labels), np.int64)         # which of its class a picture is
    for label in np.unique(labels):
        turns[labels[order] == label] = np.arange((labels == label).sum())
    shown = order[np.argsort(turns, kind='stable')][:SHEET_COLUMNS * SHEET_ROWS]
    return shown[np.argsort(labels[shown], kind='stable')]


def draw_mistakes(samples: np.ndarray, dataset: Any, path: str) -> int:
    """Write the worst mistakes as one picture, if there are any; return their number.

    samples: see Predictions.gather.
    """
    wrong = samples[samples[:, 1] != samples[:, 2]]
    panels = []
    for index, label, predicted, confidence, _ in wrong[np.argsort(wrong[:, 4])]:
        if len(panels) == SHEET_COLUMNS * SHEET_ROWS:
            break
        try:
            picture = dataset.read(int(index))
        except ImageError:
            continue
        names = dataset.class_names
        panels.append((f'{names[int(label)]}, not {names[int(predicted)]} {confidence:.0%}',
                       picture))
    if panels:
        _draw_sheet(panels, path)
    return len(wrong)


def _draw_sheet(panels, path):
    """Write (title, PIL image) panels as one picture; images keep their shape."""
    squares = []
    for title, image in panels:
        image = image.copy()
        image.thumbnail((PANEL, PANEL))
        if max(image.size) < PANEL:
            scale = PANEL / max(image.size)
            image = image.resize([max(1, round(side * scale)) for side in image.size],
                                 Image.Resampling.BICUBIC)
        square = Image.new('RGB', (PANEL, PANEL), (244, 244, 244))
        square.paste(image, ((PANEL - image.width) // 2, (PANEL - image.height) // 2))
        squares.append(Panel(show_path(title), square))
    rows = [squares[first:first + SHEET_COLUMNS]
            for first in range(0, len(squares), SHEET_COLUMNS)]
    make_figure(rows, PANEL).save(path)


def finish(project: Project, config: CfgNode, survey: Survey, folder: str) -> int:
    """Measure the best checkpoint, and log the figures and what can be done with it."""
    best = find_in_run(folder)
    if best is None:
        raise RunError(f'{folder} holds no checkpoint.')
    has_val = survey.count(is_train=False).any()
    if has_val:
        logger.info('The %s checkpoint, on the pictures that were held back:',
                    'last' if config.BEST == 'latest' else 'best')
        samples, dataset = evaluate_checkpoint(project, config, best, folder)
        labels, right = samples[:, 1].astype(int), samples[:, 1] == samples[:, 2]
        means = [100 * right[labels == label].mean() for label in np.unique(labels)]
        logger.info('Accuracy %.1f %% of %d pictures; mean over %d classes %.1f %%',
                    100 * right.mean(), len(right), len(means), np.mean(means))
        certainty = describe_certainty(int(right.sum()), len(right))
        if certainty:
            logger.info('Of the accuracy: %s.', certainty)
        path = os.path.join(folder, 'mistakes.png')
        with go_on('mistakes.png'):
            wrong = draw_mistakes(samples, dataset, path)
            if wrong:
                logger.info('Mistakes: %d; the worst as pictures: %s', wrong, path)
    weights = os.path.join(folder, os.path.basename(best).removesuffix('.pdparams'))
    example = next((picture for picture in survey.pictures if not picture.is_train),
                   survey.pictures[0])
    val = os.path.join(survey.root, 'val')
    for line in list_next_commands(weights, os.path.join(survey.root, example.path), folder,
                                   val if os.path.isdir(val) else survey.root):
        logger.info('%s', line)
    return 0


def list_next_commands(weights: str, picture: str, folder: str, pictures: str) -> list[str]:
    """Return what can be done next, as lines for the shell that started this script.

    pictures: the folder that the demo takes its examples from.
    """
    scripts = os.path.dirname(sys.argv[0]) if sys.argv[0].endswith('finetune.py') else ''

    def write(script, *words):
        return quote_words('python', os.path.join(scripts, script), *words)

    exported = os.path.join(folder, 'exported')
    return ['Next (demo.py, a web page, needs: pip install gradio):',
            f'  {write("predict.py", f"-pretrained={weights}", picture)}',
            f'  {write("demo.py", f"-pretrained={weights}", f"-examples={pictures}")}',
            f'  {write("export_model.py", f"-pretrained={weights}", f"-output={exported}")}']


def _list_flags(project):
    return [(key, option) for key, option in list_flags(project.options).items()
            if key not in TAKEN]


def _parse(project, argv):
    parser = FlagParser(
        prog='finetune.py', allow_abbrev=False,
        description=f'Train {project.name} to tell the pictures of a folder apart.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES.format(model=project.example_configs[1]))
    parser.add_argument('folder', metavar='FOLDER',
                        help='pictures, one folder a class; or train/ and val/ with these')
    parser.add_flag('cfg', metavar='FILE', help='yaml file of model and recipe, in place of those '
                    'that would be chosen')
    parser.add_flag('val_fraction', type=float, default=VAL_FRACTION, metavar='X',
                    help='share of each class that is held back to measure on, where there is no '
                    f'val/ (default: {VAL_FRACTION})')
    for key, option in _list_flags(project):
        add_option_flag(parser, key, option)
    parser.add_flag('opts', nargs='*', action='extend', default=[], metavar='KEY VALUE',
                    help='any options of config.py, for example TRAIN.NUM_STEPS 1000')
    parser.check_names(argv)
    arguments = parser.parse_args(argv)
    if not 0 < arguments.val_fraction < 1:
        raise UserError(f'-val_fraction must be between 0 and 1, not {arguments.val_fraction:g}.')
    assert set(TAKEN) <= set(list_options(project.options))
    return arguments
