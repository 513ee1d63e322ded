"""What a file of weights holds, said in our words, and where each array of it came from."""

import dataclasses
import fnmatch
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vivit_jax.models.vivit import ViViT, create_model

KINDS = (
    'vivit_jax',
    'scenic',
    'vit_npz',
    'big_vision',
    'hf_vit',
    'hf_vivit',
    'hf_timesformer',
    'timesformer',
    'timm',
)

# Fields of a model that tell how a machine runs it, not what it computes, each with what runs on every machine.
RUNTIME: dict[str, Any] = {'attention_backend': 'xla', 'scan_layers': False, 'remat': 'none'}


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a parameter came from.

    Attributes:
        arrays: The file's arrays that it was made of, names and shapes; none for zeros where the format has nothing.
        how: What was done on the way, as 'copied', 'transposed', 'rows 0 to 767, transposed', 'zeros'.
    """

    arrays: dict[str, tuple[int, ...]]
    how: str


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters of a model with everything that is needed to run it. An image ViT is Model 1 on one frame.

    Attributes:
        params: Nested dict of float32 arrays, named as `ViViT`'s parameters, complete for `model`.
        model: Keyword arguments of `create_model`, but `RUNTIME`: sizes, activation and epsilon as the file tells.
        num_classes: Classes of the head; 0 when there is none, or none that ViViT has.
        kind: The format, one of `KINDS`.
        path: The file.
        grid: `(nt, nh, nw)` of the tokens that the position embeddings are for; None where it cannot be told.
        origin: For every parameter, by its name with slashes, where it came from.
        unused: The file's arrays that the model has no place for, with the reason.
        unused_shapes: And their shapes.
        class_names: Names of the classes, when the file has them.
        notes: What was assumed or changed, for people.
    """

    params: dict[str, Any]
    model: dict[str, Any]
    num_classes: int
    kind: str
    path: str
    grid: tuple[int, int, int] | None
    origin: dict[str, Origin]
    unused: dict[str, str]
    unused_shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_image(self) -> bool:
        """Whether they are of an image model: single frames, no position in time."""
        return (
            self.model['attention'] == 'spatio_temporal'
            and self.model['tubelet'][0] == 1
            # Of Scenic's a number of tokens that is no square is that of several frames.
            and (self.kind != 'scenic' if self.grid is None else self.grid[0] == 1)
        )


class Conversion:
    """Takes a file's arrays one after another into parameters, and keeps account of every one of them.

    Args:
        path: The file, for messages.
        kind: The format.
        arrays: The file's arrays by name. Only those asked for are read.
        allow_unused: Patterns (as `head*`) of arrays that may be left without a reason.
    """

    def __init__(self, path: str, kind: str, arrays: Mapping[str, Any], allow_unused: Sequence[str] = ()):
        self.path, self.kind = path, kind
        self._allow_unused = allow_unused
        self.notes: list[str] = []
        self._arrays = arrays
        self._params: dict[str, np.ndarray] = {}
        self._origin: dict[str, Origin] = {}
        self._left: dict[str, str] = {}
        self._taken: set[str] = set()
        self._last: tuple[str, np.ndarray] | None = None

    def __contains__(self, name: str) -> bool:
        """Whether the file has an array of that name."""
        return name in self._arrays

    def names(self) -> list[str]:
        """Returns the names of the file's arrays."""
        return list(self._arrays)

    def layers(self, pattern: str, names: Iterable[str] | None = None) -> int:
        """Counts the layers by the names of their arrays.

        Args:
            pattern: What such a name begins with; its first group is the layer's number, from 0 on.
            names: Of the arrays, where they are not the file's own.

        Raises:
            ValueError: If one is missing; a single name can claim any number of them.
        """
        found = (re.match(pattern, name) for name in (self._arrays if names is None else names))
        numbers = {int(match[1]) for match in found if match}
        if missing := [number for number in range(len(numbers)) if number not in numbers]:
            raise ValueError(
                f'{self.path}: has {len(numbers)} layers, but none with the number {missing[0]}: it is incomplete'
            )
        return len(numbers)

    def peek(self, name: str) -> np.ndarray:
        """Returns an array as float32, without taking it.

        Raises:
            ValueError: If the file has none of that name, or it is damaged.
        """
        if name not in self._arrays:
            raise ValueError(f'{self.path}: is a {self.kind} file without {name!r}: it is incomplete')
        if self._last is not None and self._last[0] == name:
            return self._last[1]
        try:
            array = to_float32(self._arrays[name])
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            words = ' '.join(str(error).split())[:120]
            raise ValueError(f'{self.path}: {name} cannot be read ({words})') from error
        # Kept until the next: several parameters are made of one array, which an archive would unpack every time.
        self._last = (name, array)
        return array

    def take(
        self,
        name: str,
        parameter: str,
        change: Callable[[np.ndarray], np.ndarray] = lambda array: array,
        how: str = 'copied',
    ) -> None:
        """Makes a parameter of one of the file's arrays; several may be made of the same.

        Args:
            name: The file's array.
            parameter: Our name, with slashes.
            change: What is done to it.
            how: The same in words.
        """
        array = self.peek(name)
        self._taken.add(name)
        self._params[parameter] = np.ascontiguousarray(change(array), np.float32)
        self._origin[parameter] = Origin({name: array.shape}, how)

    def set(self, parameter: str, value: np.ndarray, how: str) -> None:
        """Sets a parameter that the file has no array for, as zeros for a missing bias."""
        self._params[parameter] = np.ascontiguousarray(value, np.float32)
        self._origin[parameter] = Origin({}, how)

    def made(self, parameter: str) -> np.ndarray:
        """Returns a parameter that was made before, by our name."""
        return self._params[parameter]

    def adjust(self, parameter: str, change: Callable[[np.ndarray], np.ndarray], how: str) -> None:
        """Changes a parameter that was made before."""
        before = self._origin[parameter]
        self._params[parameter] = np.ascontiguousarray(change(self._params[parameter]), np.float32)
        self._origin[parameter] = Origin(before.arrays, f'{before.how}, {how}')

    def multiply(self, parameter: str, name: str, how: str) -> None:
        """Multiplies a parameter that was made before by one of the file's arrays, which fits its last axis."""
        factor = self.peek(name)
        self.adjust(parameter, lambda array: array * factor, how)
        self._taken.add(name)
        before = self._origin[parameter]
        self._origin[parameter] = Origin({**before.arrays, name: factor.shape}, before.how)

    def leave(self, pattern: str, reason: str) -> None:
        """Explains why the arrays whose names match a regular expression have no place in the model."""
        for name in self._arrays:
            if name not in self._taken and re.fullmatch(pattern, name):
                self._left.setdefault(name, reason)

    def finish(
        self,
        model: Mapping[str, Any],
        num_classes: int,
        grid: tuple[int, int, int] | None,
        *,
        class_names: Sequence[str] = (),
    ) -> Weights:
        """Checks that nothing is missing and nothing is left without a reason.

        Args:
            model: Keyword arguments of `create_model`.
            num_classes: See `Weights`.
            grid: See `Weights`.
            class_names: See `Weights`.

        Raises:
            ValueError: If the file lacks a parameter, has one of another shape or with NaN, or has arrays that nobody
                asked for.
        """
        for pattern in self._allow_unused:
            if not fnmatch.filter(self._arrays, pattern):
                raise ValueError(
                    f'allow_unused={pattern!r} matches none of the arrays of {self.path}; names are as '
                    f'{shortened(list(self._arrays))}'
                )
        for name in self._arrays:
            if name not in self._taken and any(
                fnmatch.fnmatch(name, pattern) for pattern in self._allow_unused
            ):
                self._left.setdefault(name, 'allowed by name')
        unexplained = [name for name in self._arrays if name not in self._taken and name not in self._left]
        if unexplained:
            raise ValueError(
                f'{self.path}: {len(unexplained)} arrays have no place in the model ({shortened(unexplained)}): '
                f'allow them by name where they may be left out, as allow_unused={unexplained[0]!r}'
            )
        self._check_shapes(model, num_classes, grid)
        if broken := [name for name, array in self._params.items() if not np.isfinite(array).all()]:
            raise ValueError(
                f'{self.path}: {len(broken)} parameters hold NaN or infinity ({shortened(broken)}): the model that '
                'they were saved from had broken down'
            )
        return Weights(
            params=nested(self._params),
            model=dict(model),
            num_classes=num_classes,
            kind=self.kind,
            path=self.path,
            grid=grid,
            origin=self._origin,
            unused=self._left,
            unused_shapes={name: np.shape(self._arrays[name]) for name in self._left},
            class_names=tuple(class_names),
            notes=tuple(self.notes),
        )

    def _check_shapes(
        self, model: Mapping[str, Any], num_classes: int, grid: tuple[int, int, int] | None
    ) -> None:
        """Compares the parameters with those of the model itself, and tells the first that differs."""
        vivit = create_model(num_classes, **model)
        if vivit.position_embedding.startswith('sinusoidal'):
            vivit = vivit.clone(position_embedding='none')  # they are computed, for however many tokens
        if grid is None:
            # As many tokens as the positions are for, in whatever order they lie.
            grid = (self._tokens('Temporal'), self._tokens('Spatial'), self._tokens(''))
        clip = [size * tube for size, tube in zip(grid, vivit.tubelet, strict=True)]
        channels = self._params['embedding/kernel'].shape[-2]
        video = jax.ShapeDtypeStruct((1, *clip, channels), jnp.float32)
        expected = {
            name: leaf.shape
            for name, leaf in flat(jax.eval_shape(vivit.init, jax.random.key(0), video)['params']).items()
        }
        if missing := [name for name in expected if name not in self._params]:
            raise ValueError(
                f'{self.path}: {len(missing)} parameters of the model are missing ({shortened(missing)})'
            )
        if surplus := [name for name in self._params if name not in expected]:
            raise ValueError(
                f'{self.path}: has {len(surplus)} parameters that the model has not ({shortened(surplus)})'
            )
        for name, shape in expected.items():
            if self._params[name].shape != shape:
                raise ValueError(
                    f'{self.path}: {name} is {self._params[name].shape} in the file and {shape} in the model'
                )

    def _tokens(self, encoder: str) -> int:
        """Returns how many tokens an encoder has positions for, without its cls token; 1 where it has none."""
        name = f'{encoder}Transformer/posembed_input/pos_embedding'
        cls = f'cls_{encoder}Transformer' if encoder else 'cls'
        return max(self._params[name].shape[1] - (cls in self._params), 1) if name in self._params else 1


def check_shapes(params: Any, model: ViViT, clip: Sequence[int]) -> None:
    """Compares parameters with those that a model has for clips `(t, h, w, c)`.

    Raises:
        ValueError: If one is missing, of no use, of another shape, or not of real numbers; one line.
    """
    if not isinstance(params, Mapping):
        raise ValueError(f'holds a {type(params).__name__} instead of named parameters')
    # Layers are alike: one of each encoder tells of all, and tracing takes time for every one.
    few: dict[str, Any] = {**RUNTIME, 'num_layers': 1, 'temporal_layers': min(model.temporal_layers, 1)}
    if not model.position_embedding.startswith('learned'):
        few['position_embedding'] = 'none'  # the others are computed, for however many tokens
    video = jax.ShapeDtypeStruct((1, *clip), jnp.float32)
    init = model.clone(**few).init
    expected: dict[str, tuple[int, ...]] = {}
    for name, leaf in flat(jax.eval_shape(init, jax.random.key(0), video)['params']).items():
        layers = model.temporal_layers if name.startswith('TemporalTransformer/') else model.num_layers
        for layer in range(layers if '/encoderblock_0/' in name else 1):
            expected[name.replace('/encoderblock_0/', f'/encoderblock_{layer}/')] = leaf.shape
    found = flat(params)
    if missing := [name for name in expected if name not in found]:
        raise ValueError(f'{len(missing)} parameters of its model are missing ({shortened(missing)})')
    if surplus := [name for name in found if name not in expected]:
        raise ValueError(f'{len(surplus)} parameters are none of its model ({shortened(surplus)})')
    for name, shape in expected.items():
        if np.shape(found[name]) != shape:
            raise ValueError(f'{name} is {np.shape(found[name])}, and {shape} in its model')
        if not jnp.issubdtype(found[name].dtype, jnp.floating):
            raise ValueError(f'{name} holds {found[name].dtype}, not real numbers')


def to_float32(array: np.ndarray) -> np.ndarray:
    """Returns an array as float32; NumPy reads bfloat16 back as two bytes without a meaning.

    Raises:
        ValueError: If it holds something else than real numbers.
    """
    if array.dtype == np.dtype('V2'):
        array = array.view(jnp.bfloat16)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (np.bool_, np.integer, np.floating)):
        raise ValueError(f'holds {str(array.dtype)[:80]}, not numbers')
    with np.errstate(over='ignore'):  # what is too large becomes infinite, which is looked for
        return np.asarray(array).astype(np.float32, copy=False)


def flat(tree: Mapping[Any, Any], prefix: str = '') -> dict[str, Any]:
    """Returns `{'embedding/kernel': array, …}` of nested dicts; keys may be numbers, as in PyTorch's optimisers."""
    return dict(_leaves(tree, prefix))


def _leaves(tree: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f'{prefix}{key}/')
        else:
            yield f'{prefix}{key}', value


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes `flat`."""
    tree: dict[str, Any] = {}
    for path, value in arrays.items():
        *groups, leaf = path.split('/')
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = value
    return tree


def shortened_line(words: str, most: int = 1_000) -> str:
    """Returns a line without its middle where it is long, as with values of a file that are."""
    return words if len(words) <= most else f'{words[: most // 2]} … {words[-most // 2 :]}'


def shortened(names: Sequence[str]) -> str:
    """Returns the first names of a long list."""
    return ', '.join(names[:4]) + (f' and {len(names) - 4} more' if len(names) > 4 else '')
