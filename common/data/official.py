"""Files that paddle.vision.datasets downloads too: the same addresses, checksums and places."""

import hashlib
import os

from common.errors import RunError, UserError
from common.machine.download import download

FLAG = '-data_path=FILE (where there is no such flag: -opts DATA.DATA_PATH FILE)'


def fetch_official(url: str, md5: str, folder: str) -> str:
    """Return the path of a file in Paddle's cache, downloading it if it is not there.

    folder: below Paddle's cache. Raises UserError.
    """
    from paddle.dataset import common as paddle_cache

    path = os.path.join(paddle_cache.DATA_HOME, folder, url.rsplit('/', 1)[-1])

    def check(path):
        if _compute_md5(path) != md5:
            raise UserError('the download is damaged (wrong MD5)')

    if os.path.exists(path):
        try:
            check(path)
            return path
        except UserError:
            os.remove(path)
    try:
        return download([(url, path)], check=check, remedy=f'give {FLAG}',
                        place=f'Give {FLAG}.')
    except RunError as error:
        reason = str(error).removeprefix('The download failed. ')
        raise UserError(f'Cannot download {reason}') from None


def _compute_md5(path):
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
