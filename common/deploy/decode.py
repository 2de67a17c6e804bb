"""Decodes a stranger's picture in a process of its own, which can be ended when it takes too long.

A small file can take a decoder minutes, and no thread can be stopped from outside.
"""

import json
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from PIL import Image

from common.data.images import ImageError, read_image, show_path
from common.data.transforms import ResizeCentreCrop
from common.errors import UserError

if TYPE_CHECKING:               # it imports Paddle, for which the other process has no time
    from common.data.preprocessing import Preprocessing

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

logger = logging.getLogger(__name__)


def read_crop(path: str, preprocessing: 'Preprocessing', seconds: float) -> Image.Image:
    """Return what the model sees of a picture file, RGB, in another process.

    Raises UserError, without the path, for a picture that cannot be read or that takes longer
    than so many seconds.
    """
    p = preprocessing
    options = json.dumps([p.exif_orientation, p.image_size, p.crop_pct, p.interpolation])
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(
        filter(None, [ROOT, os.environ.get('PYTHONPATH')]))}
    try:
        ended = subprocess.run([sys.executable, '-m', 'common.deploy.decode', path, options],
                               env=environment, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise UserError(f'The picture takes more than {seconds:g} seconds to decode.') from None
    if ended.returncode == 2:
        raise UserError(ended.stderr.decode('utf-8', 'replace').strip())
    size = p.image_size
    if ended.returncode or len(ended.stdout) != 3 * size * size:
        raise UserError('The picture cannot be read: its decoder ended unexpectedly.')
    if ended.stderr:                        # what the picture loses
        logger.warning('%s', ended.stderr.decode('utf-8', 'replace').strip())
    return Image.frombytes('RGB', (size, size), ended.stdout)


def main(argv: list[str]) -> int:
    """Write the bytes of a crop to the standard output; return the exit code."""
    path, options = argv
    upright, image_size, crop_pct, interpolation = json.loads(options)
    try:
        image = read_image(path, upright)
        crop = ResizeCentreCrop(image_size, crop_pct, interpolation)(image)
    except ImageError as error:
        reason = str(error).removeprefix(f'{show_path(path)}: ')
        sys.stderr.buffer.write((reason[:1].upper() + reason[1:]).encode())
        return 2
    sys.stdout.buffer.write(crop.tobytes())
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
