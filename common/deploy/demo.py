"""demo.py: a web page. Drop a picture, see its classes and what the model attends to."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from PIL import Image

from common.cli import FlagParser
from common.data.images import ImageError, check_upload, read_image, show_path
from common.deploy import engine as engines
from common.deploy.attention import record_attention
from common.deploy.drawing import overlay
from common.deploy.ranking import rank_classes
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

EXAMPLES = """examples:
  python demo.py -pretrained=./output/train-20260101-10-00-00/best
  python demo.py -cfg=configs/{model}.yaml -pretrained=./{model}.pdparams -port=7861
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
    page = build_page(load_trained(project, arguments))
    try:
        page.launch(server_name=arguments.host, server_port=arguments.port, **limit_requests())
    except OSError:
        raise UserError(f'Cannot serve on {arguments.host}:{arguments.port}: the port is taken '
                        'or not allowed. -port=N takes another.') from None


def build_page(trained: Trained) -> Any:
    """Return the page of a Trained model, a gradio.Blocks."""
    import gradio

    depth = len(trained.model.blocks)

    def answer(path, source, layer):
        try:
            return analyse(trained, read_upload(path), source, int(layer))
        except UserError as error:
            raise gradio.Error(str(error)) from None

    with gradio.Blocks(title=trained.config.MODEL.NAME, analytics_enabled=False,
                       delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        gradio.Markdown(f'## {trained.config.MODEL.NAME}')
        with gradio.Row():
            with gradio.Column():
                picture = keep_unopened(gradio.Image(label='Picture', height=SHOWN))
                source = gradio.Radio(['rollout', 'mean of heads'], value='rollout',
                                      label='Attention')
                layer = gradio.Slider(1, depth, value=depth, step=1, label='Layer')
            with gradio.Column():
                classes = gradio.Label(num_top_classes=TOP_CLASSES, label='Classes')
                heat = gradio.Image(type='pil', label='What the model attends to', height=SHOWN)
        for control in (picture, source, layer):
            control.change(answer, [picture, source, layer], [classes, heat],
                           api_name='analyse' if control is picture else False)
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    return page


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


def read_upload(path: str | None) -> Image.Image | None:
    """Return an uploaded picture, RGB; None of None. Raises UserError, without the path."""
    if path is None:
        return None
    try:
        check_upload(path, MAX_BYTES, MAX_PIXELS)
        return read_image(path)
    except ImageError as error:
        raise UserError(str(error).removeprefix(f'{show_path(path)}: ').capitalize()) from None


def analyse(trained: Trained, image: Image.Image | None, source: str,
            layer: int) -> tuple[dict[str, float] | None, Image.Image | None]:
    """Return ({class name: probability}, overlay) of a PIL RGB image; (None, None) of None.

    source: "rollout" (up to the layer) or "mean of heads" (of the layer). layer: from 1.
    """
    if image is None:
        return None, None
    crop = trained.preprocessing.crop(image)
    attention = record_attention(trained.model, trained.preprocessing.normalize([crop]))
    view = View(attention, layer)
    heads, rollout = view.map_heads(), view.map_rollout()
    weights = rollout[layer - 1] if source == 'rollout' else heads.mean(axis=0)
    ranked = rank_classes(attention.logits, TOP_CLASSES)[0]
    names = {}
    for index, share in ranked:
        name = trained.preprocessing.name_class(index)
        names[f'{name} ({index})' if name in names else name] = share
    return names, overlay(crop.resize((SHOWN, SHOWN)), weights)


def _parse(project, argv):
    parser = FlagParser(
        prog='demo.py', allow_abbrev=False,
        description=f'A web page that shows the classes and the attention of a {project.name}.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES.format(model=project.example_configs[1]))
    add_model_flags(parser)
    parser.add_flag('host', default='127.0.0.1', metavar='X',
                    help='address to serve on; 0.0.0.0: every one (default: this machine only)')
    parser.add_flag('port', type=int, default=7860, metavar='N', help='default: 7860')
    parser.check_names(argv)
    return parser.parse_args(argv)
