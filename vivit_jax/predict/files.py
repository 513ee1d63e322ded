"""What predictions are written as: JSON, CSV, NumPy arrays; row by row, so that what was done is there."""

import csv
import dataclasses
import io
import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from vivit_jax import paths
from vivit_jax.mirror import Mirror

FORMS = ('csv', 'json', 'jsonl')
DIGITS = '.6g'  # of probabilities, as in an evaluation's predictions.csv


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What a model says of one example.

    Attributes:
        name: Of the example.
        top: The most probable classes of each head with their probabilities, most probable first.
        file: Full path of its file; None where it is in none of its own.
        span: Where in the file it begins and ends, in seconds; None where it is all of it.
        truth: Its class, where that is known.
    """

    name: str
    top: dict[str, list[tuple[str, float]]]
    file: str | None = None
    span: tuple[float, float] | None = None
    truth: str | None = None


class RowWriter:
    """Writes rows as they come."""

    def __init__(self, file: Any, form: str, *, heads: Sequence[str], top: int, truth: bool):
        """Begins.

        Args:
            file: Open for text.
            form: `csv` (a line an example), `jsonl` (a JSON object a line) or `json` (one list of these).
            heads: Of the model.
            top: Classes of each head, for the columns of CSV.
            truth: Whether classes are known, for the same.
        """
        self._file, self._form, self._top, self._count = file, form, top, 0
        if form == 'csv':
            columns = ['name', 'start', 'end', *(['truth'] if truth else [])]
            for head in heads:
                prefix = f'{head}_' if len(heads) > 1 else ''
                columns += [
                    f'{prefix}{what}_{place}'
                    for place in range(1, top + 1)
                    for what in ('class', 'probability')
                ]
            self._truth = truth
            self._write_line(columns)
            file.flush()

    def write(self, row: Row) -> None:
        """Writes a row, through to the system."""
        if self._form == 'csv':
            span = [f'{second:.3f}' for second in row.span] if row.span else ['', '']
            cells = [row.name, *span, *([row.truth or ''] if self._truth else [])]
            for best in row.top.values():
                cells += [cell for name, share in best for cell in (name, f'{share:{DIGITS}}')]
                cells += [''] * (2 * (self._top - len(best)))
            self._write_line(cells)
        else:
            between = '' if self._form == 'jsonl' else ',\n' if self._count else '[\n'
            self._file.write(between + json.dumps(_as_json(row)) + ('\n' if self._form == 'jsonl' else ''))
        self._count += 1
        self._file.flush()

    def _write_line(self, cells: Sequence[str]) -> None:
        """Writes a line of CSV; the module would quote a carriage return only where lines end with one."""
        line = io.StringIO()
        csv.writer(line).writerow(cells)
        self._file.write(line.getvalue().removesuffix('\r\n') + '\n')

    def end(self) -> None:
        """Writes what closes the file."""
        if self._form == 'json':
            self._file.write('\n]\n' if self._count else '[]\n')
            self._file.flush()


def _as_json(row: Row) -> dict[str, object]:
    told: dict[str, object] = {'name': row.name}
    if row.file is not None:
        told['file'] = row.file
    if row.span is not None:
        told |= {'start': round(row.span[0], 3), 'end': round(row.span[1], 3)}
    if row.truth is not None:
        told['truth'] = row.truth
    told['top'] = {
        head: [{'class': name, 'probability': float(f'{share:{DIGITS}}')} for name, share in best]
        for head, best in row.top.items()
    }
    return told


class FeatureWriter:
    """Writes `names`, `features`, `start` and `end` (seconds, NaN where an example is a whole file) to a `.npz`.

    Arrays of any number of examples do not fit into memory: they go to a file beside it, from which the archive is
    made at the end.
    """

    def __init__(self, path: paths.Path):
        """Begins an archive that will be at `path`."""
        self._mirror = Mirror(path.parent)
        self._path = self._mirror.here / path.name
        self._part = self._path.with_name(f'{path.name}.{os.getpid()}.tmp')
        self._rows: IO[bytes] = self._part.open('w+b')
        self._names: list[str] = []
        self._spans: list[tuple[float, float]] = []
        self._shape: tuple[int, ...] = ()

    def write(self, name: str, span: tuple[float, float] | None, features: np.ndarray) -> None:
        """Adds an example, whose features are float32 of one shape for all."""
        self._names.append(name)
        self._spans.append(span or (np.nan, np.nan))
        self._shape = features.shape
        self._rows.write(np.ascontiguousarray(features, '<f4').data)

    def end(self) -> None:
        """Makes the archive of what there is, or none where there is nothing."""
        whole = self._path.with_name(f'{self._part.name}2')
        try:
            if self._names:
                with zipfile.ZipFile(whole, 'w') as archive:
                    spans = np.array(self._spans, np.float64)
                    arrays = {
                        'names': np.array(self._names, np.str_),
                        'start': spans[:, 0],
                        'end': spans[:, 1],
                    }
                    for name, array in arrays.items():
                        with archive.open(f'{name}.npy', 'w') as member:
                            np.lib.format.write_array(member, array, allow_pickle=False)
                    with archive.open('features.npy', 'w', force_zip64=True) as member:
                        shape = (len(self._names), *self._shape)
                        header = {'descr': '<f4', 'fortran_order': False, 'shape': shape}
                        np.lib.format.write_array_header_1_0(member, header)
                        self._rows.seek(0)
                        shutil.copyfileobj(self._rows, member, 2**20)
                whole.replace(self._path)
        finally:
            self._rows.close()
            self._part.unlink()
            whole.unlink(missing_ok=True)
            self._mirror.close()
