"""The house: which module may know which, and what importing costs."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

import vivit_jax

ROOT = pathlib.Path(__file__).parent.parent
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / 'vivit_jax').rglob('*.py'))

FLOORS = {
    'vivit_jax.main': 4,
    'vivit_jax.data.check': 4,
    'vivit_jax.train': 3,
    'vivit_jax.train_step': 3,
    'vivit_jax.run': 3,
    'vivit_jax.evaluate': 3,
    'vivit_jax.results': 3,
    'vivit_jax.closing': 3,
    'vivit_jax.inference': 3,
    'vivit_jax.inputs': 3,
    'vivit_jax.predict.__main__': 4,
    'vivit_jax.report.__main__': 4,
    'vivit_jax.dry_run': 3,
    'vivit_jax.experiment': 3,
    'vivit_jax.feeding': 3,
    'vivit_jax.init_from': 3,
    'vivit_jax.bad_videos': 3,
    'vivit_jax.describing': 3,
    'vivit_jax.checkpoint': 2,
    'vivit_jax.orbax_s3': 2,
    'vivit_jax.export': 2,
    'vivit_jax.pretrained': 2,
    'vivit_jax.fitting': 2,
    'vivit_jax.data.pipeline': 2,
}


def name_of(path):
    return '.'.join(path.with_suffix('').parts).removesuffix('.__init__')


KNOWN = {name_of(module) for module in MODULES} - {'vivit_jax'}


def floor(module):
    homes = {'vivit_jax.formats': 2, 'vivit_jax.report': 3}
    package = '.'.join(module.split('.')[:2])
    return FLOORS[module] if module in FLOORS else homes.get(package, 1)


def imported(path):
    """Modules of the package that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # A module taken out of its package is that module; anything else is of the package itself.
            parts = {f'{node.module}.{alias.name}' for alias in node.names}
            names |= (parts & KNOWN) or {node.module}
    return names & KNOWN


@pytest.mark.parametrize('path', MODULES, ids=str)
def test_imports_run_downwards(path):
    here = name_of(path)
    above = {name for name in imported(path) if floor(name) > floor(here)}
    assert not above, f'{here} (floor {floor(here)}) imports from above: {above}'


def test_there_are_no_cycles():
    edges = {name_of(path): imported(path) - {name_of(path)} for path in MODULES}
    done = set()
    while len(done) < len(edges):
        free = {name for name, needs in edges.items() if name not in done and needs <= done}
        assert free, f'these import one another: {sorted(set(edges) - done)}'
        done |= free


@pytest.mark.parametrize('path', MODULES, ids=str)
def test_models_and_data_do_not_know_each_other(path):
    here = name_of(path)
    if here.startswith('vivit_jax.models'):
        assert not {name for name in imported(path) if name.startswith('vivit_jax.data')}
    if here.startswith('vivit_jax.data'):
        assert not {name for name in imported(path) if name.startswith('vivit_jax.models')}


@pytest.mark.parametrize('path', MODULES, ids=str)
def test_only_floors_above_read_configurations(path):
    text = (ROOT / path).read_text()
    if floor(name_of(path)) < 3 and not name_of(path).startswith('vivit_jax.config'):
        assert 'ml_collections' not in text
    assert not re.search(r'config\.get\(|cfg\.get\(', text), 'a misspelt key would stay silent'


def loaded_by(statement):
    code = f'import sys; {statement}; print(*sorted(sys.modules))'
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(result.stdout.split())


def test_sources_load_no_jax():
    above = ('pipeline', 'check')
    sources = [name_of(path) for path in MODULES if path.parts[1] == 'data' and path.stem not in above]
    assert len(sources) >= 5
    assert not loaded_by(f'import vivit_jax, {", ".join(sources)}') & {'jax', 'tensorflow', 'torch'}


def test_the_core_loads_neither_tensorflow_nor_torch():
    everything = ', '.join(name_of(path) for path in MODULES)
    assert not loaded_by(f'import {everything}') & {'tensorflow', 'torch', 'medmnist', 'matplotlib'}


def test_public_names():
    for name in vivit_jax.__all__:
        assert callable(getattr(vivit_jax, name))
    assert set(vivit_jax.__all__) <= set(dir(vivit_jax))
    with pytest.raises(AttributeError, match=r"no 'create_modle'; it has .*create_model"):
        vivit_jax.create_modle  # noqa: B018


def test_no_file_is_crowded():
    for path in MODULES:
        assert len((ROOT / path).read_text().splitlines()) <= 450, path


def test_the_readme_names_what_is_there():
    text = (ROOT / 'README.md').read_text()
    assert '@@' not in text
    named = re.findall(r'(?:configs|tools|vivit_jax)/\w+\.(?:py|md)', text)
    assert len(named) >= 8
    for name in named:
        assert (ROOT / name).is_file(), name
    assert 'pip install -e . && python -m vivit_jax.main --config=configs/moving_digits.py' in text
    test_command = "pip install -e '.[test]' && pytest"
    assert test_command in text
    assert test_command in (ROOT / '.ci' / 'run').read_text()
