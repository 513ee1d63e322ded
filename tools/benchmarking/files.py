"""Where figures and pictures go, looked at before anything is measured."""

import argparse
import os
import pathlib


def check(options: argparse.Namespace) -> None:
    """Looks at `--output` and `--plot`, as far as a tool has them.

    Raises:
        ValueError: If one cannot be written, or the picture is of no known kind; one line.
    """
    for option in ('output', 'plot'):
        if name := getattr(options, option, None):
            path = pathlib.Path(name)
            if not path.parent.is_dir():
                raise ValueError(f'--{option}={path}: {path.parent} is not a folder')
            if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
                raise ValueError(f'--{option}={path} cannot be written')
    if name := getattr(options, 'plot', None):
        from matplotlib.backend_bases import FigureCanvasBase

        kinds = sorted(FigureCanvasBase.filetypes)
        if pathlib.Path(name).suffix[1:].lower() not in kinds:
            raise ValueError(f'--plot={name}: the name ends in .png, or another of {", ".join(kinds)}')
