"""Checkpoints on S3: Orbax knows one object store, `gs://`; this teaches it another one.

Orbax reads and writes arrays by TensorStore, which knows both, and small files by epath, which does so too; only the
three functions in between take every path that does not begin with `gs://` for a folder (seen in Orbax 0.12.8).
"""

import functools
import os
from typing import Any

PREFIX = 's3://'


@functools.cache
def teach() -> None:
    """Makes Orbax write arrays to `s3://BUCKET/…`; once."""
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    is_store, normalized, store = (
        tensorstore_utils._use_gcs_driver,
        tensorstore_utils._normalize_path,
        gcs_utils.get_kvstore_for_gcs,
    )

    def is_any_store(directory: str) -> bool:
        return directory.startswith(PREFIX) or is_store(directory)

    def normalized_of_any(path: str) -> str:
        return PREFIX + path.removeprefix(PREFIX).rstrip('/') if path.startswith(PREFIX) else normalized(path)

    def any_store(path: str) -> dict[str, Any]:
        return kvstore(path) if path.startswith(PREFIX) else store(path)

    tensorstore_utils._use_gcs_driver = is_any_store
    tensorstore_utils._normalize_path = normalized_of_any
    gcs_utils.get_kvstore_for_gcs = any_store


def temporary_paths(folder: Any) -> Any:
    """Returns how Orbax tells what is complete: on S3, where to rename is to copy, by a file; None: its own way."""
    if not str(folder).startswith(PREFIX):
        return None
    from orbax.checkpoint._src.path.atomicity import CommitFileTemporaryPath

    return CommitFileTemporaryPath


def kvstore(path: str) -> dict[str, Any]:
    """Returns how TensorStore is told of a path on S3, by the variables that other programs for S3 go by."""
    bucket, _, key = path.removeprefix(PREFIX).partition('/')
    spec: dict[str, Any] = {'driver': 's3', 'bucket': bucket, 'path': key}
    if endpoint := os.environ.get('AWS_ENDPOINT_URL_S3') or os.environ.get('AWS_ENDPOINT_URL'):
        spec['endpoint'] = endpoint
    if region := os.environ.get('AWS_REGION') or os.environ.get('AWS_DEFAULT_REGION'):
        spec['aws_region'] = region
    if 'AWS_ACCESS_KEY_ID' in os.environ:
        # Else it looks for ~/.aws first, and where that is missing it says so on stderr for every array.
        spec['aws_credentials'] = {'type': 'environment'}
    return spec
