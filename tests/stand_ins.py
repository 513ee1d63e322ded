"""What the commands of the documentation name, made small: videos, tables, scans, weights, finished runs.

`make` looks for the names in a block of commands and makes what is not there yet, in the current folder.
"""

import csv
import dataclasses
import hashlib
import json
import pathlib
import re
import shutil
from collections.abc import Callable

import numpy as np

from videos import write_video

GOLDEN = pathlib.Path(__file__).parent / 'golden'
CLASSES = ('juggle', 'wave')


def make(page: str, text: str) -> None:
    """Makes what a page's commands name: of MAKERS those whose pattern is in the text."""
    for pattern, maker in MAKERS.items():
        of_page, _, name = pattern.rpartition('|')
        match = re.search(rf'(?<![\w./-]){name}(?![\w-])', text) if of_page in ('', page) else None
        if match and not pathlib.Path(match[0]).exists():
            maker(pathlib.Path(match[0]))


def videos(folder: pathlib.Path, count: int = 12) -> list[str]:
    """Writes short videos, CLASS/v00.mp4 …; returns their names."""
    names = [f'{CLASSES[number % 2]}/v{number:02d}.mp4' for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(folder / name, frames=20 + number)
    return names


def table(path: pathlib.Path, columns: str, label: Callable[[int], list[str]], splits: bool) -> None:
    """Writes a table of twelve videos in clips/, with the labels of each, and if wanted its split."""
    if not pathlib.Path('clips').exists():
        videos(pathlib.Path('clips'))
    names = sorted(str(file) for file in pathlib.Path('clips').rglob('*.mp4'))
    with path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(columns.split(','))
        for number, name in enumerate(names):
            split = ['validation' if number % 4 == 3 else 'train'] if splits else []
            writer.writerow([name, *label(number), *split])


def with_test_split(folder: pathlib.Path) -> None:
    """Writes videos as folders of classes, and as folders of splits: a page tells of both."""
    videos(folder / 'train')
    videos(folder / 'validation', 4)
    videos(folder / 'test', 4)


def numbered(folder: pathlib.Path) -> None:
    """Writes videos with tables of their class numbers, as ViViTs of others are evaluated on."""
    names = videos(folder)
    for split, part in {'train': names, 'validation': names[:4]}.items():
        rows = [f'{name},{number % 2}' for number, name in enumerate(part)]
        (folder / f'{split}.csv').write_text('\n'.join(['path,label', *rows]))


def frames(folder: pathlib.Path) -> None:
    """Writes videos as folders of images."""
    import cv2

    random = np.random.default_rng(0)
    for number in range(12):
        clip = folder / ('train' if number < 8 else 'validation') / CLASSES[number % 2] / f'clip_{number}'
        clip.mkdir(parents=True)
        for frame in range(8):
            cv2.imwrite(str(clip / f'frame_{frame:04d}.jpg'), random.integers(0, 256, (40, 48, 3), np.uint8))


def scans(folder: pathlib.Path) -> None:
    """Writes volumes as NumPy files, brighter in one class."""
    random = np.random.default_rng(0)
    for number in range(12):
        file = folder / ('lesion' if number % 2 else 'healthy') / f'scan_{number:02d}.npy'
        file.parent.mkdir(parents=True, exist_ok=True)
        volume = random.normal(number % 2, 1.0, (20, 24, 24)).astype(np.float32)
        np.save(file, volume)


def medmnist(folder: pathlib.Path) -> None:
    """Writes a file of each set's layout, and lets it count as the published one."""
    from vivit_jax.data.medmnist import SETS

    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for name, known in SETS.items():
        arrays = {}
        for split in ('train', 'val', 'test'):
            arrays[f'{split}_images'] = random.integers(0, 256, (24, 28, 28, 28), np.uint8)
            arrays[f'{split}_labels'] = (np.arange(24) % len(known.class_names)).astype(np.uint8)[:, None]
        path = folder / f'{name}mnist3d.npz'
        np.savez(path, **arrays)
        digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        SETS[name] = dataclasses.replace(known, md5=known.md5 | {28: digest}, counts=(24, 24, 24))


def image_vit(path: pathlib.Path) -> None:
    """Copies a small image ViT in Google's format: 2 layers of width 32, patches of 8 pixels."""
    shutil.copy(GOLDEN / 'formats' / 'vit_npz_head' / 'ckpt.npz', path)


def hugging_face(folder: pathlib.Path) -> None:
    """Copies a small ViViT as Hugging Face stores it."""
    shutil.copytree(GOLDEN / 'formats' / 'hf_vivit_cls', folder)


def scenic_checkpoint(path: pathlib.Path) -> None:
    """Copies a small checkpoint of Scenic's."""
    path.parent.mkdir(exist_ok=True)
    shutil.copy(GOLDEN / 'scenic' / 'E01_checkpoint' / 'old_layout' / 'checkpoint', path)


def scenic_config(path: pathlib.Path) -> None:
    """Writes the configuration of that checkpoint, in the form of Scenic's."""
    record = json.loads((GOLDEN / 'scenic' / 'E01_checkpoint' / 'expected.json').read_text())
    clip = {'num_classes': 5, 'num_frames': 8, 'crop_size': 16, 'min_resize': 20, 'num_test_clips': 2}
    config = {**record['config'], 'dataset_configs': clip}
    path.write_text(
        f'import ml_collections\ndef get_config():\n  return ml_collections.ConfigDict({config!r})\n'
    )


def converted(folder: pathlib.Path) -> None:
    """Takes a small image ViT over, as tools/convert_vit.py does."""
    import documentation

    image_vit(pathlib.Path('stand_in.npz'))
    documentation.run(
        [
            'python',
            'tools/convert_vit.py',
            'stand_in.npz',
            '--config=configs/kinetics400_fe.py',
            f'--output={folder}',
        ]
    )


def trained(options: str) -> Callable[[pathlib.Path], None]:
    """Returns what trains a small run, with the options given, in a folder."""

    def train(folder: pathlib.Path) -> None:
        import documentation

        make('', options)
        documentation.run(['python', '-m', 'vivit_jax.main', *options.split(), f'--workdir={folder}'])

    return train


def clip(path: pathlib.Path) -> None:
    """Writes one video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, frames=30)


# What is made for a name in a command; of one page only where that stands before it.
MAKERS: dict[str, Callable[[pathlib.Path], object]] = {
    'docs/data.md|VIDEOS': with_test_split,
    'VIDEOS': videos,
    'docs/rollout.md|folder': videos,
    'FRAMES': frames,
    'docs/volumes.md|ROOT': scans,
    'docs/volumes.md|scans': scans,
    'SCANS': scans,
    'FOLDER': medmnist,
    'docs/weights.md|DIR': converted,
    'ROOT': numbered,
    r'clips\.csv': lambda path: table(
        path, 'path,label,person,split', lambda n: [CLASSES[n % 2], f'p{n % 5}'], splits=True
    ),
    r'heads\.csv': lambda path: table(
        path,
        'path,noun,verb,split',
        lambda n: [('ball', 'bat')[n % 2], ('throw', 'catch')[n // 2 % 2]],
        splits=True,
    ),
    r'tags\.csv': lambda path: table(
        path, 'path,label,split', lambda n: [('outdoors|ball', 'ball', 'outdoors')[n % 3]], splits=True
    ),
    r'(?:vit_)?b16\.npz': image_vit,
    r'scenic_b/checkpoint': scenic_checkpoint,
    r'vivit_base_k400\.py': scenic_config,
    r'clip\.mp4': clip,
    r'runs/moving_digits': trained('--config=configs/moving_digits.py'),
    r'runs/my_videos': trained('--config=configs/my_videos.py --config.data.root=VIDEOS'),
}
