"""Letters on pictures: Chinese ones where a font has them, else "?" and what to install."""

import os

import pytest
from PIL import Image, ImageDraw, ImageFont

from common import fonts


@pytest.fixture
def no_wide_font(monkeypatch):
    cached = fonts.load_wide, fonts.load_default, fonts._say_what_to_install
    for function in cached:
        function.cache_clear()
    monkeypatch.setattr(fonts, 'WIDE_FONTS', ())
    monkeypatch.delenv(fonts.VARIABLE, raising=False)
    yield monkeypatch
    for function in cached:
        function.cache_clear()


def test_what_to_install_is_said_once(no_wide_font, caplog):
    assert fonts.choose_font('苹果 a', 12)[1] == '?? a'
    assert fonts.choose_font('猫', 30)[1] == '?'
    assert len(caplog.messages) == 1
    assert 'apt install fonts-noto-cjk' in caplog.messages[0] and 'VIT_FONT=' in caplog.messages[0]


def test_latin_letters_need_no_other_font(no_wide_font, caplog):
    for text in ('apple', 'Zürich', 'Zu\u0308rich'):
        assert fonts.choose_font(text, 12)[1] == text.replace('u\u0308', 'ü')
    assert not caplog.messages


def test_a_font_that_is_named_is_taken(no_wide_font):
    default = fonts.load_default(12)
    if not isinstance(default, ImageFont.FreeTypeFont):
        pytest.skip('this Pillow has a bitmap font only')
    matplotlib = pytest.importorskip('matplotlib')
    path = os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')
    no_wide_font.setenv(fonts.VARIABLE, path)
    font, text = fonts.choose_font('кошка', 20)
    assert font.path == path and text == 'кошка'
    fonts.load_wide.cache_clear()
    no_wide_font.setenv(fonts.VARIABLE, '/no/such.ttf')
    assert fonts.choose_font('кошка', 20)[1] == '?????'


def test_bitmap_fonts_of_older_pillows(no_wide_font):
    bitmap = getattr(ImageFont, 'load_default_imagefont', ImageFont.load_default)()
    no_wide_font.setattr(fonts, 'load_default', lambda size: bitmap)
    draw = ImageDraw.Draw(Image.new('RGB', (90, 20)))
    for text in ('猫 a', 'é', 'plain'):
        fonts.write(draw, (0, 0), text, 12, anchor='mm')
        assert fonts.measure(text, 12) > 0


def test_a_text_is_cut_to_its_room():
    assert fonts.fit('two\nlines ', 12, 500) == 'two lines'
    cut = fonts.fit('a long name of a class', 12, 60)
    assert cut.endswith('...') and fonts.measure(cut, 12) <= 60
    assert fonts.fit('name', 12, 1) == '...'
