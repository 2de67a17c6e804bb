"""Letters on pictures: of a font that has them, else "?" and what to install."""

import os

import pytest
from PIL import Image, ImageDraw, ImageFont

from common import fonts


@pytest.fixture
def no_other_font(monkeypatch):
    monkeypatch.setattr(fonts, 'FONTS', ())
    monkeypatch.setattr(fonts, '_said', [])
    monkeypatch.delenv(fonts.VARIABLE, raising=False)
    return monkeypatch


@pytest.fixture
def dejavu():
    """A font with accents and Cyrillic letters, without Chinese ones."""
    if not isinstance(fonts.load_default(12), ImageFont.FreeTypeFont):
        pytest.skip('this Pillow has a bitmap font only')
    matplotlib = pytest.importorskip('matplotlib')
    return os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')


@pytest.mark.parametrize('text, package', [
    ('苹果 a', 'fonts-noto-cjk'), ('müll', 'fonts-dejavu-core'),
    ('жé猫', 'fonts-dejavu-core fonts-noto-cjk')])
def test_the_letters_and_what_to_install_are_said_once(no_other_font, caplog, text, package):
    lacking = ''.join(sorted(letter for letter in text if not letter.isascii()))
    shown = ''.join(letter if letter.isascii() else '?' for letter in text)
    assert fonts.choose_font(text, 12)[1] == shown
    assert fonts.choose_font('鱼', 30)[1] == '?'
    message, = caplog.messages
    assert f'letters {lacking},' in message and f'apt install {package})' in message
    assert 'VIT_FONT=' in message


def test_what_commands_terminals_is_named_as_text(no_other_font, caplog):
    fonts.choose_font('a\x9b2J', 12)
    assert '\\x9b' in caplog.text and '\x9b' not in caplog.text


def test_letters_of_no_package_here_ask_for_a_font_by_name(no_other_font, caplog):
    assert fonts.choose_font('अ', 12)[1] == '?'
    assert 'apt' not in caplog.text and 'Set VIT_FONT=' in caplog.text


def test_the_first_font_with_every_letter_is_taken(no_other_font, dejavu, caplog):
    """Pillow's own draws accents as empty boxes and says nothing."""
    no_other_font.setattr(fonts, 'FONTS', ('no-such-font.ttf', dejavu))
    for text in ('été', 'Zu\u0308rich', 'кошка'):
        font, drawn = fonts.choose_font(text, 20)
        assert font.path == dejavu and drawn == text.replace('u\u0308', 'ü')
    assert fonts.choose_font('90 … ™', 20) == (fonts.load_default(20), '90 … ™')
    assert not caplog.messages
    font, drawn = fonts.choose_font('é猫', 20)
    assert font.path == dejavu and drawn == 'é?' and '猫' in caplog.text


def test_a_font_that_is_named_is_taken(no_other_font, dejavu):
    no_other_font.setenv(fonts.VARIABLE, dejavu)
    font, text = fonts.choose_font('кошка', 20)
    assert font.path == dejavu and text == 'кошка'
    no_other_font.setenv(fonts.VARIABLE, '/no/such.ttf')
    assert fonts.choose_font('кошка', 20)[1] == '?????'


def test_bitmap_fonts_of_older_pillows(no_other_font):
    bitmap = getattr(ImageFont, 'load_default_imagefont', ImageFont.load_default)()
    no_other_font.setattr(fonts, 'load_default', lambda size: bitmap)
    draw = ImageDraw.Draw(Image.new('RGB', (90, 20)))
    for text in ('猫 a', 'é', 'plain'):
        fonts.write(draw, (0, 0), text, 12, anchor='mm')
        assert fonts.measure(text, 12) > 0


def test_a_text_is_cut_to_its_room():
    assert fonts.fit('two\nlines ', 12, 500) == 'two lines'
    cut = fonts.fit('a long name of a class', 12, 60)
    assert cut.endswith('...') and fonts.measure(cut, 12) <= 60
    assert fonts.fit('name', 12, 1) == '...'
