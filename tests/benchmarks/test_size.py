"""The plots of cost against size: every model is named, the ticks are plain numbers."""

import re

import pytest

from benchmarks import size


@pytest.mark.parametrize('workload', ['eval', 'train'])
def test_points_are_named_and_ticks_are_plain(workload, tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')
    from matplotlib import figure
    saved = []
    save = figure.Figure.savefig

    def keep(self, *arguments, **options):
        save(self, *arguments, **options)
        saved.append(self)

    monkeypatch.setattr(figure.Figure, 'savefig', keep)
    points = [(model, pixels, batch, 1e11 / size.count_work(model, pixels)[0], 1e9 * batch, 50.0)
              for model in ('tiny', 'base', 'huge') for pixels in (224, 384) for batch in (1, 8)]
    size.draw(points, workload, str(tmp_path / 'size.png'))
    assert (tmp_path / 'size.png').stat().st_size > 10_000
    for axis in saved[0].axes:
        names = [text.get_text() for text in axis.texts]
        assert names == [f'{model} {pixels}' for model in ('tiny', 'base', 'huge')
                         for pixels in (224, 384)]
        ticks = [label.get_text() for direction in (axis.xaxis, axis.yaxis)
                 for label in direction.get_ticklabels() if label.get_text()]
        assert len(ticks) > 6 and all(re.fullmatch(r'[\d.]+(e[+-]\d\d)?', tick) for tick in ticks)
        assert {'1', '10', '100'} <= set(ticks)
