"""demo.py in a headless browser, at the width of a desktop and of a phone.

Needs Gradio, Playwright (pip install playwright) and Chromium, whose path CHROMIUM gives:
CHROMIUM=/usr/bin/chromium python -m pytest -m slow tests/slow/test_demo_browser.py
SCREENSHOTS=folder keeps pictures of the page.
"""

import os
import re

import pytest
from PIL import Image

from common.data.digits import load_digits_rgb
from common.deploy import demo
from tests.support.data_folders import make_image
from tests.support.trained_digits import load_fixture

pytestmark = [pytest.mark.slow, pytest.mark.runs]
pytest.importorskip('gradio')
playwright = pytest.importorskip('playwright.sync_api')
CHROMIUM = os.environ.get('CHROMIUM', '/usr/bin/chromium')
FLAGS = ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync']
LABEL = '[data-testid="label-output-value"]'
HEAT = '#heat img'
SIZES = {'desktop': (1100, 900), 'phone': (390, 844)}


@pytest.fixture(scope='module')
def address(tmp_path_factory):
    trained = load_fixture('vit')[1]
    folder = str(tmp_path_factory.mktemp('examples'))
    page = demo.build_page(trained, demo.choose_examples(None, folder, trained))
    yield page.launch(server_name='127.0.0.1', prevent_thread_lock=True, quiet=True,
                      **demo.limit_requests())[1]
    page.close()


@pytest.fixture(params=SIZES)
def page(request, address):
    if not os.path.exists(CHROMIUM):
        pytest.skip('no Chromium')
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        width, height = SIZES[request.param]
        page = browser.new_page(viewport={'width': width, 'height': height})
        page.set_default_timeout(20_000)
        page.route(re.compile('^https?://(?!127[.]0[.]0[.]1)'), lambda route: route.abort())
        page.goto(address, wait_until='domcontentloaded')
        page.locator('#status').wait_for()
        page.wait_for_timeout(2000)             # until what is shown answers, too
        yield page
        shoot(page, request.node.name)
        browser.close()


def shoot(page, name):
    if 'SCREENSHOTS' in os.environ:
        page.wait_for_timeout(1000)             # for the picture to be drawn
        page.screenshot(path=os.path.join(os.environ['SCREENSHOTS'], f'{name}.png'),
                        full_page=True)


def upload(page, path):
    page.locator('#picture input[type=file]').first.set_input_files(path)


def wait_for_status(page, text):
    page.locator('#status', has_text=text).wait_for()


def test_upload_shows_classes_and_overlay(page, tmp_path):
    Image.fromarray(load_digits_rgb()[0][3]).save(tmp_path / 'three.png')
    upload(page, tmp_path / 'three.png')
    label = page.locator(LABEL)
    label.wait_for()
    assert label.inner_text().strip() == '3'
    wait_for_status(page, ' %')
    assert re.fullmatch(r'3, \d\d\.\d % \(\d\.\d\d s\)', page.locator('#status').inner_text())
    heat = page.locator(HEAT)
    heat.wait_for()
    assert heat.evaluate('image => image.naturalWidth') == demo.SHOWN
    before = heat.evaluate('image => image.src')
    page.get_by_label('mean of heads').check()
    page.wait_for_function('([selector, old]) => document.querySelector(selector)?.src !== old',
                           arg=[HEAT, before])
    heat.wait_for()
    for image in page.locator('#picture img, #heat img').all():
        assert image.get_attribute('alt'), image.evaluate('image => image.outerHTML')
    # On a phone the answer is the first thing below the title; nothing is wider than the screen.
    top = label.bounding_box()['y']
    is_phone = page.viewport_size['width'] < 700
    assert (top < page.locator('#picture').bounding_box()['y']) == is_phone
    assert not is_phone or top < page.viewport_size['height'] / 2
    assert page.evaluate('document.documentElement.scrollWidth') <= page.viewport_size['width']


def test_the_page_names_the_model_and_offers_examples(page):
    text = page.locator('body').inner_text()
    assert 'vit_digits' in text and '10 classes' in text and 'on cpu' in text
    examples = page.locator('.gallery img, .gallery-item img, button.gallery-item img')
    examples.nth(2).click()
    page.locator(LABEL).wait_for()
    expected = str(load_digits_rgb()[1][-demo.MAX_EXAMPLES:][2])
    assert page.locator(LABEL).inner_text().strip() == expected


def test_a_reload_keeps_the_picture(page, tmp_path):
    Image.fromarray(load_digits_rgb()[0][3]).save(tmp_path / 'three.png')
    upload(page, tmp_path / 'three.png')
    wait_for_status(page, '3, ')
    page.reload(wait_until='domcontentloaded')
    page.locator('#picture img').wait_for()
    wait_for_status(page, '3, ')


def test_a_bad_picture_gets_a_reason_and_no_badge(page, tmp_path):
    (tmp_path / 'broken.png').write_bytes(b'no picture at all')
    make_image(str(tmp_path / 'cut.jpg'), (400, 300))
    os.truncate(tmp_path / 'cut.jpg', 3000)
    for name, reason in (('broken.png', 'Not an image'), ('cut.jpg', 'truncated')):
        upload(page, tmp_path / name)
        wait_for_status(page, reason)
        assert page.locator('.error', has_text='Error').count() == 0
        page.locator('#picture button[aria-label="Clear"], #picture button[aria-label="Remove '
                     'Image"]').first.click()
        wait_for_status(page, demo.WELCOME)
