"""Which examples there are: class folders, tables of one's own, and what is wrong with them."""

import math
import os
import unicodedata

import pytest

from vivit_jax.data.listing import Entry, Layout, list_examples

ENDINGS = ('.avi', '.mp4', '.webm')
IMAGES = ('.jpeg', '.jpg', '.png')


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'data'


def put(root, *names, text=''):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def listed(root, split='train', endings=ENDINGS, folders=False, **options):
    return list_examples(split, layout=Layout(root=str(root), **options), endings=endings, folders=folders)


def pairs(listing):
    return [(entry.path, entry.label) for entry in listing.entries]


def message(root, split='train', **options):
    """The one line that listing ends with."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - what calls this compares the whole of it
        listed(root, split, **options)
    assert '\n' not in str(caught.value)
    return str(caught.value).replace(str(root), 'ROOT')


# Folders


def test_folders_of_splits_and_classes(root):
    put(root, 'train/b/2.mp4', 'train/b/10.MP4', 'train/a/x.avi', 'validation/b/1.webm')
    put(
        root,
        'train/a/._x.avi',
        'train/a/notes.txt',
        'train/.cache/y.mp4',
        'train/__MACOSX/z.mp4',
    )
    put(root, 'train/été sec/ä b, 100%d.AVI', 'train/b/subject 1/day 2/3.mp4', 'train/b/.hidden/4.mp4')
    train, validation = listed(root), listed(root, 'validation')
    assert train.class_names == validation.class_names == ['a', 'b', 'été sec']
    assert pairs(train) == [
        ('train/a/x.avi', 0),
        ('train/b/10.MP4', 1),
        ('train/b/2.mp4', 1),
        ('train/b/subject 1/day 2/3.mp4', 1),
        ('train/été sec/ä b, 100%d.AVI', 2),
    ]
    assert train.entries[0] == Entry(path='train/a/x.avi', label=0)
    assert (train.folder, train.splits, train.bad, train.note) == (root, ('train', 'validation'), [], '')
    assert pairs(validation) == [('validation/b/1.webm', 1)]
    assert listed(root, several_labels=True).entries[1].label == (0.0, 1.0, 0.0)


@pytest.mark.parametrize('train', ['train', 'Training'])
@pytest.mark.parametrize('validation', ['val', 'valid', 'dev', 'Validation'])
def test_what_splits_may_be_called(root, train, validation):
    put(
        root,
        f'{train}/a/1.mp4',
        f'{train}/b/2.mp4',
        f'{validation}/b/3.mp4',
        'testing/a/4.mp4',
        'mine/b/5.mp4',
    )
    assert listed(root).splits == ('train', 'validation', 'test')
    assert pairs(listed(root)) == [(f'{train}/a/1.mp4', 0), (f'{train}/b/2.mp4', 1)]
    assert pairs(listed(root, 'validation')) == pairs(listed(root, 'val')) == [(f'{validation}/b/3.mp4', 1)]
    assert pairs(listed(root, 'test')) == [('testing/a/4.mp4', 0)]
    assert pairs(listed(root, 'mine')) == [('mine/b/5.mp4', 1)]
    assert listed(root, 'mine').splits == ('train', 'validation', 'test', 'mine')


def test_a_split_without_train(root):
    put(root, 'validation/b/1.mp4')
    listing = listed(root, 'validation')
    assert message(root, 'train').startswith(
        "ROOT has no split 'train': it has validation; choose of them with"
    )
    assert (listing.class_names, pairs(listing), listing.splits) == (
        ['b'],
        [('validation/b/1.mp4', 0)],
        ('validation',),
    )


def test_validation_is_drawn_from_train(root):
    put(root, *(f'train/{name}/{i}.mp4' for name in 'ab' for i in range(10)), 'test/a/0.mp4')
    train, validation, test = (listed(root, split) for split in ('train', 'validation', 'test'))
    assert train.splits == ('train', 'validation', 'test')
    assert [len(listing.entries) for listing in (train, validation, test)] == [16, 4, 1]
    assert sorted(pairs(train) + pairs(validation)) == sorted(
        (f'train/{name}/{i}.mp4', 'ab'.index(name)) for name in 'ab' for i in range(10)
    )
    expected = 'no validation split is given: 4 of 20 of train (20 %) are taken, drawn by name (seed 0)'
    assert train.note == expected
    assert (validation.note, test.note) == (train.note, '')
    assert pairs(listed(root, 'validation', seed=1)) != pairs(validation)


def test_a_split_is_drawn_where_none_is_given(root):
    put(
        root,
        *(f'{name}/{i}.mp4' for name in ('jump', 'test', 'run') for i in range(8)),
        'one/1.mp4',
        'notes.md',
    )
    train, validation = listed(root, validation_share=0.25), listed(root, 'validation', validation_share=0.25)
    assert train.class_names == validation.class_names == ['jump', 'one', 'run', 'test']
    assert train.splits == validation.splits == ('train', 'validation')
    assert [sum(label == kind for _, label in pairs(validation)) for kind in range(4)] == [2, 0, 2, 2]
    assert len(train.entries) == 25 - 6
    assert not set(pairs(train)) & set(pairs(validation))
    assert train.note == 'no split is given: 19 train, 6 validation (24 %), drawn by name (seed 0)'
    assert message(root, 'test').startswith(
        "ROOT has no split 'test': it has train, validation; choose of them with"
    )


def test_classes_of_one_example_cannot_validate(root):
    put(root, 'a/1.mp4', 'b/1.mp4')
    assert len(listed(root).entries) == 2
    expected = 'no class in ROOT has two examples, so that none are left for validation'
    assert message(root, 'validation') == expected


def test_what_cannot_be_an_example_is_said(root):
    put(root, 'train/a/1.mp4', 'train/b/1.flv', 'validation/a/2.mp4')
    (root / 'train/c').mkdir()
    (root / 'train/a/folder.MP4').mkdir()
    listing = listed(root)
    # Classes without examples stay classes; `overview` says which they are.
    assert listing.class_names == ['a', 'b', 'c']
    assert [entry.path for entry in listing.entries] == ['train/a/1.mp4', 'train/a/folder.MP4']
    assert listing.bad == []
    assert listed(root, 'validation').bad == []


def test_what_is_listed_though_it_is_no_video(root):
    """Whoever looks into these will name them."""
    put(root, 'train/a/1.mp4', 'train/b/3.mp4')
    (root / 'train/a/folder.mp4').mkdir()
    (root / 'train/a/broken.mp4').symlink_to(root / 'gone.mp4')
    (root / 'train/a/loop.mp4').symlink_to(root / 'train/a/loop.mp4')
    expected = [
        'train/a/1.mp4',
        'train/a/broken.mp4',
        'train/a/folder.mp4',
        'train/a/loop.mp4',
        'train/b/3.mp4',
    ]
    listing = listed(root)
    assert sorted(entry.path for entry in listing.entries + listed(root, 'validation').entries) == expected


def test_links_are_followed_and_loops_end(root, tmp_path):
    put(root, 'train/a/1.mp4', 'train/a/deep/2.mp4', 'validation/a/3.mp4')
    put(tmp_path, 'elsewhere/4.mp4', 'elsewhere/more/5.mp4')
    (root / 'train/b').symlink_to(tmp_path / 'elsewhere')
    (root / 'train/a/deep/up').symlink_to(root / 'train/a')
    (root / 'train/a/self').symlink_to(root / 'train/a/self')
    (root / 'train/nowhere').symlink_to(root / 'gone')
    for i in range(12):  # each leads to all others
        (root / f'train/a/deep/{i}').mkdir()
        for j in range(12):
            (root / f'train/a/deep/{i}/{j}').symlink_to(root / f'train/a/deep/{j}')
    listing = listed(root)
    assert pairs(listing) == [
        ('train/a/1.mp4', 0),
        ('train/a/deep/2.mp4', 0),
        ('train/b/4.mp4', 1),
        ('train/b/more/5.mp4', 1),
    ]
    assert listing.class_names == ['a', 'b']


def test_names_that_are_not_text(root):
    put(root, 'train/a/1.mp4', 'validation/a/2.mp4')
    with open(os.path.join(os.fsencode(root), b'train/a/\xff.mp4'), 'wb'):
        pass
    listing = listed(root)
    assert pairs(listing) == [('train/a/1.mp4', 0)]
    assert listing.bad == [('train/a/\\xff.mp4', 'its name is not UTF-8')]


def test_accents_may_be_written_in_two_ways(root):
    put(root, unicodedata.normalize('NFC', 'train/été/1.mp4'), 'train/run/1.mp4')
    put(root, unicodedata.normalize('NFD', 'validation/été/1.mp4'))
    validation = listed(root, 'validation')
    assert (validation.class_names, validation.entries[0].label) == (['run', 'été'], 1)
    assert (root / validation.entries[0].path).is_file()


def test_a_class_that_train_does_not_have(root):
    put(root, 'train/a/1.mp4', 'train/b/1.mp4', 'validation/c/1.mp4')
    assert message(root, 'validation') == 'class folder ROOT/validation/c is not among the 2 of train'


def test_folders_of_images(root):
    put(root, 'train/a/v 1/1.jpg', 'train/a/v 1/2.JPG', 'train/a/deeper/v2/x.png', 'train/b/v3/y.jpeg')
    put(root, 'train/a/v 1/below/3.jpg', 'train/b/v4/notes.txt', 'train/b/5.jpg', 'validation/b/v6/1.jpg')
    (root / 'train/b/v7/dir.jpg').mkdir(parents=True)
    (root / 'train/b/v8').mkdir()
    train = listed(root, endings=IMAGES, folders=True)
    assert pairs(train) == [('train/a/deeper/v2', 0), ('train/a/v 1', 0), ('train/b/v3', 1)]
    assert train.bad == [
        ('train/b/5.jpg', '1 of 1 files that must lie in folders of their own'),
        ('train/b/v4', 'holds none of .jpeg, .jpg, .png'),
        ('train/b/v7/dir.jpg', 'holds none of .jpeg, .jpg, .png'),
        ('train/b/v8', 'holds none of .jpeg, .jpg, .png'),
    ]
    assert pairs(listed(root, 'validation', endings=IMAGES, folders=True)) == [('validation/b/v6', 1)]


def test_folders_that_hold_no_classes(root):
    forms = 'ROOT/train/CLASS/*.mp4, ROOT/CLASS/*.mp4 or ROOT/train.csv (path,label)'
    with pytest.raises(
        ValueError, match=r'^config.data.root is not set: give .* --config.data.csv=FILE \(docs/data.md\)$'
    ):
        list_examples('train', layout=Layout(), endings=ENDINGS)
    assert message(root) == f"config.data.root='ROOT' is not a folder: it must hold {forms}"
    root.mkdir()
    ends = 'endings are .avi, .mp4, .webm'
    assert message(root) == f'ROOT has no examples as CLASS/*: {ends}; ROOT holds nothing'
    put(root, '1.mp4', 'clips.csv')
    told = (
        'ROOT has 1 video, but no folders of classes: make a folder a class, ROOT/CLASS/*.mp4, or give a table with '
        '--config.data.csv=FILE'
    )
    assert message(root) == told
    put(root, '2.AVI')
    assert message(root) == told.replace('1 video', '2 videos')
    (root / '2.AVI').unlink()
    put(root, 'videos/2.mp4')
    single = (
        'ROOT has a single class folder, videos: if the classes are in it, give --config.data.root=ROOT/videos, if a '
        'table tells them, --config.data.csv=FILE; ROOT holds videos/, 1.mp4, clips.csv'
    )
    assert message(root) == single
    put(root, 'train/videos/a/2.mp4', 'train/videos/b/2.mp4')
    assert message(root).startswith(
        'ROOT/train has a single class folder, videos: if the classes are in it, give'
    )
    put(root, 'train/a/1.mp4', 'val/a/1.mp4', 'valid/a/1.mp4')
    assert message(root) == 'ROOT has two folders of a split among train/, val/, valid/: keep one of each'
    put(root, 'train/a/1.jpg')
    assert message(root / 'train/a', endings=IMAGES, folders=True) == (
        'ROOT has 1 image, but no folders of classes: make a folder a class, ROOT/CLASS/EXAMPLE/*.jpg, or give a '
        'table with --config.data.csv=FILE'
    )
    put(root, 'bare/train/scan.nii.gz', 'bare/train/b.nii.gz', 'frames/video 1/1.jpg')
    assert message(root / 'bare', endings=('.nii', '.nii.gz')) == (
        'ROOT/train has 2 files, but no folders of classes: make a folder a class, ROOT/train/CLASS/*.nii.gz, or '
        'give a table with --config.data.csv=FILE'
    )
    assert message(root / 'frames', endings=IMAGES, folders=True).startswith(
        'ROOT has no examples as CLASS/EXAMPLE/*: endings are .jpeg, .jpg, .png; ROOT holds video 1/'
    )


def test_what_folders_cannot_tell(root):
    put(root, 'a/1.mp4', 'b/1.mp4')
    assert message(root, heads=('noun', 'verb')) == (
        "config.data.heads=('noun', 'verb') needs a table, but the examples in ROOT lie in folders: give "
        '--config.data.csv=FILE'
    )
    assert message(root, group='subject').startswith(
        "config.data.group='subject' needs a table, but the examples in"
    )
    put(root, 'train/a/1.mp4', 'train/b/1.mp4', 'val/a/1.mp4')
    assert len(listed(root, group='subject').entries) == 2  # nothing is drawn


def test_settings_that_make_no_sense(root):
    assert message(root, validation_share=1.0) == 'config.data.validation_share=1.0: must be in (0, 1)'
    assert message(root, validation_share=0.0) == 'config.data.validation_share=0.0: must be in (0, 1)'
    expected = "config.data.num_classes=(4,) must be one each of config.data.heads=('noun', 'verb')"
    assert message(root, num_classes=(4,), heads=('noun', 'verb')) == expected


# Tables


def tables(root, **texts):
    for name, text in texts.items():
        put(root, f'{name}.csv', text=text)


def test_tables_of_class_numbers(root):
    tables(
        root,
        train='path,label\ntrain/b/1.mp4,7\ntrain/a/2.avi,2\n\n',
        validation='path,label\ntrain/b/1.mp4,3\n',
        others='file;class\nx;y;z\n',
    )
    listing = listed(root)
    assert listing.class_names == ['0', '1', '2', '3', '4', '5', '6', '7']
    assert listing.entries == [
        Entry(path='train/b/1.mp4', label=7, where='train.csv, line 2'),
        Entry(path='train/a/2.avi', label=2, where='train.csv, line 3'),
    ]
    assert (listing.folder, listing.splits, listing.bad, listing.note) == (
        root,
        ('train', 'validation'),
        [],
        '',
    )
    assert listed(root, num_classes=(9,)).class_names[-1] == '8'


def test_tables_of_class_names(root):
    tables(
        root,
        train='path,label\nb/1.mp4,"run, fast"\n',
        val='label, path\nrun, b/1.mp4\njump, a/2.mp4\n',
        test='\ufeffpath,class\r\nü x.mp4,run\r\n',
    )
    listings = [listed(root, split) for split in ('train', 'validation', 'test')]
    assert [listing.class_names for listing in listings] == [['jump', 'run', 'run, fast']] * 3
    assert [pairs(listing) for listing in listings] == [
        [('b/1.mp4', 2)],
        [('b/1.mp4', 1), ('a/2.mp4', 0)],  # in both splits: the same path tells it
        [('ü x.mp4', 1)],
    ]


def test_several_heads(root):
    tables(
        root,
        train='path,noun,verb\na.mp4,2,cut\nb.mp4,0,add\nc.mp4,,add\nd.mp4,3,\n',
        val='path,verb,noun\nx,add,1\n',
    )
    heads = ('noun', 'verb')
    listing = listed(root, heads=heads)
    assert (listing.class_names, pairs(listing)) == (
        ['0', '1', '2', '3', 'add', 'cut'],
        [('a.mp4', (2, 1)), ('b.mp4', (0, 0))],
    )
    assert listing.bad == [('train.csv, line 4', 'noun is empty'), ('train.csv, line 5', 'verb is empty')]
    assert pairs(listed(root, heads=('verb', 'noun')))[0] == ('a.mp4', (1, 2))
    assert listed(root, heads=heads, num_classes=(5, 2)).class_names == [
        '0',
        '1',
        '2',
        '3',
        '4',
        'add',
        'cut',
    ]
    assert message(root).startswith(
        'ROOT/train.csv has no column label: it has path, noun, verb; say which hold the labels'
    )


def test_several_labels(root):
    tables(
        root,
        train='path,label\na.mp4,run|jump\nb.mp4,jump\nc.mp4,\n',
        validation='path,label\nx.mp4,hop | run\n',
    )
    listing = listed(root, several_labels=True)
    assert listing.class_names == ['hop', 'jump', 'run']
    assert pairs(listing) == [('a.mp4', (0.0, 1.0, 1.0)), ('b.mp4', (0.0, 1.0, 0.0))]
    assert listing.bad == [('train.csv, line 4', 'label is empty')]
    assert pairs(listed(root, 'validation', several_labels=True)) == [('x.mp4', (1.0, 0.0, 1.0))]
    assert message(root) == (
        "train.csv, line 2: label='run|jump' has several labels: they need --config.training.loss=sigmoid; one label "
        "must not hold a '|'"
    )
    put(root, 'classes.txt', text='jump\nrun|jump\nrun\nhop | run\nhop')
    assert pairs(listed(root)) == [('a.mp4', 1), ('b.mp4', 0)]  # a name as it is


def test_names_of_classes(root, tmp_path):
    tables(root, train='path,label\na.mp4,1\nb.mp4,walk\nc.mp4,3\n', validation='path,label\na.mp4,0\n')
    put(root, 'classes.txt', text='\ufeffrun\r\nwalk\r\nhop\r\n\r\n')
    listing = listed(root)
    assert (listing.class_names, pairs(listing)) == (['run', 'walk', 'hop'], [('a.mp4', 1), ('b.mp4', 1)])
    assert listing.bad == [
        ('train.csv, line 4', "label='3': must be one of the 3 classes of classes.txt: run, walk, hop")
    ]
    assert message(root, num_classes=(4,)) == 'classes.txt has 3 classes, but data.num_classes gives label 4'
    tables(root, train='path,noun,verb\na.mp4,1,0\n', validation='path,noun,verb\na.mp4,0,0\n')
    put(root, 'verb_classes.txt', text='cut\nadd\n')
    assert listed(root, heads=('noun', 'verb')).class_names == ['0', '1', 'cut', 'add']


def test_parts_of_files(root):
    tables(
        root,
        train='path,label,start,end\na.mp4,0,1.5,00:01:02.25\nb.mp4,0,,4\nc.mp4,1,3,\nd.mp4,0,4,4\ne.mp4,0,-1,2\n'
        'f.mp4,0,nan,2\ng.mp4,0,1e400,2\n',
        validation='path,label,start_frame,stop_frame\na.mp4,0,5,17\nb.mp4,0,,4.0\nc.mp4,0,3,\nd.mp4,1,4,4\ne.mp4,0,x,9\n',
    )
    listing = listed(root)
    times = [(entry.start, entry.end, entry.first, entry.stop) for entry in listing.entries]
    assert times == [(1.5, 62.25, 0, None), (0.0, 4.0, 0, None), (3.0, math.inf, 0, None)]
    assert listing.bad == [
        ('train.csv, line 5', "start='4', end='4': it must end after it starts"),
        ('train.csv, line 6', "start='-1', end='2': must be seconds, as 83.5 or 00:01:23.5"),
        ('train.csv, line 7', "start='nan', end='2': must be seconds, as 83.5 or 00:01:23.5"),
        ('train.csv, line 8', "start='1e400', end='2': it must end after it starts"),
    ]
    listing = listed(root, 'validation')
    frames = [(entry.start, entry.end, entry.first, entry.stop) for entry in listing.entries]
    assert frames == [(0.0, math.inf, 5, 17), (0.0, math.inf, 0, 4), (0.0, math.inf, 3, None)]
    assert listing.bad == [
        ('validation.csv, line 5', "start_frame='4', stop_frame='4': it must stop after it starts"),
        ('validation.csv, line 6', "start_frame='x', stop_frame='9': must be numbers of frames"),
    ]


def test_folders_go_by_frames_and_files_by_time(root):
    text = 'path,label,start,end,start_frame,stop_frame\nv1,0,1,2,30,60\n'
    tables(root, train=text, validation=text)
    (file,) = listed(root).entries
    assert (file.start, file.end, file.first, file.stop) == (1.0, 2.0, 0, None)
    (folder,) = listed(root, endings=IMAGES, folders=True).entries
    assert (folder.start, folder.end, folder.first, folder.stop) == (0.0, math.inf, 30, 60)


def test_paths(root):
    text = 'path,label\n./a//b.mp4,0\nx/../../c.mp4,0\n/abs/d e.mp4,0\ncl/ip/,0\n,0\n"e\nf.mp4",0\n'
    tables(root, train=text, validation=text)
    listing = listed(root)
    assert [entry.path for entry in listing.entries] == ['a/b.mp4', '../c.mp4', '/abs/d e.mp4', 'cl/ip']
    assert listing.bad == [
        ('train.csv, line 6', 'the path is empty'),
        ('train.csv, line 7', "path='e\\nf.mp4' goes over several lines: is a quote not closed?"),
    ]


# Which table


def test_one_table_of_all_splits(root, tmp_path):
    text = (
        'path,label,split\na.mp4,0,train\nb.mp4,1,Val\nc.mp4,2,test\nd.mp4,0,trian\ne.mp4,1,\nf.mp4,1,train\n'
    )
    put(tmp_path, 'all.csv', text=text)
    options = {'csv': str(tmp_path / 'all.csv')}
    listing = list_examples('train', layout=Layout(**options), endings=ENDINGS)
    assert (listing.folder, listing.splits, listing.note) == (tmp_path, ('train', 'validation', 'test'), '')
    assert pairs(listing) == [('a.mp4', 0), ('f.mp4', 1)]
    assert listing.bad == [
        ('all.csv, line 5', "split='trian': must be one of train, validation, test"),
        ('all.csv, line 6', "split='': must be one of train, validation, test"),
    ]
    root.mkdir()
    for split, expected in (('validation', [('b.mp4', 1)]), ('test', [('c.mp4', 2)])):
        listing = listed(root, split, **options)
        assert (listing.folder, pairs(listing), listing.bad) == (root, expected, [])
        assert listing.class_names == ['0', '1', '2']
    assert message(root, 'mine', **options).endswith(
        "all.csv has no split 'mine': it has train, validation, test; choose of them with --config.data.train_split, "
        'validation_split and test_splits, or add a folder or table of that name'
    )


def test_a_table_for_each_split(root, tmp_path, monkeypatch):
    put(tmp_path, 'a, b=c.csv', text='path,label\na.mp4,x\n')
    put(root, 'in root.tsv', text='path\tlabel\nb.mp4\ty\n')
    put(tmp_path, 'mine.txt', text='c d.mp4 x\n')
    monkeypatch.chdir(tmp_path)
    csv = 'train=a, b=c.csv,val=in root.tsv,mine=mine.txt'
    listings = [listed(root, split, csv=csv) for split in ('train', 'validation', 'mine')]
    assert [pairs(listing) for listing in listings] == [[('a.mp4', 0)], [('b.mp4', 1)], [('c d.mp4', 0)]]
    assert {listing.splits for listing in listings} == {('train', 'validation', 'mine')}
    assert listed(root, csv='a, b=c.csv').entries[0].where == 'a, b=c.csv, line 2'
    for wrong in ('train=mine.txt,training=mine.txt', '=mine.txt'):
        assert message(root, csv=wrong) == (
            f'config.data.csv={wrong!r}: must be FILE or SPLIT=FILE,SPLIT=FILE, as train=a.csv,validation=b.csv, '
            'each split once'
        )
    expected = 'config.data.csv: there is no table gone.csv nor ROOT/gone.csv'
    assert message(root, csv='train=mine.txt,val=gone.csv') == message(root, csv='gone.csv') == expected
    assert message(root, 'test', csv='val=mine.txt').startswith(
        "mine.txt has no split 'test': it has validation; choose"
    )


@pytest.mark.parametrize(
    'name', ['train.tsv', 'training.txt', 'trainingSet.csv', 'TRAIN.csv', 'kinetics-400_train.csv']
)
def test_names_of_tables(root, name):
    put(root, name, text='path\tlabel\na.mp4\t0\n')
    put(root, 'dev.jsonl', text='{"path": "b.mp4", "label": 1}\n')
    assert pairs(listed(root)) == [('a.mp4', 0)]
    assert pairs(listed(root, 'validation')) == [('b.mp4', 1)]


def test_tables_of_one_split_more(root):
    """It adds no classes: they are the same whichever split is asked for."""
    tables(
        root,
        train='path,label\na.mp4,x\n',
        validation='path,label\na.mp4,y\n',
        extra='path,label\na.mp4,y\nb.mp4,z\n',
    )
    assert listed(root).splits == ('train', 'validation')
    extra = listed(root, 'extra')
    assert (pairs(extra), extra.class_names) == ([('a.mp4', 1)], ['x', 'y'])
    ((where, cause),) = extra.bad
    assert where == 'extra.csv, line 3'
    assert cause.startswith("label='z': must be one of the 2 classes of ")
    (root / 'train.csv').unlink()
    (root / 'validation.csv').unlink()
    assert listed(root, 'extra').class_names == ['y', 'z']


def test_validation_is_drawn_from_the_table_of_train(root):
    rows = ''.join(f'{i}.mp4,{i % 2},s{i // 4}\n' for i in range(40))
    tables(root, train=f'path,label,subject\n{rows}x.mp4\n', test='path,label,subject\ny.mp4,1,s1\n')
    train, validation, test = (
        listed(root, split, group='Subject') for split in ('train', 'validation', 'test')
    )
    assert [len(listing.entries) for listing in (train, validation, test)] == [32, 8, 1]
    assert train.splits == ('train', 'validation', 'test')
    subjects = [{int(path[:-4]) // 4 for path, _ in pairs(listing)} for listing in (train, validation)]
    assert (len(subjects[0]), len(subjects[1]), subjects[0] & subjects[1]) == (8, 2, set())
    expected = (
        'no validation split is given: 8 of 40 of train (20 %) are taken, drawn by name (seed 0), '
        'grouped by Subject'
    )
    assert (train.note, validation.note, test.note) == (expected, expected, '')
    assert [len(listing.bad) for listing in (train, validation, test)] == [1, 0, 0]
    assert message(root, group='person') == (
        "config.data.group='person' is no column of ROOT/train.csv: it has path, label, subject"
    )


def test_parts_of_one_file_are_not_parted(root):
    rows = ''.join(f'{i // 3}.mp4,{i % 3},{i},{i + 1}\n' for i in range(30))
    put(root, 'all.csv', text=f'path,label,start,end\n{rows}')
    train, validation = (listed(root, split, csv=str(root / 'all.csv')) for split in ('train', 'validation'))
    assert (len(train.entries), len(validation.entries)) == (24, 6)
    assert not {path for path, _ in pairs(train)} & {path for path, _ in pairs(validation)}
    assert train.note == 'no split is given: 24 train, 6 validation (20 %), drawn by name (seed 0)'


def test_rows_without_a_group(root):
    put(root, 'all.csv', text='path,label,who\na.mp4,0,x\nb.mp4,0,y\nc.mp4,0,\n')
    listings = [
        listed(root, split, csv=str(root / 'all.csv'), group='who') for split in ('train', 'validation')
    ]
    assert [len(listing.entries) for listing in listings] == [1, 1]
    assert [listing.bad for listing in listings] == [[('all.csv, line 4', 'who is empty')], []]
    put(root, 'all.csv', text='path,label,who\na.mp4,0,x\nb.mp4,0,x\n')
    assert message(root, 'validation', csv='all.csv', group='who').endswith(
        'all.csv: no class has two examples that could be parted, so none are left for the split validation: give '
        'a table of it'
    )


def test_tables_and_folders_that_contradict(root):
    tables(root, train='path,label\na.mp4,0\n')
    put(root, 'valid/a/1.mp4', 'train/a/1.mp4')
    expected = 'ROOT has train.csv but no table of valid/: give all splits as tables, or none'
    assert message(root) == message(root, 'validation') == expected
    (root / 'train.csv').rename(root / 'dev.csv')
    assert (
        message(root, 'validation')
        == 'ROOT has dev.csv but no table of train/: give all splits as tables, or none'
    )


def test_tables_that_contradict_each_other(root):
    tables(root, train='path,noun,verb\nx.mp4,0,1\n', validation='path,noun\nx.mp4,0\n')
    expected = 'ROOT/validation.csv has no column verb: it has path, noun; say which hold the labels with '
    assert message(root, heads=('noun', 'verb')) == expected + '--config.data.heads=COLUMN,…'
    tables(root, train='path,label\nx.mp4,run\n', validation='path,label\nx.mp4,0\n')
    assert message(root) == (
        "ROOT/validation.csv has numbers in the column label, but ROOT/train.csv has names, as 'run': they "
        'must be alike'
    )
    put(root, 'val.csv', text='path,label\nx.mp4,run\n')
    assert message(root) == (
        'ROOT has two tables of the split validation, val.csv and validation.csv: keep one, or give '
        '--config.data.csv=validation=ROOT/validation.csv,…'
    )


# Broken rows


def test_one_bad_row_in_ten_thousand(root):
    lines = [f'ö {i}.mp4,class {i % 7}' for i in range(10_000)]
    lines[6_665] = 'ö 6665.mp4'
    put(root, 'train.csv', text=('\ufeffpath,label\r\n' + '\r\n'.join(lines) + '\r\n').encode())
    tables(root, validation='path,label\nx.mp4,class 0\n')
    listing = listed(root)
    assert len(listing.entries) == 9_999
    assert listing.bad == [('train.csv, line 6667', "1 values, 'ö 6665.mp4', instead of 2, path,label")]
    assert listing.entries[6_665].path == 'ö 6666.mp4'
    assert listing.entries[-1].where == 'train.csv, line 10001'
    assert listing.class_names == [f'class {i}' for i in range(7)]


def test_every_kind_of_broken_row(root):
    rows = ['a.mp4,0,1', 'b.mp4', 'c.mp4,,2', 'd.mp4,x,1', ',1,1', 'e.mp4,5,1', 'f.mp4,1,y', 'g.mp4,-1,1']
    rows += ['h.mp4,1,"2\n3"', 'i.mp4,1,1,1', '', 'j.mp4,1,']
    put(root, 'train.csv', text='\n'.join(['path,label,start', *rows]))
    tables(root, validation='path,label\nx.mp4,0\n')
    listing = listed(root, num_classes=(2,))
    assert pairs(listing) == [('a.mp4', 0), ('j.mp4', 1)]
    bound = 'must be a number in [0, 2)'
    assert listing.bad == [
        ('train.csv, line 3', "1 values, 'b.mp4', instead of 3, path,label,start"),
        ('train.csv, line 4', 'label is empty'),
        ('train.csv, line 5', f"label='x': {bound}"),
        ('train.csv, line 6', 'the path is empty'),
        ('train.csv, line 7', f"label='5': {bound}"),
        ('train.csv, line 8', "start='y', end='': must be seconds, as 83.5 or 00:01:23.5"),
        ('train.csv, line 9', f"label='-1': {bound}"),
        ('train.csv, line 10', "start='2\\n3', end='': must be seconds, as 83.5 or 00:01:23.5"),
        ('train.csv, line 12', "4 values, 'i.mp4,1,1,1', instead of 3, path,label,start"),
    ]


def test_a_quote_that_is_not_closed_makes_no_class(root):
    tables(
        root,
        train='path,label\na.mp4,run\nb.mp4,"jump\nc.mp4,run\nd.mp4,run\n',
        validation='path,label\nx.mp4,run\n',
    )
    listing = listed(root)
    assert (listing.class_names, pairs(listing)) == (['run'], [('a.mp4', 0)])
    assert listing.bad == [
        (
            'train.csv, line 3',
            "label='jump\\nc.mp4,run\\nd.mp4,run' goes over several lines: is a quote not closed?",
        )
    ]


def test_no_row_can_be_used(root):
    tables(root, train='path,label\na.mp4,\nb.mp4,\n', validation='path,label\nx.mp4,0\n')
    assert message(root) == (
        'ROOT/train.csv: none of the 2 rows of the split train can be used: train.csv, line 2: label is empty; '
        'train.csv, line 3: label is empty'
    )


def test_no_row_tells_its_split(root):
    put(root, 'all.csv', text='path,label,split\na.mp4,0,fold1\n')
    assert message(root, csv='all.csv').endswith(
        "all.csv: none of the 1 rows of the split train can be used: all.csv, line 2: split='fold1': must be one of "
        'train, validation, test'
    )


def test_tables_with_mistakes(root):
    expected = {
        'path\nx.mp4\n': 'ROOT/train.csv has no column label: it has path; say which hold the labels with '
        '--config.data.heads=COLUMN,…',
        'name,label\nx.mp4,0\n': 'ROOT/train.csv has no column of files: it has name, label, and must have one of '
        'path, video_path, video, file, filename, file_name, or be an annotation of Kinetics, Something-Something '
        'v2, EPIC-Kitchens-100 or Moments in Time as published',
        'path,label\n': "ROOT/train.csv has no rows under its header 'path,label'",
        'path,label,label\nx,0,1\n': "ROOT/train.csv has two columns 'label'",
        'path,label,path\nx,0,y\n': "ROOT/train.csv has two columns 'path'",
    }
    for text, line in expected.items():
        put(root, 'train.csv', text=text)
        assert message(root) == line


def test_examples_beside_the_class_folders_are_said(root):
    put(root, 'train/a/1.mp4', 'train/b/2.mp4', 'train/loose.mp4', 'train/notes.txt', 'validation/a/3.mp4')
    assert listed(root).bad == [('train/loose.mp4', 'lies in no class folder')]
    assert len(listed(root).entries) == 2
