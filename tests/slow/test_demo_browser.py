"""demo.py in a headless browser: upload a digit, see its class and the overlay.

Needs Gradio, Playwright (pip install playwright) and Chromium, whose path CHROMIUM gives:
CHROMIUM=/usr/bin/chromium python -m pytest -m slow tests/slow/test_demo_browser.py
SCREENSHOT=page.png keeps a picture of the page.
"""

import os
import re

import pytest
from PIL import Image

from common.data.digits import load_digits_rgb
from common.deploy import demo
from tests.support.trained_digits import load_fixture

pytestmark = pytest.mark.slow
pytest.importorskip('gradio')
playwright = pytest.importorskip('playwright.sync_api')
CHROMIUM = os.environ.get('CHROMIUM', '/usr/bin/chromium')
FLAGS = ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync']
OVERLAY = 'img[src*="/file="]'


@pytest.fixture
def address():
    page = demo.build_page(load_fixture('vit')[1])
    yield page.launch(server_name='127.0.0.1', prevent_thread_lock=True, quiet=True)[1]
    page.close()


@pytest.mark.skipif(not os.path.exists(CHROMIUM), reason='no Chromium')
def test_upload_shows_classes_and_overlay(address, tmp_path):
    Image.fromarray(load_digits_rgb()[0][3]).save(tmp_path / 'three.png')
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={'width': 1100, 'height': 900})
        page.route(re.compile('^https?://(?!127[.]0[.]0[.]1)'), lambda route: route.abort())
        page.goto(address, wait_until='domcontentloaded')
        page.set_input_files('input[type=file]', tmp_path / 'three.png')
        label = page.locator('[data-testid="label-output-value"]')
        label.wait_for()
        assert label.inner_text().strip() == '3'
        heat = page.locator(OVERLAY).last
        heat.wait_for()
        rollout = heat.get_attribute('src')
        assert heat.evaluate('image => image.naturalWidth') == demo.SHOWN
        page.get_by_label('mean of heads').check()
        page.wait_for_function(
            '([selector, old]) => [...document.querySelectorAll(selector)].pop().src !== old',
            arg=[OVERLAY, heat.evaluate('image => image.src')])
        assert heat.get_attribute('src') != rollout
        if 'SCREENSHOT' in os.environ:
            page.wait_for_timeout(1000)             # for the picture to be drawn
            page.screenshot(path=os.environ['SCREENSHOT'], full_page=True)
        browser.close()
