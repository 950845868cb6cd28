"""Finds and reads MNIST, Fashion-MNIST and CIFAR-10 in the formats that they are published in."""

import gzip
import os
from pathlib import Path

import numpy as np

from tffed.data import npz
from tffed.data.cifar_batches import read_batch

_SHAPES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
_DEBIAN = {"fashion_mnist": "/usr/share/datasets/fashion-mnist"}
_KERAS = {
    "mnist": ("mnist.npz",),
    "fashion_mnist": ("fashion-mnist",),
    "cifar10": ("cifar-10-batches-py-target/cifar-10-batches-py", "cifar-10-batches-py"),
}
_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_NPZ = ("x_train", "y_train", "x_test", "y_test")
_CIFAR = tuple(f"data_batch_{i}" for i in range(1, 6))


def find_images(name: str, path=None):
    """Looks for an image data set in the places where it may be.

    Args:
        name: `"mnist"`, `"fashion_mnist"` or `"cifar10"`.
        path: Folder or npz file to read; nothing else is tried if given.

    Returns:
        `(x_train, y_train, x_test, y_test)`, float32 images in [0, 1] with a channel axis and
        int64 labels `[N]`, and a sentence that says where they came from.

    Raises:
        FileNotFoundError: No place has the data.
        ValueError: Files that are damaged or of another data set.
    """
    if path is not None:
        places = [(Path(path).expanduser(), "given path")]
    else:
        places = [(Path(_DEBIAN[name]), "Debian package")] if name in _DEBIAN else []
        cache = _keras_home() / "datasets"
        places += [(cache / folder, "Keras cache") for folder in _KERAS[name]]
    for place, kind in places:
        arrays = read_images(place)
        if arrays is not None:
            return _finish(arrays, _SHAPES[name], str(place)), f"{kind} {place}"
    tried = "; ".join(f"{kind} {place}" for place, kind in places)
    if path is not None:
        raise FileNotFoundError(_not_found(name, tried))
    arrays, origin = _download(name, tried)
    return _finish(arrays, _SHAPES[name], origin), origin


def read_images(place: Path):
    """Reads `(x_train, y_train, x_test, y_test)` from a file or folder, `None` if not there.

    Raises:
        ValueError: The file or files are damaged.
    """
    if place.is_file() and place.suffix == ".npz":
        return _checked(place, _read_npz)
    idx = [_variant(place, stem) for stem in _IDX]
    if all(idx):
        return tuple(_checked(file, _read_idx) for file in idx)
    for ending, reader in ((".bin", _read_cifar_binary), ("", _read_cifar_pickle)):
        files = [place / (stem + ending) for stem in (*_CIFAR, "test_batch")]
        if all(file.is_file() for file in files):
            batches = [_checked(file, reader) for file in files]
            train = [np.concatenate(part) for part in zip(*batches[:-1], strict=True)]
            return (*train, *batches[-1])
    return None


def _keras_home() -> Path:
    # As Keras settles it, without importing Keras for a look at a folder.
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras").expanduser()


def _variant(folder, stem):
    dotted = stem.replace("-idx", ".idx")
    files = [folder / (name + end) for name in (stem, dotted) for end in (".gz", "")]
    return next((file for file in files if file.is_file()), None)


def _checked(file, reader):
    try:
        return reader(file)
    except Exception as error:  # gzip, zipfile and NumPy raise many kinds
        raise ValueError(
            f"Expected {str(file)!r} to be a file of the data set. Received: a file that cannot be "
            f"read ({type(error).__name__}: {error}). Copy or download it again."
        ) from error


def _read_idx(file):
    content = (gzip.open if file.suffix == ".gz" else open)(file, "rb")
    with content:
        data = content.read(npz.MOST + 1)
    if len(data) > npz.MOST:
        raise ValueError(f"it unpacks to more than {npz.MOST:,} bytes")
    if data[:3] != b"\x00\x00\x08":  # two zero bytes and the code of unsigned bytes
        raise ValueError("not an IDX file of bytes")
    header = 4 + 4 * data[3]
    shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _read_npz(file):
    return tuple(npz.read_arrays(file, _NPZ, npz.MOST).values())


def _read_cifar_binary(file):
    rows = np.frombuffer(file.read_bytes(), np.uint8).reshape(-1, 3073)
    return _channels_last(rows[:, 1:]), rows[:, 0]


def _read_cifar_pickle(file):
    rows, labels = read_batch(file.read_bytes())
    return _channels_last(rows), labels


def _channels_last(rows):
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _download(name, tried):
    import keras

    origin = f"download by keras.datasets.{name}"
    try:
        (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras raises plain Exception
        raise FileNotFoundError(_not_found(name, f"{tried}; {origin} ({error})")) from error
    return (x_train, y_train, x_test, y_test), origin


def _not_found(name, tried):
    return (
        f"Expected the files of {name} in one of the places tried. Received: none in: {tried}. "
        f"Bring the files and give their folder or npz file: tffed.data.{name}(path=...)."
    )


def _finish(arrays, shape, where):
    x_train, y_train, x_test, y_test = arrays
    return (
        *_finish_part(x_train, y_train, shape, where), *_finish_part(x_test, y_test, shape, where)
    )


def _finish_part(x, y, shape, where):
    y = y.reshape(-1)
    plain = x.shape[1:] in (shape, shape[:2] if shape[2] == 1 else shape)
    if x.dtype != np.uint8 or not plain or len(x) != len(y) or not len(y):
        raise ValueError(
            f"Expected as many uint8 images of shape {shape} as labels in {where}. Received: "
            f"images {x.dtype} {x.shape}, {len(y)} labels. Check that it is this data set."
        )
    if y.min() < 0 or y.max() > 9:
        raise ValueError(
            f"Expected labels from 0 to 9 in {where}. Received: {y.min()} to {y.max()}. Check that "
            "it is this data set."
        )
    x = np.divide(x.reshape(-1, *shape), np.float32(255), dtype=np.float32)
    return x, y.astype(np.int64)
