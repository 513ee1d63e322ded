"""The report of a run, or of several side by side: one HTML file that needs nothing else.

    vivit_jax.report.write('runs/my_videos')

It tells what was run, how training went, what came out and how sure that is, what was taken for what, and shows
clips. The same workdir gives the same file, to the byte.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence

from vivit_jax import paths
from vivit_jax.data.record import Source
from vivit_jax.inference import Predictor
from vivit_jax.report.compose import compose
from vivit_jax.report.reading import read_runs

Folder = str | os.PathLike[str]


def write(
    folders: Folder | Sequence[Folder],
    output: Folder | None = None,
    *,
    predictor: Predictor | None = None,
    sources: Mapping[str, Source] | None = None,
    clips: bool = True,
) -> paths.Path:
    """Writes a report.

    Args:
        folders: A workdir, or several.
        output: The file; by default `report.html` in the workdir, of several runs `comparison.html` here.
        predictor: The model of the run, where it is at hand (of one run only); else the checkpoint is read.
        sources: The splits of the run, where they are open (of one run only); else they are opened.
        clips: Whether to show clips and attention.

    Returns:
        The file.

    Raises:
        ValueError: If a folder is no workdir; one line. What a workdir does not hold, or holds damaged, is said in
            the report.
    """
    given = [folders] if isinstance(folders, str | os.PathLike) else folders
    workdirs = [paths.path(folder) for folder in given]
    if not workdirs:
        raise ValueError('no workdir was given')
    if len(workdirs) > 1 and (predictor is not None or sources is not None):
        raise ValueError('predictor and sources are of one run, not of several')
    default = workdirs[0] / 'report.html' if len(workdirs) == 1 else pathlib.Path('comparison.html')
    path = default if output is None else paths.path(output)
    runs = read_runs(workdirs)
    if not paths.is_remote(path) and not path.parent.is_dir():
        raise ValueError(f'{path} cannot be written: no folder {str(path.parent)!r}')
    text = compose(runs, predictor=predictor, sources=sources or {}, with_clips=clips)
    paths.replace_text(path, text)
    return path
