"""The fields of a configuration of Scenic's: taken by name, so that what nobody took is known."""

import fnmatch
from collections.abc import Mapping
from typing import Any

import numpy as np

from vivit_jax import config as config_module
from vivit_jax.config import ConfigDict

# Known fields with nothing to say here: where data and logs were, what is decided by itself, what only watched.
IRRELEVANT = (
    'trainer_name',
    'data_dtype_str',
    'datset_configs.*',  # a slip in most of their files, which nothing reads
    'write_summary',
    'checkpoint',
    'debug_train',
    'debug_eval',
    'xprof',
    'count_flops*',
    'save_config',
    'confusion_matrix_metrics',
    'multicrop_clips_per_device',
    'steps_per_eval',
    'steps_per_test',
    'shuffle_seed',
    'mixup.bind_to',
    'mixup.image_format',
    'dataset_configs.base_dir',
    'dataset_configs.tables.*',
    'dataset_configs.examples_per_subset.*',
    'dataset_configs.one_hot_labels',
    'dataset_configs.test_batch_size',
    'dataset_configs.log_test_epochs',
    'log_test_epochs',
    'dataset_configs.keep_test_key',
    'init_from.checkpoint_format',
    'init_from.classifier_type',
    'init_from.model_config*',
    'init_from.positional_embed_size_change',
    'init_from.init_temporal_layer_norm',
    'lr_configs.total_steps',
)
# Fields that are understood as long as they ask for nothing.
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    'sam_rho': (None, 0),
    'mixmod': (None, False),
    'mixup': (None, False),
    'init_from': (None,),
    'optimizer_configs': (None,),
    'init_head_bias': (None,),
    'model.return_prelogits': (None, False),
    'model.return_preclassifier': (None, False),
    'dataset_configs.augmentation_params': (None,),
    'dataset_configs.label_offset': (None, 0),
    'dataset_configs.num_train_val_clips': (None, 1),
    'dataset_configs.augmentation_params.do_simclr_crop_resize': (None, False),
    'dataset_configs.augmentation_params.do_simclr_style_augmentations': (None, False),
    'dataset_configs.augmentation_params.do_random_erasing': (None, False),
    'init_from.init_spatial_transformer': (None, True),
    'optimizer_configs.freeze_params_reg_exp': (None,),
    'lr_configs.alpha': (None, 0),
    'lr_configs.warmup_alpha': (None, 0),
    'lr_configs.end_lr': (None, 0),
    'lr_configs.end_learning_rate': (None, 0),
    'lr_configs.start_decay_step': (None, 0),
    'lr_configs.t_mul': (None, 1),
    'lr_configs.m_mul': (None, 1),
}


class Fields:
    """A configuration's fields by their dotted names; each is taken once, and what is left was not understood."""

    def __init__(self, scenic_config: Mapping[str, Any] | ConfigDict):
        if not isinstance(scenic_config, Mapping | ConfigDict):
            raise ValueError(
                f"{scenic_config!r} is no configuration of Scenic's: it must be a dict or a ConfigDict"
            )
        values = config_module.flatten(scenic_config)
        # Numbers that were computed may be NumPy's.
        self._values = {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}
        self._unknown: list[str] = []
        self.remarks: list[str] = []

    def take(self, name: str, default: Any = None) -> Any:
        """Returns a field; the default where it is missing or None."""
        value = self._values.pop(name, None)
        return default if value is None else value

    def number(self, name: str, default: float) -> float:
        """Returns a field that is a number."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name}={value!r} of Scenic's configuration: must be a number")
        return float(value)

    def whole(self, name: str, default: int | None = None) -> int:
        """Returns a field that is a whole number; one without a default has to be there."""
        value = self.take(name, default)
        if value is None:
            raise ValueError(f"{name} is missing: this is no configuration of Scenic's ViViT")
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise ValueError(f"{name}={value!r} of Scenic's configuration: must be a whole number")
        return int(value)

    def text(self, name: str, default: str = '') -> str:
        """Returns a field that is text."""
        value = self.take(name, default)
        if not isinstance(value, str):
            raise ValueError(f"{name}={value!r} of Scenic's configuration: must be text")
        return value

    def choice(self, name: str, choices: Mapping[str, str], default: str) -> str:
        """Returns what a field's value is called here."""
        value = str(self.take(name, default))
        if value not in choices:
            raise ValueError(f"{name}={value!r} of Scenic's configuration: ViViT has {', '.join(choices)}")
        return choices[value]

    def has(self, group: str) -> bool:
        """Tells whether a group has any field left."""
        return any(name.startswith(f'{group}.') for name in self._values)

    def not_understood(self, name: str) -> None:
        """Notes a field whose name is known, but not its value."""
        self._unknown.append(name)

    def left(self) -> list[str]:
        """Returns the fields that were not understood."""
        rest = [
            name
            for name, value in self._values.items()
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in IRRELEVANT)
            and value not in WITHOUT_EFFECT.get(name, ())
        ]
        return sorted({*self._unknown, *rest})
