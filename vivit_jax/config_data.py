"""The settings of data: one group of the configuration, with every key, its unit and default (see `config`)."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def data_defaults() -> ConfigDict:
    """Returns the group `config.data`: where examples come from, and what is done to them."""
    data = ConfigDict()
    # video_files | frame_folders | volumes | array_record | tfrecords | tfds | medmnist | moving_digits
    data.source = 'video_files'
    data.root = placeholder(str)  # folder that holds the data
    data.csv = ''  # table of all splits, or SPLIT=FILE,SPLIT=FILE; '': folders and tables as found in root
    data.dataset = ''  # what the data is called, where it has to be fetched: said when it is missing
    data.train_split = 'train'  # what is trained on
    data.validation_split = 'validation'  # looked at during training
    data.test_splits = ('validation',)  # evaluated with all views at the end
    data.validation_share = 0.2  # of the examples, drawn by name, where no validation split is given
    data.split_seed = 0  # of that draw; not the run's seed, so that runs of several seeds share a split
    data.group = ''  # column of a table whose rows of equal value stay in one split, as subject; '': none
    data.on_bad_video = 'skip'  # a file that cannot be read: skip (named, counted, replaced) | error
    data.max_bad = (
        0.05  # share of a split's files that may be bad, one at least; more stop a run; 0: none may
    )
    # seconds of the processor that looking into a file, or reading a clip of it, may take: then it is given up as
    # bad; 0: never. Generous, and waiting does not count, so that which files are bad depends on them alone
    data.file_seconds = 60.0
    data.cache = ''  # folder for what was found in files; '': vivit_jax in the user's cache folder
    data.sampling = 'uniform'  # of training examples: uniform (each once an epoch) | balanced (classes alike)
    data.heads = ('label',)  # names of what is classified, as noun,verb
    data.num_classes = ()  # classes of each head; (): as the source tells
    data.train_examples = 0  # of the training split: for a dry run without data; 0: counted in the data
    data.frames = 32  # frames of a clip
    data.stride = 2  # frames of the video from one of the clip to the next; 1: every one
    data.fps = 0.0  # frames a second that strides are counted in, by time; 0: the video's own frames
    data.short = 'repeat_last'  # a video shorter than its clip: repeat_last | loop
    data.short_side = 256  # pixels, to which frames are resized before cropping; 0: not resized
    data.crop = (224, 224)  # pixels that the model sees (high, wide)
    data.channels = 3  # of a pixel: 3 for RGB, 1 for grey and for volumes
    data.scale_jitter = (0.9, 1.33)  # factors of short_side while training, uniform between
    data.flip = 0.5  # probability of mirroring left and right
    data.colour_jitter = 0.8  # probability of changing brightness, saturation, contrast, hue
    data.colour_drop = 0.1  # probability of a clip without colours
    data.randaugment_layers = 0  # operations of RandAugment a clip; 0: none
    data.randaugment_magnitude = 0.0  # their strength, 0 to 10 as in the original, more as in the paper
    # where flip, colour_jitter and colour_drop are computed, from the same draws: host (the threads that read) |
    # device (in the training step, to a grey level the same; what RandAugment or volume_augment follows stays on the
    # host) | auto (device from colour_jitter=0.6 on, where it would be less work on the same cores: on the host a
    # clip of 32x224x224 whose colours change takes 40 to 85 ms, in a step any clip half of that)
    data.augment_on = 'auto'
    data.threads = 8  # threads that read and augment, in each worker
    data.workers = 0  # processes that read and augment beside this one; 0: none, threads suffice
    data.prefetch = 2  # batches that lie ready on the device
    data.tfrecords = ConfigDict()
    data.tfrecords.files = ''  # SPLIT=NAME@SHARDS,…; '': as found in root by the splits' names
    data.tfds = ConfigDict()
    data.tfds.name = ''  # data set of TensorFlow Datasets, as ucf101/ucf101_1:2.0.0
    data.tfds.video = 'video'  # its feature that holds the frames
    data.tfds.label = 'label'  # its feature that holds the class
    data.moving_digits = ConfigDict()
    data.moving_digits.train_size = 16_000  # clips that count as an epoch
    data.moving_digits.validation_size = 512  # clips
    data.moving_digits.test_size = 2_048  # clips
    data.moving_digits.canvas = 32  # pixels, high and wide
    data.medmnist = ConfigDict()
    data.medmnist.name = 'organ'  # organ | nodule | adrenal | fracture | vessel | synapse
    data.medmnist.size = 28  # voxels along an axis: 28 | 64
    _add_volumes(data)
    _add_volume_augment(data)
    return data


def _add_volumes(data: ConfigDict) -> None:
    """Adds how scans are brought to one size and range (docs/volumes.md)."""
    data.volumes = ConfigDict()
    data.volumes.size = (0, 0, 0)  # voxels of every volume (deep, high, wide); 0: as much as the model sees
    data.volumes.fit = 'resample'  # to that size: resample (each axis for itself) | pad (and cut, centred)
    data.volumes.spacing = 0.0  # millimetres between voxels to resample NIfTI to before pad; 0: as stored
    data.volumes.slices = 'axial'  # of NIfTI, that follow one another: axial | coronal | sagittal
    data.volumes.depth_axis = 0  # of NumPy arrays, along which slices follow one another: 0 | 1 | 2
    data.volumes.intensity = 'percentiles'  # what is scaled to [-1, 1]: percentiles | window
    data.volumes.percentiles = (0.5, 99.5)  # percent of each scan's voxels: darkest, brightest
    data.volumes.window = (-1000.0, 1000.0)  # in the file's units, as Hounsfield's: darkest, brightest


def _add_volume_augment(data: ConfigDict) -> None:
    """Adds what is done to volumes in training, all of it off; three values are of depth, height and width."""
    data.volume_augment = ConfigDict()
    data.volume_augment.flip = (0.0, 0.0, 0.0)  # probabilities of mirroring; not where laterality is a class
    data.volume_augment.rotate90 = (0.0, 0.0, 0.0)  # probabilities of 90, 180 or 270 degrees about each axis
    data.volume_augment.affine = 0.0  # probability of the next three together
    data.volume_augment.rotation = (10.0, 10.0, 10.0)  # degrees about each axis at most
    data.volume_augment.scale = (0.9, 1.1)  # factors, uniform between
    data.volume_augment.translation = 0.05  # share of each side at most
    data.volume_augment.resized_crop = (1.0, 1.0)  # shares of each side that are cut out and enlarged to it
    data.volume_augment.intensity_scale = 0.0  # factors from 1 - this to 1 + this; in [0, 1)
    data.volume_augment.intensity_shift = 0.0  # added or taken at most, of the range of intensities
    data.volume_augment.noise = 0.0  # largest standard deviation, of the range of intensities
