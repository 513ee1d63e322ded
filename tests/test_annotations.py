"""Published annotations, read as they are, and the files they name."""

import json
import math

import pytest

from vivit_jax.data.listing import Entry, Layout, list_examples

ENDINGS = ('.avi', '.mp4', '.webm')
IMAGES = ('.jpeg', '.jpg', '.png')


@pytest.fixture
def root(tmp_path):
    return tmp_path


def put(root, *names):
    """Puts empty files into a folder."""
    for name in names:
        write(root, name, '')


def write(root, name, text):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def listed(root, split, heads=('label',), folders=False, **options):
    endings = IMAGES if folders else ENDINGS
    return list_examples(
        split, layout=Layout(root=str(root), heads=heads, **options), endings=endings, folders=folders
    )


KINETICS = (
    'label,youtube_id,time_start,time_end,split,is_cc\n'
    'testifying,---QUuC4vJs,84,94,{0},0\n'
    '"air drumming",_dbcJuKJQNs,40,50,{0},0\n'
    'abseiling,-3B32lodo2M,59,69,{0},0\n'
    'abseiling,gone_gone_g,0,10,{0},0\n'
)


@pytest.mark.parametrize('folder', ['', 'annotations/'])
@pytest.mark.parametrize('validation', ['val.csv', 'validate.csv', 'validation.csv'])
def test_kinetics(root, folder, validation):
    write(root, f'{folder}train.csv', KINETICS.format('train'))
    write(root, f'{folder}train.json', '{"published": "beside it"}')
    write(
        root,
        f'{folder}{validation}',
        'label,youtube_id,time_start,time_end,split\ntestifying,Aa,0,10,validate\n',
    )
    write(root, f'{folder}test.csv', 'youtube_id,time_start,time_end,split\nBb,0,10,test\n')
    put(root, 'train/testifying/---QUuC4vJs_000084_000094.mp4', 'train/air_drumming/_dbcJuKJQNs.MP4')
    put(root, 'train/flat/-3B32lodo2M_000059_000069.webm', 'train/testifying/---QUuC4vJs_000001_000011.mp4')
    put(root, 'val/Aa_000000_000010.mp4', 'val/aA_000000_000010.mp4')
    train = listed(root, 'train')
    assert train.class_names == ['abseiling', 'air drumming', 'testifying']
    assert train.splits == ('train', 'validation')
    # Files are cut already, so no times are applied to them.
    assert train.entries == [
        Entry(path='train/testifying/---QUuC4vJs_000084_000094.mp4', label=2, where='train.csv, line 2'),
        Entry(path='train/air_drumming/_dbcJuKJQNs.MP4', label=1, where='train.csv, line 3'),
        Entry(path='train/flat/-3B32lodo2M_000059_000069.webm', label=0, where='train.csv, line 4'),
    ]
    assert train.bad == [
        ('train.csv, line 5', f'no such file in {root}: gone_gone_g_000000_000010 or gone_gone_g')
    ]
    assert train.note == ''
    for name in ('validation', 'val'):
        assert listed(root, name).entries == [
            Entry(path='val/Aa_000000_000010.mp4', label=2, where=f'{validation}, line 2')
        ]
    with pytest.raises(
        ValueError, match=r'test.csv has no column label: it has youtube_id, .*data.heads=COLUMN'
    ):
        listed(root, 'test')


def test_kinetics_in_one_table(root):
    text = KINETICS.format('train') + 'abseiling,Cc,1,11,validate,1\nabseiling,Dd,1,11,test,1\n'
    write(root, 'kinetics.csv', text)
    put(root, '---QUuC4vJs.mp4', 'Cc.mp4', 'Dd_000001_000011.mp4')
    csv = str(root / 'kinetics.csv')
    assert listed(root, 'train', csv=csv).splits == ('train', 'validation', 'test')
    paths = {
        split: [entry.path for entry in listed(root, split, csv=csv).entries] for split in ('val', 'test')
    }
    assert paths == {'val': ['Cc.mp4'], 'test': ['Dd_000001_000011.mp4']}


def test_nothing_of_kinetics_is_there(root):
    write(root, 'train.csv', KINETICS.format('train'))
    with pytest.raises(
        ValueError,
        match=r'train.csv: none of the 4 rows of the split train can be used: train.csv, line 2: no such .*; …$',
    ):
        listed(root, 'train')


SSV2 = [
    {
        'id': '78687',
        'label': 'holding potato',
        'template': 'Holding [something] next to [something]',
        'placeholders': [],
    },
    {'id': '42326', 'label': 'closing a box', 'template': 'Closing [something]', 'placeholders': ['a box']},
    {'id': '100904', 'label': 'x', 'template': 'Unknown [something]', 'placeholders': ['x']},
]
SSV2_LABELS = {'Holding something next to something': '2', 'Closing something': '0', 'Opening something': '1'}


@pytest.mark.parametrize(
    ('train', 'validation', 'labels'),
    [
        (
            'something-something-v2-train.json',
            'something-something-v2-validation.json',
            'something-something-v2-labels.json',
        ),
        ('labels/train.json', 'labels/validation.json', 'labels/labels.json'),
        ('annotations/train.json', 'annotations/validation.json', 'labels.json'),
    ],
)
def test_something_something(root, train, validation, labels):
    write(root, train, json.dumps(SSV2, indent=0))
    write(root, validation, json.dumps(SSV2[1:2]))
    write(root, train.replace('train', 'test'), '[{"id": "1420"}]')
    write(root, labels, json.dumps(SSV2_LABELS))
    put(
        root,
        '20bn-something-something-v2/78687.webm',
        '20bn-something-something-v2/42326.mp4',
        'videos/100904.webm',
    )
    listing = listed(root, 'train')
    assert listing.class_names == [
        'Closing something',
        'Opening something',
        'Holding something next to something',
    ]
    name = train.rpartition('/')[2]
    assert listing.entries == [
        Entry(path='20bn-something-something-v2/78687.webm', label=2, where=f'{name}, item 1'),
        Entry(path='20bn-something-something-v2/42326.mp4', label=0, where=f'{name}, item 2'),
    ]
    file = labels.rpartition('/')[2]
    assert listing.bad == [
        (
            f'{name}, item 3',
            f"label='Unknown something': must be one of the 3 classes of {file}: Closing something, Opening "
            'something, Holding something next to something',
        )
    ]
    assert [entry.label for entry in listed(root, 'validation').entries] == [0]


def test_something_something_without_labels(root):
    write(root, 'train.json', json.dumps(SSV2))
    write(root, 'validation.json', json.dumps(SSV2))
    put(root, '42326.webm')
    listing = listed(root, 'train')
    assert listing.class_names == [
        'Closing something',
        'Holding something next to something',
        'Unknown something',
    ]
    assert [(entry.path, entry.label) for entry in listing.entries] == [('42326.webm', 0)]


def test_something_something_as_frames(root):
    write(root, 'train.json', json.dumps(SSV2[:2]))
    write(root, 'validation.json', json.dumps(SSV2[:2]))
    put(root, 'frames/78687/00001.jpg', 'frames/78687/00002.jpg')
    listing = listed(root, 'train', folders=True)
    assert [entry.path for entry in listing.entries] == ['frames/78687']
    assert listing.bad == [('train.json, item 2', f'no such folder in {root}: 42326')]


EPIC = (
    'narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,'
    'narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n'
    "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,3,['door'],[3]\n"
    'P01_01_1,P01,P01_01,00:00:02.629,00:01:04.37,01:00:06.17,262,370,turn on light,turn-on,6,light,1,['
    "'light'],[114]\n"
    'P01_102_0,P01,P01_102,00:00:01.100,00:00:00.00,00:00:02.23,1,111,take knife and plate,take,0,knife,2,"['
    "'knife', 'plate']\",\"[4, 2]\"\n"
    'P02_01_0,P02,P02_01,00:00:01.100,00:00:02.23,00:00:02.23,111,110,take,take,0,knife,2,x,x\n'
)


def test_epic_kitchens_videos(root):
    write(root, 'annotations/EPIC_100_train.csv', EPIC)
    write(root, 'annotations/EPIC_100_validation.csv', EPIC)
    write(root, 'annotations/EPIC_100_test_timestamps.csv', 'narration_id,video_id\nx,y\n')
    write(
        root,
        'annotations/EPIC_100_noun_classes.csv',
        "id,key,instances\n2,pan,\"['pan', 'wok']\"\n0,tap,x\n1,light,x\n3,door,x\n",
    )
    put(root, 'P01/videos/P01_01.MP4', 'P01/videos/P01_102.MP4', 'P02/videos/P02_01.MP4')
    listing = listed(root, 'train', ('noun', 'verb'))
    assert listing.class_names == ['tap', 'light', 'pan', 'door', '0', '1', '2', '3', '4', '5', '6']
    assert listing.splits == ('train', 'validation')
    table = 'EPIC_100_train.csv, line'
    assert listing.entries == [
        Entry(path='P01/videos/P01_01.MP4', label=(3, 3), where=f'{table} 2', start=0.14, end=3.37),
        Entry(path='P01/videos/P01_01.MP4', label=(1, 6), where=f'{table} 3', start=64.37, end=3606.17),
        Entry(path='P01/videos/P01_102.MP4', label=(2, 0), where=f'{table} 4', start=0.0, end=2.23),
    ]
    assert listing.bad == [
        (
            f'{table} 5',
            "start_timestamp='00:00:02.23', stop_timestamp='00:00:02.23': it must end after it starts",
        )
    ]
    assert listed(root, 'train', ('verb',), num_classes=(97,)).class_names[-1] == '96'


def test_epic_kitchens_frames(root):
    """frame_0000000008.jpg to frame_0000000202.jpg are the frames 7 to 201 of their folder."""
    write(root, 'EPIC_100_train.csv', EPIC)
    write(root, 'EPIC_100_validation.csv', EPIC)
    for name in ('P01_01', 'P02_01'):
        put(
            root,
            f'P01/rgb_frames/{name}/frame_0000000001.jpg',
            f'P01/flow_frames/{name}/u/frame_0000000001.jpg',
        )
    put(root, 'P01/rgb_frames/P01_102/frame_0000000001.jpg')
    listing = listed(root, 'train', ('noun', 'verb'), folders=True)
    table = 'EPIC_100_train.csv, line'
    assert listing.entries == [
        Entry(path='P01/rgb_frames/P01_01', label=(3, 3), where=f'{table} 2', first=7, stop=202),
        Entry(path='P01/rgb_frames/P01_01', label=(1, 6), where=f'{table} 3', first=261, stop=370),
        Entry(path='P01/rgb_frames/P01_102', label=(2, 0), where=f'{table} 4', first=0, stop=111),
    ]
    assert listing.entries[0].end == math.inf
    assert listing.bad == [
        (f'{table} 5', "start_frame='111', stop_frame='110': it must stop after it starts")
    ]


def test_moments_in_time(root):
    write(
        root,
        'trainingSet.csv',
        'bowing/b_1.mp4,bowing,3,1\nasking/a 2.mp4,asking,2,0\nasking/a3.mp4,flying,2,0\n',
    )
    write(root, 'validationSet.csv', 'bowing/b_1.mp4,bowing,3,1\n')
    write(root, 'moments_categories.txt', 'bowing,0\nasking,1\n\n')
    (root / 'training').mkdir()
    (root / 'validation').mkdir()
    listing = listed(root, 'train')
    assert listing.class_names == ['bowing', 'asking']
    assert listing.entries == [
        Entry(path='training/bowing/b_1.mp4', label=0, where='trainingSet.csv, line 1'),
        Entry(path='training/asking/a 2.mp4', label=1, where='trainingSet.csv, line 2'),
    ]
    assert listing.bad == [
        (
            'trainingSet.csv, line 3',
            "label='flying': must be one of the 2 classes of moments_categories.txt: bowing, asking",
        )
    ]
    assert listed(root, 'validation').entries[0].path == 'validation/bowing/b_1.mp4'


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('moments_categories.txt', 'bowing,0\nasking,2\n'),
        ('moments_categories.txt', 'bowing,0\nbowing,1\n'),
        ('moments_categories.txt', 'bowing,0\nasking\n'),
        ('moments_categories.txt', ''),
        ('classes.txt', 'bowing\nasking\nbowing\n'),
        ('classes.txt', 'bowing\n\nasking\n'),
    ],
)
def test_files_of_classes_with_mistakes(root, name, content):
    write(root, 'trainingSet.csv', 'bowing/b_1.mp4,bowing,3,1\n')
    write(root, name, content)
    with pytest.raises(
        ValueError, match=rf'{name} must name each class once, and number them from 0 without a gap'
    ):
        listed(root, 'train')


def test_files_of_classes_that_are_no_json(root):
    write(root, 'train.json', json.dumps(SSV2))
    write(root, 'labels.json', '{"a": ')
    with pytest.raises(ValueError, match=r'labels.json is not JSON: Expecting value'):
        listed(root, 'train')
    write(root, 'labels.json', '["a"]')
    with pytest.raises(ValueError, match=r'labels.json must name each class once'):
        listed(root, 'train')
