"""Every key with its default: the paper's Kinetics-400 recipe, a factorised encoder of size B/16x2.

The other files here change values of it. `vivit_jax/config.py` tells what each key means and its unit.
"""

from vivit_jax.config import default_config

get_config = default_config
