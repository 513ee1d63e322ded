"""The command `python -m vivit_jax.predict`: `__main__`, around `vivit_jax.inference`, and what it tells."""
