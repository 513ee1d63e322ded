"""ViViT (Arnab et al., ICCV 2021) in JAX: video transformers to train, evaluate and build upon."""

import importlib
import importlib.util
from typing import Any

__version__ = '0.1.0'

# Where the public names are. They are imported when asked for: reading data must not load jax.
_HOMES = {
    'ViViT': 'vivit_jax.models.vivit',
    'create_model': 'vivit_jax.models.vivit',
    'multiply_adds': 'vivit_jax.models.cost',
    'default_config': 'vivit_jax.config',
    'load': 'vivit_jax.inference',
}
__all__ = ['ViViT', 'create_model', 'default_config', 'load', 'multiply_adds']


def __getattr__(name: str) -> Any:
    if importlib.util.find_spec(f'{__name__}.{name}'):
        return importlib.import_module(f'{__name__}.{name}')
    if name not in _HOMES:
        raise AttributeError(f'vivit_jax has no {name!r}; it has {", ".join(__all__)}')
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
