"""The picture of what a token sees: its tables, and that it is drawn."""

import runpy
from pathlib import Path

import matplotlib
import numpy as np

TOOL = Path(__file__).parent.parent / 'tools' / 'draw_attention.py'


def test_tables_and_picture():
    tool = runpy.run_path(str(TOOL))
    seen, after_block = tool['seen'], tool['after_block']
    time, row, column = np.unravel_index(np.arange(64), (4, 4, 4))

    def expected(*keys):
        return np.logical_and.reduce([key[:, None] == key for key in keys])

    both = expected(time) | expected(row, column)
    np.testing.assert_array_equal(seen('time_and_space'), both)
    np.testing.assert_array_equal(seen('window'), expected(row // 2, column // 2))
    np.testing.assert_array_equal(after_block(('height', 'width')), expected(time))
    # Upwards of a block: the window's tokens have seen theirs when the grid looks at them.
    assert after_block(('window', 'grid')).all()
    np.testing.assert_array_equal(after_block(('time', 'height')), expected(column))

    matplotlib.use('Agg')
    figure = tool['draw']()
    words = {text.get_text() for text in figure.axes[0].texts}
    assert words >= {'local_global', 'divided', 'window', 'grid', 'height', 'after one block'}
