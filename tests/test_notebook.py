"""examples/quickstart.ipynb: it runs as it stands, and shows what it gave."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

NOTEBOOK = pathlib.Path(__file__).parent.parent / 'examples' / 'quickstart.ipynb'
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text())['cells'] if cell['cell_type'] == 'code']

# In a process of its own: a kernel's client leaves threads and sockets behind.
EXECUTE = """
import sys
import nbclient
import nbformat

notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=600, kernel_name='python3').execute()
nbformat.write(notebook, 'executed.ipynb')
"""
# Fewer steps of a run than the notebook's, and clips of it.
FEWER = {
    "'training.steps': '200'": "'training.steps': '30'",
    "'evaluation.every_steps': '50'": "'evaluation.every_steps': '10'",
    'test:0-199': 'test:0-39',
}


def outputs(cell):
    return [output['output_type'] for output in cell['outputs']]


def test_what_is_stored_was_executed_in_order_and_is_small():
    assert [cell['execution_count'] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    assert NOTEBOOK.stat().st_size < 300_000
    assert not [cell for cell in CELLS if 'error' in outputs(cell)]
    pictures = [
        output for cell in CELLS for output in cell['outputs'] if 'image/png' in output.get('data', {})
    ]
    assert len(pictures) == 4
    text = NOTEBOOK.read_text()
    assert '/root' not in text
    assert '/home' not in text
    # The text promises that single frames tell nothing, and the clips nearly everything.
    (shown,) = CELLS[2]['outputs']
    scores = json.loads(''.join(shown['data']['text/plain']).replace("'", '"'))
    assert scores['test'] > 0.9
    assert scores['test_still'] < 0.25


def test_links_lead_somewhere():
    links = re.findall(r'\]\(([^)]+)\)', NOTEBOOK.read_text())
    assert len(links) >= 4
    assert not [link for link in links if not (NOTEBOOK.parent / link).exists()]


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
    text = NOTEBOOK.read_text()
    for many, few in FEWER.items():
        assert text.count(many) == 1
        text = text.replace(many, few)
    (tmp_path / 'notebook.ipynb').write_text(text)
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
    result = subprocess.run(
        [sys.executable, '-c', EXECUTE, 'notebook.ipynb'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    executed = json.loads((tmp_path / 'executed.ipynb').read_text())
    cells = [cell for cell in executed['cells'] if cell['cell_type'] == 'code']
    # Where there was something to see there is again.
    for cell, stored in zip(cells, CELLS, strict=True):
        assert bool(cell['outputs']) == bool(stored['outputs'])
    assert (tmp_path / 'runs' / 'quickstart' / 'eval.json').is_file()
