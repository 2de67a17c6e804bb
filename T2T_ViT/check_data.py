"""Look over a data set before T2T-ViT trains on it: `python check_data.py -h`."""

from config import get_config

from common.tools import check_data as check

if __name__ == '__main__':
    raise SystemExit(check.main(get_config))
