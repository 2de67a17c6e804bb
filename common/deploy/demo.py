"""demo.py: a web page. Drop a picture, see its classes and what the model attends to."""

import argparse
import contextlib
import functools
import inspect
import os
import secrets
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from common.cli import FlagParser
from common.data.digits import load_digits_rgb
from common.data.images import ImageError, check_upload, show_path
from common.data.preprocessing import Preprocessing
from common.deploy import engine as engines
from common.deploy.attention import record_attention
from common.deploy.card import plain
from common.deploy.decode import read_crop
from common.deploy.drawing import overlay
from common.deploy.pictures import find_pictures
from common.deploy.predict import add_engine_flags, load_exported
from common.deploy.ranking import format_share, rank_classes
from common.deploy.trained import Trained, add_model_flags, load_trained
from common.deploy.visualize import View
from common.errors import UserError, report_errors
from common.project import Project
from common.run.log import start_logging

SHOWN = 480                     # pixels a side of the overlay
TOP_CLASSES = 5
# Limits of a picture on the page, so that no visitor fills the memory or the disk.
MAX_BYTES = 20_000_000
MAX_PIXELS = 50_000_000
MAX_BODY = MAX_BYTES + 1_000_000        # bytes of a request, with what surrounds the picture
MAX_WAITING = 16                # questions in the queue; one is answered at a time
KEPT_SECONDS = 3600             # an uploaded picture stays on the disk
MAX_KEPT = 1000                 # pictures that a reload brings back
DECODE_SECONDS = 10             # for a picture, from its file to what the model sees
MAX_EXAMPLES = 8
EXAMPLE_SIDE = 512              # pixels, at most
WELCOME = 'Drop a picture, or choose one.'
# On a phone the answer stands above the picture as soon as there is one.
STYLE = """
#picture img { width: 100%; height: 100%; object-fit: contain; image-rendering: auto; }
@media (max-width: 700px) {
  #answer:has([data-testid="label-output-value"]) { order: -1; }
  #picture, #picture img, #heat, #heat img { max-height: 320px; }
}
"""

EXAMPLES = """examples:
  python demo.py -pretrained=./output/train-20260101-10-00-00/best -examples=/my/pictures/val
  python demo.py -cfg=configs/{model}.yaml -pretrained=./{model}.pdparams -port=7861
  python demo.py -model=exported/
"""


def main(project: Project, argv: list[str] | None = None) -> int:
    """Serve the page until it is interrupted; return the exit code.

    project: common.project.Project. argv: arguments without the script's name; None: sys.argv's.
    """
    return report_errors(_run, project, sys.argv[1:] if argv is None else argv)


def _run(project, argv):
    arguments = _parse(project, argv)
    if not engines.is_installed('gradio'):
        raise UserError('The web page needs Gradio: pip install gradio')
    start_logging()
    trained, engine = load_shown(project, arguments)
    with tempfile.TemporaryDirectory(prefix='examples-') as folder:
        page = build_page(trained, choose_examples(arguments.examples, folder, trained), engine)
        try:
            page.launch(server_name=arguments.host, server_port=arguments.port,
                        **limit_requests())
        except OSError:
            raise UserError(f'Cannot serve on {arguments.host}:{arguments.port}: the port is '
                            'taken or not allowed. -port=N takes another.') from None


def load_shown(project: Project, arguments: argparse.Namespace
               ) -> tuple[Trained, engines.Engine | None]:
    """Return what the page shows: a model, or an exported one without `model`, and its engine."""
    if not arguments.model:
        return load_trained(project, arguments), None
    preprocessing, engine = load_exported(arguments)
    config = project.get_config(flags={
        'MODEL.NAME': os.path.basename(os.path.abspath(arguments.model)),
        'MODEL.NUM_CLASSES': engine.num_classes, 'DATA.DATASET': 'imagefolder'})
    return Trained(None, config, preprocessing, source=arguments.model), engine


def build_page(trained: Trained, examples: Sequence[str] = (),
               engine: engines.Engine | None = None) -> Any:
    """Return the page of a Trained model, a gradio.Blocks.

    examples: paths of pictures. engine: of an exported model, which shows no attention.
    """
    import gradio

    depth = 0 if engine else len(trained.model.blocks)
    kept = KeptPictures()
    read = functools.lru_cache(maxsize=4)(
        lambda path: read_upload(path, trained.preprocessing))

    def answer(path, source='', layer=0):
        status, shares, heat, token = classify(path, source, int(layer))
        return (status, shares, token) if engine else (status, shares, heat, token)

    def classify(path, source, layer):
        if path is None:
            return WELCOME, None, None, None
        started = time.perf_counter()
        try:
            crop = read(path)
        except UserError as error:
            return f'**This picture cannot be classified.** {plain(str(error))}', None, None, None
        if engine:
            logits = engine(trained.preprocessing.normalize([crop]))
            shares, heat = name_shares(trained.preprocessing, logits), None
        else:
            shares, heat = analyse_crop(trained, crop, source, layer)
        best = max(shares, key=shares.get)
        seconds = time.perf_counter() - started
        status = f'**{plain(best)}**, {format_share(shares[best])} ({seconds:.2f} s)'
        return status, shares, heat, kept.add(path)

    name = trained.config.MODEL.NAME
    with gradio.Blocks(title=name, analytics_enabled=False,
                       delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        gradio.HTML(f'<style>{STYLE}</style>')
        gradio.Markdown(f'## {plain(name)}\n{describe(trained, engine)}')
        token = gradio.BrowserState(None, storage_key=f'picture of {name}')
        with gradio.Row():
            with gradio.Column(elem_id='question'):
                picture = keep_unopened(gradio.Image(
                    label='Picture', height=SHOWN, elem_id='picture',
                    **choose_alt_text(gradio.Image, 'The picture that is classified')))
                if examples:
                    gallery = gradio.Dataset(
                        components=[gradio.Image(type='filepath', render=False)], type='index',
                        samples=[[path] for path in examples], label='Examples',
                        samples_per_page=len(examples))
                    gallery.click(lambda index: examples[index], [gallery], [picture],
                                  api_name=False)
                controls = [] if engine else [
                    gradio.Radio(['rollout', 'mean of heads'], value='rollout', label='Attention'),
                    gradio.Slider(1, depth, value=depth, step=1, label='Layer')]
            with gradio.Column(elem_id='answer'):
                status = gradio.Markdown(WELCOME, elem_id='status')
                classes = gradio.Label(num_top_classes=TOP_CLASSES, label='Classes')
                heat = [] if engine else [gradio.Image(
                    type='pil', label='What the model attends to', height=SHOWN, elem_id='heat',
                    **choose_alt_text(gradio.Image, 'The picture, lit where the model attends to '
                                      'it'))]
        for control in (picture, *controls):
            control.change(answer, [picture, *controls], [status, classes, *heat, token],
                           api_name='analyse' if control is picture else False)
        page.load(kept.find, [token], [picture], api_name=False)
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    return page


class KeptPictures:
    """Uploaded pictures by a secret that the visitor's browser keeps, so that a reload shows them.

    A browser may send anything: it gets what was given for its own secret, while that is there.
    """

    def __init__(self):
        self.paths: OrderedDict[str, str] = OrderedDict()

    def add(self, path: str) -> str:
        """Return a new secret for a picture; the oldest ones are forgotten."""
        token = secrets.token_urlsafe(32)
        self.paths[token] = path
        while len(self.paths) > MAX_KEPT:
            self.paths.popitem(last=False)
        return token

    def find(self, token: Any) -> str | None:
        """Return the path of a picture that is still there, None for anything else."""
        path = self.paths.get(token) if isinstance(token, str) else None
        return path if path is not None and os.path.isfile(path) else None


def describe(trained: Trained, engine: engines.Engine | None = None) -> str:
    """Return Markdown on the model: checkpoint, classes, size of pictures, device or engine."""
    import paddle
    p = trained.preprocessing
    parts = [plain(trained.source),
             f'{trained.config.MODEL.NUM_CLASSES:,} classes',
             f'{p.image_size} x {p.image_size} pixels',
             plain(engine.describe().replace('\n', '. ')) if engine
             else f'on {paddle.device.get_device()}']
    return ' · '.join(filter(None, parts))


def choose_alt_text(component: Any, text: str) -> dict[str, str]:
    """Return the argument for a text in place of a picture; older versions of Gradio have none."""
    return {'alt_text': text} if 'alt_text' in inspect.signature(component).parameters else {}


def choose_examples(argument: str | None, folder: str, trained: Trained) -> list[str]:
    """Return paths of a few pictures to try, spread over those that the argument names.

    argument: a folder, glob or picture, such as the validation data's; None: none, but for a
    model of the digits that come with the code. folder: where pictures from elsewhere are
    written. Pictures that cannot be read are left out. Raises UserError where there is none.
    """
    if argument is None:
        if trained.config.DATA.DATASET != 'digits':
            return []
        images = load_digits_rgb()[0][-MAX_EXAMPLES:]
        pictures = [(f'digit-{number}.png', Image.fromarray(image))
                    for number, image in enumerate(images)]
    else:
        found = list(find_pictures([argument], ()))
        pictures = []
        for place in sorted({len(found) * k // MAX_EXAMPLES for k in range(MAX_EXAMPLES)}):
            picture = found[place]
            with contextlib.suppress(ImageError):
                image = picture.read(trained.preprocessing.exif_orientation)
                image.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
                pictures.append((f'{place}.png', image))
    paths = []
    for name, image in pictures:
        paths.append(os.path.join(folder, name))
        image.save(paths[-1])
    return paths


def keep_unopened(picture: Any) -> Any:
    """Let a gradio.Image for input hand on the uploaded path; return it.

    By itself it would let Pillow open a file of any format, and fetch any address. (A subclass
    would make Gradio write a .pyi file beside this one.)
    """
    move = picture.async_move_resource_to_block_cache

    async def move_upload(path):
        if path is not None and '://' in str(path):
            raise UserError('Upload the picture; addresses are not fetched.')
        return await move(path)

    picture.preprocess = lambda payload: payload and payload.path
    picture.async_move_resource_to_block_cache = move_upload
    return picture


def limit_requests() -> dict[str, Any]:
    """Return the arguments of gradio.Blocks.launch that bound what a visitor may send."""
    from starlette.middleware import Middleware
    return {'max_file_size': MAX_BYTES,
            'app_kwargs': {'middleware': [Middleware(BodyLimit, limit=MAX_BODY)]}}


class BodyLimit:
    """ASGI middleware: a request with more than `limit` bytes is answered with 413, or cut off."""

    def __init__(self, app: Callable, limit: int):
        self.app = app
        self.limit = limit

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        sizes = [int(value) for name, value in scope.get('headers', ())
                 if name == b'content-length' and value.isdigit()]
        if max(sizes, default=0) > self.limit:
            await send({'type': 'http.response.start', 'status': 413, 'headers': []})
            await send({'type': 'http.response.body', 'body': b'too large'})
            return
        left = self.limit

        async def receive_some():
            nonlocal left
            message = await receive()
            left -= len(message.get('body', b''))
            return message if left >= 0 else {'type': 'http.disconnect'}
        await self.app(scope, receive_some, send)


def read_upload(path: str, preprocessing: Preprocessing) -> Image.Image:
    """Return what the model sees of an uploaded picture, RGB.

    Raises UserError, without the path, for one that is too large, damaged or too slow to decode.
    """
    try:
        check_upload(path, MAX_BYTES, MAX_PIXELS)
    except ImageError as error:
        reason = str(error).removeprefix(f'{show_path(path)}: ')
        raise UserError(reason[:1].upper() + reason[1:]) from None
    return read_crop(path, preprocessing, DECODE_SECONDS)


def analyse(trained: Trained, image: Image.Image, source: str, layer: int
            ) -> tuple[dict[str, float], Image.Image]:
    """Return ({class name: probability}, overlay) of a PIL RGB image.

    source: "rollout" (up to the layer) or "mean of heads" (of the layer). layer: from 1.
    """
    return analyse_crop(trained, trained.preprocessing.crop(image), source, layer)


def analyse_crop(trained: Trained, crop: Image.Image, source: str, layer: int
                 ) -> tuple[dict[str, float], Image.Image]:
    """Return what analyse does, of a picture that is cropped for the model."""
    attention = record_attention(trained.model, trained.preprocessing.normalize([crop]))
    view = View(attention, layer)
    heads, rollout = view.map_heads(), view.map_rollout()
    weights = rollout[layer - 1] if source == 'rollout' else heads.mean(axis=0)
    return name_shares(trained.preprocessing, attention.logits), \
        overlay(crop.resize((SHOWN, SHOWN)), weights)


def name_shares(preprocessing: Preprocessing, logits: np.ndarray) -> dict[str, float]:
    """Return {class name: probability} of the likeliest classes of one picture."""
    names: dict[str, float] = {}
    for index, share in rank_classes(logits, TOP_CLASSES)[0]:
        name = preprocessing.show_class(index)
        names[f'{name} ({index})' if name in names else name] = share
    return names


def _parse(project, argv):
    parser = FlagParser(
        prog='demo.py', allow_abbrev=False,
        description=f'A web page that shows the classes and the attention of a {project.name}.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES.format(model=project.example_configs[1]))
    add_model_flags(parser)
    add_engine_flags(parser)
    parser.add_flag('examples', metavar='DIR', help='folder or glob with pictures to try, such as '
                    'the val/ folder of the data: a few of them are shown')
    parser.add_flag('host', default='127.0.0.1', metavar='X',
                    help='address to serve on; 0.0.0.0: every one (default: this machine only)')
    parser.add_flag('port', type=int, default=7860, metavar='N', help='default: 7860')
    parser.check_names(argv)
    return parser.parse_args(argv)
