"""What every test runs on: eight simulated CPU devices, exact float32 products; and Scenic's recorded numbers."""

import functools
import gc
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jaxtyping
import numpy as np
import pytest

from vivit_jax import host_memory
from vivit_jax.models.vivit import ViViT, create_model

# Before any backend starts; an accelerator takes part only if JAX_PLATFORMS asks for it.
jax.config.update('jax_platforms', os.environ.get('JAX_PLATFORMS') or 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_default_matmul_precision', 'highest')
# Most programs run once or twice, and take longer to compile than to run. Optimised as for users are those of files
# that take the fixture `optimised`, and of commands that tests start, unless told otherwise (`tiny.ENVIRONMENT`).
jax.config.update('jax_disable_most_optimizations', True)


def pytest_configure(config: pytest.Config) -> None:
    """Keeps compiled programs for later tests and runs, in each worker for itself: jax writes them in place.

    Commands that tests start keep theirs as they do for users, in a cache folder that is not the user's.

    Memory is given back as ever: commands that run within a test would keep it for all other tests.
    """
    host_memory.SETTINGS.clear()
    worker = getattr(config, 'workerinput', {}).get('workerid', 'main')
    if hasattr(config, 'cache'):
        os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)
        os.environ['XDG_CACHE_HOME'] = str(config.cache.mkdir('commands'))
        jax.config.update('jax_compilation_cache_dir', str(config.cache.mkdir(f'jax-{worker}')))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


@pytest.fixture(scope='module', autouse=True)
def nothing_compiled_is_kept() -> Iterator[None]:
    """Lets go of a file's programs: of all files they are 5 GB in the end, and collecting garbage takes seconds."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope='module')
def optimised() -> Iterator[None]:
    """Machine code as users' programs have it, for all of a file."""
    jax.config.update('jax_disable_most_optimizations', False)
    yield
    jax.config.update('jax_disable_most_optimizations', True)


GOLDEN = Path(__file__).parent / 'golden' / 'scenic'

ATTENTIONS = {
    'spacetime': 'spatio_temporal',
    'factorized_encoder': 'factorised_encoder',
    'factorized_self_attention_block': 'factorised_self_attention',
    'factorized_dot_product_attention': 'factorised_dot_product',
}


class Golden(NamedTuple):
    """A recorded case: its arrays as nested dicts, what was recorded beside them, and the same model as ours."""

    arrays: dict[str, Any]
    record: dict[str, Any]
    model: ViViT


def load_tool(name: str) -> ModuleType:
    """Imports a program of tools/, which is no package."""
    path = Path(__file__).parent.parent / 'tools' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='session')
def golden():
    """Reads a case of Scenic's fixtures by name."""

    @functools.cache
    def read(name: str) -> Golden:
        arrays: dict[str, Any] = {}
        with np.load(GOLDEN / f'{name}.npz') as file:
            for path in file.files:
                *groups, leaf = path.split('/')
                node = arrays
                for group in groups:
                    node = node.setdefault(group, {})
                node[leaf] = file[path]
        record = json.loads((GOLDEN / f'{name}.json').read_text())
        return Golden(arrays, record, create_model(record['num_classes'], **our_settings(record['config'])))

    return read


def our_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Says a model of Scenic's configuration in our words."""
    model = config['model']
    attention, temporal = model['attention_config'], model['temporal_encoding_config']
    encoder = model.get('spatial_transformer', model)
    height, width, *time = model['patches']['size']
    settings = {
        'attention': ATTENTIONS[attention['type']],
        'attention_order': attention.get('attention_order', 'space_time'),
        'num_layers': encoder['num_layers'],
        'num_heads': encoder['num_heads'],
        'width': model['hidden_size'],
        'mlp_dim': encoder['mlp_dim'],
        'classifier': {'0': 'first_token'}.get(model['classifier'], model['classifier']),
        'representation_size': model['representation_size'] or 0,
        'tubelet': (*(time or (1,)), height, width),
    }
    if temporal['method'] == 'temporal_sampling':
        settings |= {
            'embedding': 'uniform_frame_sampling',
            'sampled_frames': temporal['n_sampled_frames'],
        }
    if attention['type'] == 'factorized_encoder':
        baseline = attention.get('spatial_only_baseline', False)
        settings['temporal_layers'] = 0 if baseline else model['temporal_transformer']['num_layers']
    return settings


@pytest.fixture
def run(tool, monkeypatch, capsys):
    """Runs the command of a test file's `tool` in this process; returns what it prints."""

    def command(*options: str) -> str:
        monkeypatch.setattr(sys, 'argv', [Path(tool.__file__).name, *options])
        tool.main()
        return capsys.readouterr().out

    return command


@pytest.fixture
def refused(run, capsys):
    """Runs the command, which ends with a mistake; returns the line that it ends with."""

    def command(*options: str) -> str:
        with pytest.raises(SystemExit) as end:
            run(*options)
        assert end.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return command


@pytest.fixture(scope='session')
def quick_jit():
    """`jax.jit` without the optimisation of machine code, which takes longer than running a tiny model."""
    return functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


@pytest.fixture(scope='session')
def random_params():
    """Parameters of a module, none of them zero, drawn without compiling its initialisers."""

    def draw(model: nn.Module, x: Any, **arguments: Any) -> dict[str, Any]:
        random = np.random.default_rng(0)
        initialise = functools.partial(model.init, **arguments)
        shapes = jax.eval_shape(initialise, jax.random.key(0), x)['params']

        def one(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
            scale = 1.0 / np.sqrt(leaf.shape[0]) if 'kernel' in jax.tree_util.keystr(path) else 0.2
            centre = 1.0 if 'scale' in jax.tree_util.keystr(path) else 0.0
            return (centre + scale * random.normal(size=leaf.shape)).astype(leaf.dtype)

        return jax.tree_util.tree_map_with_path(one, shapes)

    return draw


@pytest.fixture(scope='session')
def equations():
    """Walks a jaxpr: every equation, those of inner functions too, and how often it runs."""

    def walk(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
        for equation in jaxpr.eqns:
            yield equation, times
            inner_times = (
                times * equation.params.get('length', 1) if equation.primitive.name == 'scan' else times
            )
            for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, 'eqns')):
                if hasattr(value, 'eqns'):
                    yield from walk(getattr(value, 'jaxpr', value), inner_times)

    return walk


@pytest.fixture
def unchecked(monkeypatch):
    """Switches off the check of array types, for large models that are traced only, or to see what users see."""
    monkeypatch.setattr(jaxtyping.config, 'jaxtyping_disable', True)
