"""Weights and checkpoints that are broken or hostile: each is read as what it is, or refused in one clear line."""

import contextlib
import importlib
import io
import json
import pathlib
import pickle
import re
import shutil
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import hostile
import jax
import msgpack
import numpy as np
import pytest
from conftest import load_tool
from flax.serialization import msgpack_serialize
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from safetensors.numpy import save as safetensors_bytes

from tiny import DIGITS, SETTINGS
from vivit_jax import checkpoint, checksums, experiment, export, formats, inference
from vivit_jax import config as config_module
from vivit_jax.formats import account, containers, own, weights
from vivit_jax.formats.weights import flat
from vivit_jax.models.vivit import create_model

GOLDEN = pathlib.Path(__file__).parent / 'golden'
FORMATS = GOLDEN / 'formats'
MEBI = 2**20
pytestmark = pytest.mark.filterwarnings('ignore::hypothesis.errors.HypothesisWarning')  # of long values
ARRAYS = {
    'a/b': np.arange(6, dtype=np.float32).reshape(2, 3),
    'a/c': np.ones((), np.int32),
    'half': np.ones(4, np.float16),
    'long/' * 20 + 'name': np.zeros((3, 1, 2), np.float64),
}


@pytest.fixture(autouse=True)
def _as_users_see_it(unchecked):
    """Without the check of array types, which takes longest, and would object first."""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder of its own for the cases of a test, with nothing that may be read beside it."""
    return tmp_path_factory.mktemp('cases') / 'inside'


@pytest.fixture(autouse=True)
def _fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


@pytest.fixture(scope='module', autouse=True)
def _shapes_once():
    """Traces each model once: what shapes a model has is not what is tried here, and takes longest."""
    jax.block_until_ready(jax.random.key(0))  # what takes long to start does so without bounds
    with contextlib.suppress(ImportError):
        importlib.import_module('torch')
    known: dict[Any, Any] = {}

    def eval_shape(function: Any, key: Any, video: Any) -> Any:
        name = (function.__self__, video.shape)
        if name not in known:
            known[name] = jax.eval_shape(function, key, video)
        return known[name]

    class Once:
        def __getattr__(self, name: str) -> Any:
            return eval_shape if name == 'eval_shape' else getattr(jax, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, 'jax', Once())
        yield


def npz_bytes(arrays: Mapping[str, np.ndarray], *, packed: bool = True) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(file, **arrays)
    return file.getvalue()


def msgpack_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    return msgpack_serialize(weights.nested(arrays))


VALID = {
    'npz': npz_bytes(ARRAYS),
    'npz, not packed': npz_bytes(ARRAYS, packed=False),
    'safetensors': safetensors_bytes(ARRAYS),
    'msgpack': msgpack_bytes(ARRAYS),
}


def read_all(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads every array of a file, as a conversion does; what comes of it holds what the file holds."""
    sort, arrays = containers.read(path)
    assert sort in containers.NAMES
    taking = weights.Conversion(str(path), 'scenic', arrays)
    found = {name: taking.peek(name) for name in taking.names()}
    assert sum(array.nbytes for array in found.values()) <= 8 * (100 * MEBI + 20 * path.stat().st_size)
    assert all(array.dtype == np.float32 for array in found.values())
    return found


def tried(folder: pathlib.Path, content: bytes, name: str = 'weights') -> hostile.Outcome:
    path = folder / name
    path.write_bytes(content)
    return hostile.survive(lambda: read_all(path), path, folder=folder)


# --- files of arrays


@pytest.mark.parametrize('sort', list(VALID))
def test_broken_bytes_of_arrays(folder, sort):
    assert not tried(folder, VALID[sort]).refused
    others = [content for other, content in VALID.items() if other != sort]

    @hostile.fuzz(150)
    @given(hostile.broken(VALID[sort], *others))
    def attempt(content):
        tried(folder, content)

    attempt()


NUMBERS_OF_BYTES = st.sampled_from([0, 1, 7, 10**9, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1])
SIDES = st.one_of(
    st.integers(0, 4),
    st.sampled_from([-1, 2**31, 2**62, 10**9, 10**18, 10**30, 10**1000, True, None, 1.5, '3', ()]),
)
SHAPES = st.one_of(st.lists(SIDES, max_size=4), st.just([1] * 40), st.just([10**9, 10**9]))
TYPES = (
    '<f4', '>f8', '<f2', '<i8', '|b1', '<c16', '|V2', '|V4', '|O', 'O', 'object', '<U5', '|S0', '<M8[ns]',
    '<f99', '', '|V2147483647', '<U999999999', 'float32', 'bfloat16', 'int4', 'float8_e4m3fn', 'f4,f4',
    'F32', 'BF16', 'F8_E4M3', 'F4', 'I64', 'U8', 'BOOL', 'x' * 100,
)  # fmt: skip
# Of expressions that are to be a header: too deep, too long, or what must not be computed.
EXPRESSIONS = (
    '', '{', '(' * 5_000, '[' * 9_000, '-' * 9_000 + '1', '{1:' * 1_500, '9' * 9_000, '9**9**9**9',
    "'a'*10**10", "__import__('os').system('true')",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1L,), }", '\0', 'é' * 50,
    "{'descr': '<f4', 'fortran_order': 3, 'shape': (1,), }", "{'descr': '<f4', 'shape': (1,), }", '[1]',
    'None', "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }", '1+' * 2_000 + '1',
    'lambda: 0', "{'descr': ('<f4', (1000000, 1000000)), 'fortran_order': False, 'shape': (), }",
)  # fmt: skip


@st.composite
def npy(draw: st.DrawFn) -> bytes:
    """Draws a member of an npz whose header may say anything."""
    header = draw(
        st.one_of(
            st.builds(
                lambda descr, shape, order: repr(
                    {'descr': descr, 'fortran_order': order, 'shape': tuple(shape)}
                ),
                st.sampled_from(TYPES),
                SHAPES,
                st.sampled_from([False, True, None, 'x']),
            ),
            st.sampled_from(EXPRESSIONS),
            hostile.TEXT,
        )
    ).encode('utf-8', 'replace')
    version = draw(st.sampled_from([(1, 0), (1, 0), (1, 0), (2, 0), (3, 0), (4, 0), (0, 0)]))
    length = draw(st.one_of(st.just(len(header)), st.just(len(header)), NUMBERS_OF_BYTES))
    size = struct.pack('<H', length % 2**16) if version == (1, 0) else struct.pack('<I', length % 2**32)
    data = draw(st.one_of(st.binary(max_size=100), st.just(bytes(24)), st.just(bytes(96))))
    return b'\x93NUMPY' + bytes(version) + size + header + data


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """Draws a zip archive with members of any names and claims."""
    file = io.BytesIO()
    methods = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    with zipfile.ZipFile(file, 'w') as archive:
        archive.NameToInfo = _Forgetful()  # duplicates are what it would warn of
        for content in draw(st.lists(npy(), min_size=1, max_size=3)):
            name = draw(
                st.one_of(
                    st.sampled_from(['a', 'a/b', '../../x', '/etc/passwd', 'embedding/kernel']), hostile.TEXT
                )
            )
            info = zipfile.ZipInfo(f'{name.encode("utf-8", "replace").decode()[:1000]}.npy'.replace('\0', ''))
            info.compress_type = draw(st.sampled_from(methods[:2] * 4 + methods))
            archive.writestr(info, content)
    found = bytearray(file.getvalue())
    for _ in range(draw(st.integers(0, 2))):
        entry = found.rfind(b'PK\x01\x02') if draw(st.booleans()) else found.find(b'PK\x01\x02')
        # Of an entry of the table of contents: version, flags (encrypted), method, sum, sizes, place; and its length.
        place, size = draw(
            st.sampled_from([(6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (42, 4), (28, 2)])
        )
        number = draw(st.one_of(st.integers(0, 100), NUMBERS_OF_BYTES)) % 256**size
        found[entry + place : entry + place + size] = number.to_bytes(size, 'little')
    return bytes(found)


class _Forgetful(dict):
    """Names of members that are never known already."""

    def __contains__(self, name: object) -> bool:
        return False


def test_hostile_archives(folder):
    @hostile.fuzz(200)
    @given(archives())
    def attempt(content):
        tried(folder, content)

    attempt()


def test_an_archive_that_unpacks_to_more_than_memory_is_refused(folder):
    """A megabyte of zeros packed a thousandfold, once, and as many members upon the same bytes."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open('embedding/kernel.npy', 'w', force_zip64=True) as member,
    ):
        header = {'descr': '<f4', 'fortran_order': False, 'shape': (64 * MEBI,)}
        np.lib.format.write_array_header_1_0(member, header)
        for _ in range(256):
            member.write(bytes(MEBI))
    outcome = tried(folder, file.getvalue())
    assert 'claims to hold 268,435,' in str(outcome.error)
    # The same without the bytes: a header of a few, and a table of contents that says as much.
    small = bytearray(npz_bytes({'embedding/kernel': np.zeros(1, np.float32)}))
    entry = small.rfind(b'PK\x01\x02')
    small[entry + 24 : entry + 28] = (2**32 - 2).to_bytes(4, 'little')
    assert 'claims to hold 4,294,967,294 bytes' in str(tried(folder, bytes(small)).error)
    claims = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000000), }"
    with zipfile.ZipFile(file := io.BytesIO(), 'w') as archive:
        archive.writestr('a.npy', b'\x93NUMPY\x01\0' + struct.pack('<H', len(claims)) + claims + bytes(40))
    message = str(tried(folder, file.getvalue()).error)
    assert 'a cannot be read (cut off: its header claims (1,000,000,000, 1,000,000,000) of float32' in message


@st.composite
def safetensors(draw: st.DrawFn) -> bytes:
    """Draws a safetensors file whose header may say anything."""
    offsets = st.one_of(
        st.lists(
            st.one_of(st.integers(-1, 64), st.sampled_from([2**32, 2**63, 2**64, 1.5, None])), max_size=3
        ),
        st.sampled_from([[0, 24], [0, 48], [24, 48], [24, 24]]),
    )
    entry = st.fixed_dictionaries(
        {
            'dtype': st.sampled_from(TYPES),
            'shape': st.one_of(SHAPES, st.just([2, 3])),
            'data_offsets': offsets,
        }
    )
    names = st.one_of(st.sampled_from(['a', 'b', '__metadata__']), hostile.TEXT)
    header = draw(
        st.one_of(
            st.dictionaries(names, st.one_of(entry, entry, hostile.VALUES), max_size=3).map(hostile.json_bytes),
            hostile.no_json(),
            st.just(b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},"a":{"dtype":"F32","shape":[6],'
                    b'"data_offsets":[0,24]}}'),
        )
    )  # fmt: skip
    length = draw(st.one_of(st.just(len(header)), st.just(len(header)), NUMBERS_OF_BYTES))
    return length.to_bytes(8, 'little') + header + bytes(draw(st.sampled_from([0, 24, 48, 100])))


def test_hostile_safetensors(folder):
    @hostile.fuzz(200)
    @given(safetensors())
    def attempt(content):
        tried(folder, content)

    attempt()


@st.composite
def flax_trees(draw: st.DrawFn) -> bytes:
    """Draws what msgpack may hold in place of named arrays."""
    shapes = st.lists(st.one_of(st.integers(0, 4), st.sampled_from([-1, 2**31, 2**62, 10**9])), max_size=3)
    array = st.builds(
        lambda shape, dtype, data, kind: msgpack.ExtType(kind, msgpack.packb((shape, dtype, data))),
        st.one_of(shapes, hostile.PLAIN.filter(_packs)),
        st.one_of(st.sampled_from(TYPES), st.sampled_from(['float32', 'float16', 'int32'])),
        st.sampled_from([b'', bytes(24), bytes(4), bytes(7)]),
        st.sampled_from([1, 1, 1, 1, 2, 3, 5, 127]),
    )
    keys = st.one_of(
        st.sampled_from(['params', 'a', 'b', 'a/b']), st.integers(0, 3), hostile.TEXT.filter(_packs)
    )
    chunks = st.fixed_dictionaries(
        {
            '__msgpack_chunked_array__': st.booleans(),
            'shape': st.dictionaries(
                st.sampled_from(['0', '1', 'x']), st.sampled_from([0, 2, 3, -1, 10**9, None])
            ),
            'chunks': st.dictionaries(
                st.sampled_from(['0', '1', 'x']), st.one_of(array, st.none()), max_size=2
            ),
        }
    )
    leaves = st.one_of(array, array, chunks, hostile.PLAIN.filter(_packs))
    tree = st.recursive(
        leaves, lambda inner: st.dictionaries(keys, inner, min_size=1, max_size=3), max_leaves=6
    )
    return msgpack.packb(draw(tree))


def _packs(value: Any) -> bool:
    """Tells whether msgpack can write a value at all."""
    try:
        msgpack.packb(value)
    except (OverflowError, ValueError):
        return False
    return True


# Each claims what four bytes of length can, or is nested as deep as it is long.
MSGPACK_CLAIMS = (
    b'\xdf\xff\xff\xff\xff', b'\x81\xa1a\xdd\xff\xff\xff\xff', b'\x81\xa1a\xc6\xff\xff\xff\xff',
    b'\x81\xa1a\xdb\xff\xff\xff\xff', b'\x81\xa1a\xc9\xff\xff\xff\xff\x01', b'\xde\xff\xff',
    b'\x81\xa1a' * 50_000, b'\x81\xa1a' * 300 + b'\x01', b'\x81\xa1a' * 900 + b'\x01',
    b'\x81\xa1a' + b'\x91' * 100_000 + b'\x01', b'\x81\x91\x01\x02', b'\x81\xc0\x01', b'\x80',
)  # fmt: skip


def test_hostile_msgpack(folder):
    for content in MSGPACK_CLAIMS:
        tried(folder, content)

    @hostile.fuzz(150)
    @given(flax_trees())
    def attempt(content):
        tried(folder, content)

    attempt()


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return pathlib.Path.touch, (self.mark,)


def test_hostile_files_of_pytorch(folder):
    torch = pytest.importorskip('torch', reason='reads with PyTorch, which is not installed')

    def saved(content: Any, **options: Any) -> bytes:
        torch.save(content, file := io.BytesIO(), **options)
        return file.getvalue()

    state = {'model': {name: torch.from_numpy(array.copy()) for name, array in ARRAYS.items()}, 'epoch': 3}
    valid, old = saved(state), saved(state, _use_new_zipfile_serialization=False)
    mark = folder / 'mark'
    trap = pickle.dumps(Trap(mark))
    # A number that stands for 4 GB of them, and tensors that are none of memory.
    odd = [
        saved({'a': torch.as_strided(torch.ones(1), (10**9,), (0,))}),
        saved({'a': torch.ones(2, requires_grad=True), 'b': torch.nn.Parameter(torch.ones(2))}),
        saved({'a': torch.ones(2, 2).to_sparse()}),
        saved({'a': torch.ones(2, device='meta')}),
        saved({'a': torch.complex(torch.ones(2), torch.ones(2))}),
        saved([1, 2]),
        saved({'a': {'b': {3: torch.ones(1)}}, 'a/b': {3: torch.ones(1)}}),
        saved({'trap': Trap(mark)}),
        saved({'trap': Trap(mark)}, _use_new_zipfile_serialization=False),
        trap,
    ]
    for content in (valid, old, *odd):
        tried(folder, content)

    @hostile.fuzz(120)
    @given(st.one_of(hostile.broken(valid, old, trap), hostile.broken(old, valid, trap)))
    def attempt(content):
        tried(folder, content)

    attempt()
    assert not mark.exists()


# --- what is made of the arrays

CASES = {
    'scenic': GOLDEN / 'scenic' / 'E01_checkpoint' / 'new_layout' / 'checkpoint',
    'vit_npz': FORMATS / 'vit_npz_repr' / 'ckpt.npz',
    'big_vision, looped': FORMATS / 'bv_tok_loop' / 'ckpt.npz',
    'big_vision, scanned': FORMATS / 'bv_gap_scan_rep_sincos' / 'ckpt.npz',
    'big_vision, two towers': FORMATS / 'bv_map_loop' / 'ckpt.npz',
    'hf_vit': FORMATS / 'hf_vit_cls' / 'model.safetensors',
    'hf_vivit': FORMATS / 'hf_vivit_cls' / 'model.safetensors',
    'hf_timesformer': FORMATS / 'hf_timesformer' / 'model.safetensors',
    'timesformer': FORMATS / 'fb_timesformer' / 'model.safetensors',
    'timm': FORMATS / 'timm_vit_token' / 'model.safetensors',
}
PROCESSOR = {
    'do_rescale': True, 'rescale_factor': 1 / 255, 'do_normalize': True, 'image_mean': [0.48, 0.45, 0.4],
    'image_std': [0.2, 0.2, 0.2], 'size': {'height': 16, 'width': 16},
}  # fmt: skip


def odd_array(array: np.ndarray) -> st.SearchStrategy[np.ndarray]:
    """Draws something in place of an array."""
    shapes = st.lists(st.sampled_from([0, 1, 2, 3, 7, 16]), max_size=6)
    number = st.sampled_from([0.0, np.nan, np.inf, -np.inf, 3e38, -1.0])
    return st.one_of(
        shapes.map(lambda shape: np.zeros(shape, np.float32)),
        st.just(array[..., :0]) if array.ndim else st.just(np.zeros((0,), np.float32)),
        st.just(np.zeros((0, 10**9, 10**9), np.float32)),
        st.permutations(range(array.ndim)).map(lambda axes: array.transpose(axes)),
        st.just(array.ravel()),
        st.just(array[None]),
        st.sampled_from(
            [np.int64, np.bool_, np.float64, np.float16, np.complex64, '<U4', 'V3', 'M8[ns]']
        ).map(lambda dtype: np.zeros(array.shape, dtype)),
        number.map(lambda value: np.where(np.arange(array.size).reshape(array.shape) == 0, value, array)),
        st.just(np.concatenate([array, array], axis=-1)) if array.ndim else st.just(np.ones(2)),
        st.just(np.concatenate([array, array])) if array.ndim else st.just(np.ones(2)),
    )


@st.composite
def changed(draw: st.DrawFn, arrays: hostile.Held) -> hostile.Held:
    """Draws arrays of a file of which some have other names, shapes or numbers."""
    found = dict(arrays.value)
    for _ in range(draw(st.integers(1, 2))):
        if not found:
            break
        name = draw(st.sampled_from(sorted(found)))
        kind = draw(st.sampled_from(['array', 'array', 'remove', 'rename', 'layer', 'copy', 'part']))
        if kind == 'array':
            found[name] = draw(odd_array(np.asarray(found[name])))
        elif kind == 'remove':
            del found[name]
        elif kind == 'rename':
            found[draw(st.one_of(st.sampled_from(sorted(found)), hostile.TEXT))] = found.pop(name)
        elif kind == 'layer':
            number = draw(st.sampled_from(['2', '7', '999999999', '00', '10' * 200, '²', '-1']))
            for part in ('encoderblock_', 'blocks.', 'layer.'):
                names = [other for other in found if f'{part}1' in other]
                found |= {other.replace(f'{part}1', f'{part}{number}'): found[other] for other in names}
        elif kind == 'copy':
            found[draw(hostile.TEXT) + name] = found[name]
        else:
            part = draw(st.sampled_from(name.replace('.', '/').split('/')))
            found = {other: array for other, array in found.items() if part not in other}
    was = {name: id(array) for name, array in arrays.value.items()}
    new = {
        name[:80]: (array.shape, str(array.dtype))
        for name, array in found.items()
        if was.get(name) != id(array)
    }
    return hostile.Held(found, f'changed {new}, without {sorted(set(arrays.value) - set(found))}')


def loaded(path: pathlib.Path, num_heads: int | None) -> weights.Weights:
    """Loads weights as `init_from` and `predict` do, and looks at what came of it."""
    found = formats.load(path, num_heads)
    assert found.kind in weights.KINDS
    model = create_model(found.num_classes, **found.model)
    arrays = flat(found.params)
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in arrays.values())
    assert arrays.keys() == found.origin.keys()
    assert (
        'output_projection/kernel' not in arrays
        or arrays['output_projection/kernel'].shape[1] == found.num_classes
    )
    assert found.grid is None or (len(found.grid) == 3 and min(found.grid) > 0)
    assert all(isinstance(name, str) for name in found.class_names)
    assert len(found.class_names) in (0, found.num_classes)
    assert all('\n' not in line for line in account.as_is(found).lines())
    json.dumps(account.as_is(found).to_json())
    assert arrays['embedding/kernel'].shape[-1] == model.width
    return found


@pytest.mark.parametrize('case', list(CASES))
def test_arrays_that_make_no_model(folder, case, monkeypatch):
    """Other names, shapes and numbers; and other settings beside them."""
    source = CASES[case]
    sort, found = containers.read(source)
    valid = {name: np.asarray(found[name]) for name in found}
    settings = containers.read_json(source.parent / 'config.json')
    heads = settings.get('num_heads', 4) if case == 'timm' else None
    if case == 'timesformer':
        heads = 4
    path = folder / source.name
    shutil.copy(source, path)
    now: dict[str, np.ndarray] = {}
    monkeypatch.setattr(containers, 'read', lambda path: (sort, dict(now)))

    def attempt(arrays, sidecar, processor, heads):
        now.clear()
        now.update(arrays)
        (folder / 'config.json').write_bytes(sidecar)
        (folder / 'preprocessor_config.json').write_bytes(processor)
        return hostile.survive(lambda: loaded(path, heads), folder, folder=folder)

    plain, processor = hostile.json_bytes(settings), hostile.json_bytes(PROCESSOR)
    outcome = attempt(valid, plain, processor, heads)
    assert not outcome.refused, outcome.error

    @hostile.fuzz(80)
    @given(
        changed(hostile.Held(valid)),
        st.one_of(st.just(heads), st.just(heads), st.sampled_from([-1, 0, 1, 3, 10**9, 2**70])),
    )
    def arrays(drawn, hint):
        attempt(drawn.value, plain, processor, hint)

    arrays()
    if not case.startswith(('hf', 'tim')):
        return

    @hostile.fuzz(60)
    @given(
        st.one_of(
            st.tuples(hostile.json_files(settings), st.just(processor)),
            st.tuples(st.just(plain), hostile.json_files(PROCESSOR)),
        )
    )
    def beside(drawn):
        attempt(valid, *drawn, heads)

    beside()


# --- folders: parts of Hugging Face's, and checkpoints of this package


def test_parts_of_a_folder_are_looked_for_in_it_alone(folder):
    """Whatever an index names as the file of an array: nothing outside the folder is opened."""
    source = FORMATS / 'hf_vivit_cls'
    arrays = load_file(source / 'model.safetensors')
    outside = folder.parent / 'outside.safetensors'
    outside.write_bytes(safetensors_bytes(arrays))
    (folder / 'part.safetensors').write_bytes(safetensors_bytes(arrays))
    shutil.copy(source / 'config.json', folder)
    index = {'weight_map': dict.fromkeys(arrays, 'part.safetensors')}
    names = (
        '../outside.safetensors',
        str(outside),
        'x/../../outside.safetensors',
        './../outside.safetensors',
    )
    path = folder / 'model.safetensors.index.json'

    def attempt(content):
        path.write_bytes(content)
        return hostile.survive(lambda: loaded(folder, None), folder, folder=folder)

    assert not attempt(hostile.json_bytes(index)).refused
    for name in names:
        hostile_index = {'weight_map': {**index['weight_map'], 'classifier.bias': name}}
        assert 'must be the name of a file beside it' in str(attempt(hostile.json_bytes(hostile_index)).error)

    parts = st.one_of(
        st.sampled_from([*names, 'part.safetensors', 'config.json', path.name, '.']), hostile.VALUES
    )

    @hostile.fuzz(80)
    @given(
        st.one_of(
            st.dictionaries(
                st.one_of(st.sampled_from(sorted(arrays)), hostile.TEXT), parts, max_size=3
            ).map(lambda map: hostile.json_bytes({'weight_map': map})),
            hostile.json_files({'weight_map': dict(list(index['weight_map'].items())[:2])}),
        )
    )  # fmt: skip
    def case(content):
        attempt(content)

    case()


@pytest.fixture(scope='module')
def saved(tmp_path_factory, random_params):
    """A checkpoint of this package, and the arrays in it."""
    config = config_module.load(DIGITS, SETTINGS | {'data.num_classes': '(3,)'})
    model = create_model(3, **config.model)
    params = random_params(model, np.zeros((1, *experiment.clip_shape(config)), np.float32))
    place = tmp_path_factory.mktemp('saved') / 'run'
    own.save(place, params, config.to_dict(), ['a', 'b', 'c'])
    return place, params


def resealed(step: pathlib.Path) -> None:
    """Writes the checksums of what is there now, as whoever breaks a checkpoint on purpose would."""
    (step / checksums.NAME).unlink(missing_ok=True)
    checksums.write(step)


def test_hostile_meta_of_a_checkpoint(folder, saved, monkeypatch):
    """What is beside the arrays: the configuration, the classes, their numbers; the checksums are those of that."""
    place, params = saved
    run = folder / 'run'
    shutil.copytree(place, run)
    path = run / 'checkpoints' / '0' / 'meta' / 'metadata'
    valid = json.loads(path.read_text())
    monkeypatch.setattr(checkpoint, 'read_arrays', lambda folder: params)

    def attempt(content):
        path.write_bytes(content)
        resealed(run / 'checkpoints' / '0')
        outcome = hostile.survive(
            lambda: loaded(run / 'checkpoints' / '0', None), run, folder=folder, mebibytes=2_000
        )
        if not outcome.refused:
            hostile.survive(
                lambda: inference.load(run), run, 'config.', 'model.', folder=folder, mebibytes=2_000
            )
        return outcome

    assert not attempt(hostile.json_bytes(valid)).refused

    @hostile.fuzz(150)
    @given(hostile.json_files(valid))
    def case(content):
        attempt(content)

    case()


def test_parameters_that_are_not_the_models(folder, saved, monkeypatch):
    """Arrays of other names, shapes and types than the model's are refused before anything is computed."""
    place, params = saved
    arrays = flat(params)
    now = [params]
    monkeypatch.setattr(checkpoint, 'read_arrays', lambda folder: now[0])

    @hostile.fuzz(60)
    @given(changed(hostile.Held(arrays)))
    def case(drawn):
        now[0] = weights.nested(drawn.value)
        outcome = hostile.survive(lambda: formats.load(place), place, mebibytes=2_000)
        same = {name: (a.shape, a.dtype.kind) for name, a in drawn.value.items()} == {
            name: (a.shape, a.dtype.kind) for name, a in arrays.items()
        }
        assert outcome.refused != same

    case()


def test_broken_files_of_a_checkpoint(folder, saved):
    """Every file that Orbax wrote, broken; and the same with the checksums of the broken ones."""
    place, _ = saved
    run = folder / 'run'
    step = run / 'checkpoints' / '0'
    files = sorted(
        path.relative_to(place) for path in place.rglob('*') if path.is_file() and path.stat().st_size < 2**20
    )

    @hostile.fuzz(60)
    @given(st.sampled_from(files), st.data())
    def case(name, data):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(place, run)
        content = (place / name).read_bytes()
        is_json = content[:1] in b'{['
        strategy = hostile.json_files(json.loads(content)) if is_json and content else hostile.broken(content)
        (run / name).write_bytes(data.draw(strategy))
        if data.draw(st.booleans()):
            resealed(step)
        hostile.survive(lambda: formats.load(step), run, folder=folder, mebibytes=2_000, seconds=10)

    case()


# --- exports, Scenic's configurations


@pytest.fixture(scope='module')
def exported(tmp_path_factory, saved):
    """An exported model."""
    place, params = saved
    config = config_module.load(str(place / 'config.json'))
    model = create_model(3, **config.model)
    folder = tmp_path_factory.mktemp('exported') / 'model'
    clip = experiment.clip_shape(config)
    metadata = export.Metadata(
        class_names=('a', 'b', 'c'), heads={'label': 3}, probabilities='softmax', clip=clip, stride=1,
        short='loop', short_side=0, crop=clip[1:3], temporal_views=1, spatial_views=1, average='logits',
        model=export.model_settings(model), source='run',
    )  # fmt: skip
    export.save(folder, model, params, metadata)
    return folder


def test_hostile_metadata_of_an_export(folder, exported, monkeypatch):
    run = folder / 'exported'
    shutil.copytree(exported, run)
    valid = json.loads((run / 'model.json').read_text())
    known = {path: jax.export.deserialize(bytearray(path.read_bytes())) for path in run.glob('*.stablehlo')}
    by_content = {path.read_bytes(): program for path, program in known.items()}
    monkeypatch.setattr(jax.export, 'deserialize', lambda content: by_content[bytes(content)])

    def attempt(content):
        (run / 'model.json').write_bytes(content)
        return hostile.survive(lambda: export.load(run), run, folder=folder, mebibytes=1_000)

    assert not attempt(hostile.json_bytes(valid)).refused

    @hostile.fuzz(100)
    @given(hostile.json_files(valid))
    def case(content):
        outcome = attempt(content)
        if not outcome.refused:
            told = outcome.value.metadata
            assert len(told.class_names) == sum(told.heads.values()) == 3
            assert len(told.clip) == 4

    case()


def test_broken_files_of_an_export(folder, exported):
    run = folder / 'exported'
    shutil.copytree(exported, run)
    names = [path.name for path in run.iterdir() if path.suffix in ('.stablehlo', '.safetensors')]

    @hostile.fuzz(60)
    @given(st.sampled_from(names), st.data())
    def case(name, data):
        valid = (exported / name).read_bytes()
        content = data.draw(
            hostile.broken(valid).filter(lambda content: content != valid).map(hostile.Held)
        ).value
        (run / name).write_bytes(content)
        outcome = hostile.survive(lambda: export.load(run), run / name, folder=folder, mebibytes=1_000)
        assert outcome.refused
        (run / name).write_bytes(valid)

    case()


def test_clips_that_are_no_arrays(folder):
    read_array = load_tool('run_stablehlo')._read_array
    path = folder / 'clip.npy'

    @hostile.fuzz(100)
    @given(npy())
    def case(content):
        path.write_bytes(content)
        hostile.survive(lambda: read_array(path, (2, 2, 2, 3)), path, folder=folder)

    case()


def test_hostile_configurations_of_scenic(folder):
    tool = load_tool('convert_scenic')
    valid = json.loads((GOLDEN / 'scenic' / 'E01_checkpoint' / 'expected.json').read_text())['config']
    valid['dataset_configs'] = {'num_classes': 5, 'num_frames': 8, 'crop_size': 16, 'min_resize': 20}
    read = formats.load(CASES['scenic'])
    path = folder / 'config.json'

    def attempt(content):
        path.write_bytes(content)
        return hostile.survive(lambda: tool.settled(read, path), path, folder=folder)

    assert not attempt(hostile.json_bytes(valid)).refused

    @hostile.fuzz(120)
    @given(hostile.json_files(valid))
    def case(content):
        attempt(content)

    case()


def test_nothing_reads_pickles():
    """No module of the package, and none of its programs, has a way to run what a file holds."""
    root = pathlib.Path(__file__).parent.parent
    doors = re.compile(
        r'pickle\.(loads?|Unpickler)|allow_pickle=True|weights_only=False|yaml\.(unsafe_)?load\(|marshal\.|shelve\.'
        r'|joblib|dill|\beval\(|\bexec\(|extractall|unpack_archive'
    )
    files = [path for part in ('vivit_jax', 'tools', 'configs') for path in (root / part).rglob('*.py')]
    # What a process and the workers that it has started say to each other, through pipes that nobody else has.
    files.remove(root / 'vivit_jax' / 'data' / 'workers.py')
    assert len(files) > 100
    found = [f'{file.name}: {match[0]}' for file in files for match in doors.finditer(file.read_text())]
    assert found == []
