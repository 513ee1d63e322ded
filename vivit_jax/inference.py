"""A trained model to use: it predicts, gives features, and shows what it attends to.

    model = vivit_jax.load('runs/my_videos')
    print(model.predict('clip.mp4').top(3))

Decoding, views and averaging are evaluation's own, so that the numbers are those of `--mode=eval`.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from jax.sharding import Mesh
from jaxtyping import Float, Float32, Shaped
from ml_collections import ConfigDict

from vivit_jax import checkpoint, evaluate, experiment, feeding, formats, inputs, paths, results, sharding
from vivit_jax import config as config_module
from vivit_jax.data import pipeline
from vivit_jax.data.bad_files import BadFiles
from vivit_jax.data.examine import Examination
from vivit_jax.data.joined import One
from vivit_jax.data.record import Record, Source
from vivit_jax.formats import own
from vivit_jax.formats.weights import Weights
from vivit_jax.models.vivit import DTYPES, ViViT, create_model

FEATURES = ('pre_logits', 'encoded', 'tokens')
AS_RESIZED = 256 / 224  # the short side of a frame by that of its crop, as ViViT's authors evaluate

Video = np.ndarray | str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model says of one example.

    Attributes:
        name: Of the example.
        scores: Averaged over the views: logits, or log probabilities where the run averages these.
        probabilities: Of the classes; those of a head add up to 1, but for the sigmoid loss.
        class_names: One for each score.
        heads: Where the classes of each head are among them, by its name.
    """

    name: str
    scores: Float32[np.ndarray, ' k']
    probabilities: Float[np.ndarray, ' k']
    class_names: tuple[str, ...]
    heads: dict[str, slice]

    def top(self, n: int = 5, head: str | None = None) -> list[tuple[str, float]]:
        """Returns the `n` most probable classes of a head (by default the first) and their probabilities.

        Raises:
            ValueError: If there is no such head.
        """
        head = next(iter(self.heads)) if head is None else head
        if head not in self.heads:
            raise ValueError(f'head {head!r}: choose one of {", ".join(self.heads)}')
        part = self.heads[head]
        best = part.start + np.argsort(-self.probabilities[part], kind='stable')[:n]
        return [(self.class_names[k], float(self.probabilities[k])) for k in best]


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """A model with its parameters on the devices, and all that its inputs and outputs need.

    Attributes:
        config: The configuration of the run it is of; for weights of others the default with their model.
        params: Parameters on the mesh.
        class_names: Those of several heads one after another; none where there is no head.
        folder: The checkpoint or the file that it was read from.
        step: Of training; None for weights of others.
    """

    config: ConfigDict
    params: Any
    class_names: tuple[str, ...]
    mesh: Mesh
    folder: paths.Path
    step: int | None

    @functools.cached_property
    def head_sizes(self) -> tuple[int, ...]:
        """Returns the number of classes of each head."""
        return tuple(self.config.data.num_classes) or (len(self.class_names),)

    @property
    def heads(self) -> dict[str, slice]:
        """Returns where the classes of each head are, by its name."""
        return dict(zip(self.config.data.heads, results.slices(self.head_sizes), strict=True))

    @functools.cached_property
    def model(self) -> ViViT:
        """Returns the module."""
        return create_model(len(self.class_names), **self.config.model)

    @property
    def views(self) -> tuple[int, int]:
        """Returns the (temporal, spatial) views that the run is evaluated with."""
        settings = self.config.evaluation
        return (settings.temporal_views, settings.spatial_views)

    def predict(self, video: Video, views: tuple[int, int] | None = None) -> Prediction:
        """Predicts one video.

        Args:
            video: A file (or a folder of frames), or pixels `[t h w c]` (`[t h w]` of one channel): uint8, or
                float in [-1, 1]. A clip is taken from it as in evaluation, so it may be longer and larger.
            views: (temporal, spatial) views to average, by default the run's.

        Raises:
            ValueError: If it cannot be read, or the model has no classes; one line.
        """
        source = self._source_of(video)
        return next(self.predictions(source, views=views))

    def predictions(
        self,
        source: Source,
        *,
        views: tuple[int, int] | None = None,
        batch_size: int = 0,
        bad_files: BadFiles | None = None,
        on_batch: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[Prediction]:
        """Predicts every example of a source, one after another; those that cannot be read are left out.

        Args:
            source: From `open`, or any other whose labels have the model's form.
            views: (temporal, spatial) views to average, by default the run's.
            batch_size: Clips of a batch; 0: as in the run's evaluation.
            bad_files: Where examples that cannot be read are named.
            on_batch: Told of the batches done and in all.
        """
        if not self.class_names:
            raise ValueError(f'{self.folder}: has no head to predict classes with; it gives features')
        loss = self.config.training.loss
        for rows in evaluate.batches_of(
            self.config,
            source,
            self.params,
            self._score,
            self.mesh,
            views=views or self.views,
            batch_size=batch_size,
            split='predict',
            bad_files=bad_files,
            on_batch=on_batch,
        ):
            for index, scores in zip(rows['index'], rows['scores'], strict=True):
                each = [results.probabilities(scores[part], loss) for part in self.heads.values()]
                name = source[int(index)].name
                yield Prediction(name, scores, np.concatenate(each), self.class_names, self.heads)

    def features(
        self, video: Video, what: str = 'pre_logits', views: tuple[int, int] | None = None
    ) -> Float32[np.ndarray, '...']:
        """Returns what the model computes of one video before its head.

        Args:
            video: See `predict`.
            what: One of `FEATURES`: 'pre_logits' `[d]`, averaged over the views; 'encoded' `[v n d]`, the encoder's
                output for each view, the cls token first where there is one; 'tokens' `[v nt nh nw d]`, its input.
            views: (temporal, spatial) views, by default the run's.

        Raises:
            ValueError: If the video cannot be read, or there is no such feature; one line.
        """
        return next(self.featured(self._source_of(video), what, views=views))[1]

    def featured(
        self,
        source: Source,
        what: str = 'pre_logits',
        *,
        views: tuple[int, int] | None = None,
        batch_size: int = 0,
        bad_files: BadFiles | None = None,
        on_batch: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[tuple[str, Float32[np.ndarray, '...']]]:
        """Yields the name and the features of every example of a source; see `features` and `predictions`."""
        if what not in FEATURES:
            raise ValueError(f'feature {what!r}: choose one of {", ".join(FEATURES)}')
        for rows in evaluate.batches_of(
            self.config,
            source,
            self.params,
            functools.partial(self._feature_step, what=what),
            self.mesh,
            views=views or self.views,
            batch_size=batch_size,
            split='predict',
            bad_files=bad_files,
            on_batch=on_batch,
        ):
            for index, values in zip(rows['index'], rows['features'], strict=True):
                yield source[int(index)].name, values

    def attention(self, clip: Shaped[np.ndarray, 't h w c']) -> dict[str, list[dict[str, np.ndarray]]]:
        """Returns the attention weights of every layer for one clip, a batch of 1 (see `ViViT`).

        Args:
            clip: As the model sees it, as `clip` gives it: uint8, or float in [-1, 1].
        """
        return jax.device_get(self._attention_step(self.params, clip[None]))

    def clip(self, video: Video | Record) -> Shaped[np.ndarray, 't h w c']:
        """Returns the central clip of a video as the model sees it."""
        record = video if isinstance(video, Record) else self._source_of(video)[0]
        examples: Any = feeding.evaluation_examples(
            self.config, One(record), temporal_views=1, spatial_views=1
        )
        return examples.views(record)

    def open(
        self,
        names: Sequence[str],
        *,
        window: float = 0.0,
        every: float = 0.0,
        looking: Examination | None = None,
    ) -> Source:
        """Opens videos, folders, tables, or examples of the run's own data; see `inputs.open_inputs`."""
        # Absolute, since the folder may have been named from inside the workdir.
        workdir = None if self.step is None else paths.absolute(self.folder).parent.parent
        return inputs.open_inputs(
            self.config, names, window=window, every=every, workdir=workdir, looking=looking
        )

    def _source_of(self, video: Video) -> Source:
        if isinstance(video, np.ndarray):
            return One(inputs.of_pixels(self.config, video))
        source = self.open([os.fspath(video)])
        if source.bad:
            raise ValueError(': '.join(source.bad[0]))
        if len(source) != 1:
            raise ValueError(f'{video}: holds {len(source)} examples, not 1: use predictions(open([…]))')
        return source

    @functools.cached_property
    def _score(self) -> evaluate.EvalStep:
        return evaluate.make_eval_step(self.config, self.model, self.head_sizes, self.mesh)

    @functools.cached_property
    def _feature_step(self) -> Callable[..., dict[str, jax.Array]]:
        step = functools.partial(feature_step, model=self.model)
        return jax.jit(
            sharding.within(self.mesh, step),
            static_argnames='what',
            out_shardings=sharding.replicated(self.mesh),
        )

    @functools.cached_property
    def _attention_step(self) -> Callable[[Any, np.ndarray], Any]:
        def step(params: Any, clips: jax.Array) -> Any:
            video = evaluate.to_float(clips)
            return self.model.apply({'params': params}, video, capture_attention=True)[1]['attention']

        return jax.jit(step)


def feature_step(params: Any, batch: pipeline.Batch, *, model: ViViT, what: str) -> dict[str, jax.Array]:
    """Computes the `features` of a batch of views, see `Predictor.features`, with its `mask` and `index`."""
    video = evaluate.to_float(batch['video'])
    if video.ndim == 5:
        video = rearrange(video, 'b t h w c -> b 1 t h w c')
    _, out = model.apply({'params': params}, rearrange(video, 'b v t h w c -> (b v) t h w c'))
    values = rearrange(out[what].astype(jnp.float32), '(b v) ... -> b v ...', v=video.shape[1])
    features = reduce(values, 'b v d -> b d', 'mean') if what == 'pre_logits' else values
    return {'features': features, 'mask': batch['mask'], 'index': batch['index']}


def of_run(
    config: ConfigDict, source: Source, params: Any, mesh: Mesh, folder: paths.Path, step: int
) -> Predictor:
    """Returns the model of a run that is in memory.

    Args:
        config: The run's configuration.
        source: A split of its data, for the classes.
        params: On the mesh.
        mesh: The devices.
        folder: The workdir.
        step: That the parameters are of.
    """
    config = ConfigDict(config.to_dict())
    config.data.num_classes = experiment.head_sizes(config, source)
    config.data.workers = 0
    return Predictor(
        config.lock(), params, tuple(source.class_names), mesh, folder / 'checkpoints' / str(step), step
    )


def load(
    path: str | os.PathLike[str], overrides: Mapping[str, str] | None = None, *, dtype: str | None = None
) -> Predictor:
    """Loads a trained model.

    Args:
        path: A workdir (its best checkpoint, else its latest), one of its `checkpoints/<step>`, or weights of any
            format that `formats.load` reads. These do not tell how videos are to be sampled: the clip is theirs,
            with a stride of 2 frames and crops of 224 / 256 of the short side, as the paper evaluates.
        overrides: New values of configuration keys, as text: `{'data.root': '/data', 'data.threads': '2'}`.
        dtype: What it computes in, 'float32' or 'bfloat16', whatever it was trained in; None: in that.

    Raises:
        ValueError: If there is no model, it is damaged, or of images, or `dtype` is none of the two; one line.
        ImportError: If the file needs a package that is not installed; one line that names the extra.
    """
    if dtype not in (None, *DTYPES):
        raise ValueError(f'dtype={dtype!r}: choose one of {", ".join(DTYPES)}')
    path = paths.path(path)
    found = checkpoint.find(path)
    if found is None:
        folder, step = path, None
        config, params, names = _of_others(formats.load(path))
    else:
        saved = checkpoint.read(path)  # of a workdir, perhaps another one than was found: that may be damaged
        folder, step = saved.folder, int(saved.folder.name) if saved.folder.name.isdecimal() else None
        config, names = own.understood(saved)
        params = saved.params
        # Scenic's files number their classes, and name none.
        names = names or tuple(str(k) for size in config.data.num_classes for k in range(size))
    config.data.workers = 0  # processes take longer to start than a video to read
    # A run may have been trained where there are kernels that are not here.
    here = {'model.attention_backend': 'auto', **(overrides or {})}
    config = config_module.changed(config, here | ({'model.dtype': dtype} if dtype else {}))
    mesh = sharding.make_mesh(config.sharding.fsdp if jax.device_count() % config.sharding.fsdp == 0 else 1)
    placed = sharding.from_host(params, sharding.state_sharding(mesh, params))
    return Predictor(config, placed, names, mesh, folder, step)


def _of_others(weights: Weights) -> tuple[ConfigDict, dict[str, Any], tuple[str, ...]]:
    """Returns a configuration for weights of another library, their parameters, and the names of their classes."""
    if weights.is_image:
        raise ValueError(
            f'{weights.path}: is an image model ({weights.kind}): make a video model of it with tools/convert_vit.py'
        )
    if weights.grid is None:
        raise ValueError(
            f'{weights.path}: does not tell the size of its clips: convert it, with the configuration that it goes '
            'with, by tools/convert_scenic.py or tools/convert_vit.py'
        )
    config = config_module.default_config()
    for name, value in weights.model.items():
        config.model[name] = value
    tubelet = config.model.tubelet
    frames, height, width = (cells * side for cells, side in zip(weights.grid, tubelet, strict=True))
    if config.model.embedding == 'tubelet':
        config.data.frames = frames
    config.data.crop = (height, width)
    config.data.short_side = round(min(height, width) * AS_RESIZED)
    config.data.channels = weights.params['embedding']['kernel'].shape[-2]
    names = weights.class_names or tuple(map(str, range(weights.num_classes)))
    config.data.num_classes = (weights.num_classes,) if weights.num_classes else ()
    return config, weights.params, names
