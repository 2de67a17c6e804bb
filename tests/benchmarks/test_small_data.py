"""The benchmark on small sets: its lots, what it goes on from, its table."""

import json

import numpy as np

from benchmarks import small_data
from benchmarks.small_data import SETS, draw_lots, format_table, read_results, write_folders


def test_lots_depend_on_their_number_alone():
    first, second = draw_lots(0, 'a'), draw_lots(0, 'b')
    assert (first.known, first.new) == (second.known, second.new) != draw_lots(1, 'a')[1:]
    assert sorted(first.known + first.new) == list(range(10))
    again = draw_lots(0, 'a').rng.permutation(100)
    assert np.array_equal(first.rng.permutation(100), again)
    assert not np.array_equal(second.rng.permutation(100), again)


def test_pictures_are_drawn_of_each_class(tmp_path):
    images = np.arange(40, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    labels = np.arange(40) % 4
    folder = write_folders(str(tmp_path / 'set'), images, labels, {1: 5, 3: 2},
                           np.random.default_rng(0))
    found = {path.name: len(list(path.iterdir())) for path in (tmp_path / 'set').iterdir()}
    assert folder == str(tmp_path / 'set') and found == {'class 1': 5, 'class 3': 2}


def test_it_goes_on_where_it_was_and_prints_the_table(tmp_path, monkeypatch, capsys):
    """What stands in results.jsonl is not measured again, but for a line that was cut short."""
    names = list(SETS)
    measured = []

    def measure(number, name, sources, output):
        measured.append((number, name))
        return {'draw': number, 'set': name, 'finetune': 90.0 + number, 'probe': 80.0,
                'scratch': 92.0}

    monkeypatch.setattr(small_data, 'measure', measure)
    monkeypatch.setattr(small_data, 'load_sources', lambda folder: {})
    only = f'{names[2]};two classes'
    monkeypatch.setattr('sys.argv', ['small_data', '--output', f'{tmp_path}/some', '--only', only])
    small_data.main()
    assert [name for _, name in measured] == [
        name for name in names if name == names[2] or 'two classes' in name]
    measured.clear()
    monkeypatch.setattr('sys.argv', ['small_data', '--output', str(tmp_path), '--draws', '2'])
    line = {'draw': 0, 'set': names[0], 'finetune': 50.0, 'probe': 60.0, 'scratch': 40.0}
    (tmp_path / 'results.jsonl').write_text(json.dumps(line) + '\n{"draw": 0, "se')
    small_data.main()
    assert measured == [(number, name) for number in (0, 1) for name in names][1:]
    assert len(read_results(tmp_path / 'results.jsonl')) == 2 * len(names)
    table = format_table(read_results(tmp_path / 'results.jsonl'))
    assert table in capsys.readouterr().out
    rows = table.splitlines()[2:]
    assert rows[0] == f'| {names[0]} | 2 | 70.5 (50.0 to 91.0) | 70.0 (60.0 to 80.0) | ' \
        '66.0 (40.0 to 92.0) | +0.5 |'
    assert rows[1].endswith('| 90.5 (90.0 to 91.0) | 80.0 (80.0 to 80.0) | 92.0 (92.0 to 92.0) '
                            '| -1.5 |')
