"""Real data sets: three tables that ship with scikit-learn, and three image sets.

```python
data = digits()
clients = partition(*data.train, clients=10, scheme=Dirichlet(0.3), seed=1)
```
"""

from typing import NamedTuple

import numpy as np

from tffed.data.image_files import find_images
from tffed.data.schemes import require_number
from tffed.extras import require

_STREAM = 3  # keeps this stream of random numbers apart from those of partitioners and samplers


class Source(NamedTuple):
    """A data set, split for training and test.

    Attributes:
        train: `(x, y)`, float32 inputs and int64 labels `[N]` or float32 targets `[N]`.
        test: `(x, y)` likewise.
        num_classes: Number of classes; `None` for a regression.
        origin: Where the data came from.
    """

    train: tuple
    test: tuple
    num_classes: int | None
    origin: str


def digits(image: bool = False, test_fraction: float = 0.2, seed: int = 0) -> Source:
    """Handwritten digits, 8 by 8 pixels, 1,797 examples, 10 classes; ships with scikit-learn.

    Args:
        image: Whether x has shape `[N, 8, 8, 1]` rather than `[N, 64]`. Values are in [0, 1].
        test_fraction: Share of the examples held out, in (0, 1).
        seed: Seed of the split.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: `test_fraction` is not in (0, 1).
    """
    x, y = require("sklearn.datasets", "data").load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    x = x.reshape(-1, 8, 8, 1) if image else x
    train, test = _split(len(x), test_fraction, seed)
    y = y.astype(np.int64)
    return Source((x[train], y[train]), (x[test], y[test]), 10, _origin("load_digits"))


def breast_cancer(test_fraction: float = 0.2, seed: int = 0) -> Source:
    """Breast cancer (Wisconsin), 569 examples, 30 features, 2 classes; ships with scikit-learn.

    Features are standardised with the mean and deviation of the training part.

    Args:
        test_fraction: Share of the examples held out, in (0, 1).
        seed: Seed of the split.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: `test_fraction` is not in (0, 1).
    """
    x, y = require("sklearn.datasets", "data").load_breast_cancer(return_X_y=True)
    train, test = _split(len(x), test_fraction, seed)
    x, y = _standardise(x, train), y.astype(np.int64)
    return Source((x[train], y[train]), (x[test], y[test]), 2, _origin("load_breast_cancer"))


def diabetes(
    standardise_target: bool = False, test_fraction: float = 0.2, seed: int = 0
) -> Source:
    """Diabetes progression, 442 examples, 10 features, a regression; ships with scikit-learn.

    Features are standardised with the mean and deviation of the training part.

    Args:
        standardise_target: Whether y is standardised too; in its own units (25 to 346) otherwise.
        test_fraction: Share of the examples held out, in (0, 1).
        seed: Seed of the split.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: `test_fraction` is not in (0, 1).
    """
    datasets = require("sklearn.datasets", "data")
    x, y = datasets.load_diabetes(return_X_y=True, scaled=False)
    train, test = _split(len(x), test_fraction, seed)
    x = _standardise(x, train)
    y = _standardise(y, train) if standardise_target else y.astype(np.float32)
    return Source((x[train], y[train]), (x[test], y[test]), None, _origin("load_diabetes"))


def _split(total, test_fraction, seed):
    require_number("test_fraction", test_fraction, 0, 1, "Give for example 0.2.", above=True)
    size = round(test_fraction * total)
    if not 0 < size < total:
        raise ValueError(
            "Expected test_fraction to leave training and test examples. Received: "
            f"test_fraction={test_fraction} of {total} examples. Give for example 0.2."
        )
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAM,)))
    order = rng.permutation(total)
    return np.sort(order[size:]), np.sort(order[:size])


def _standardise(values, train):
    mean, scale = values[train].mean(axis=0), values[train].std(axis=0)
    return ((values - mean) / scale).astype(np.float32)


def _origin(loader):
    return f"scikit-learn {require('sklearn', 'data').__version__}, {loader}"


def fashion_mnist(path=None) -> Source:
    """Fashion-MNIST: 60,000 + 10,000 images of clothes, `[N, 28, 28, 1]` in [0, 1], 10 classes.

    Taken from the first of: `path`, the folder of Debian's package dataset-fashion-mnist, the
    Keras cache, a download by `keras.datasets`. A given path is not passed over.

    Args:
        path: Folder of the four IDX files (plain or .gz), or an npz file with arrays x_train,
            y_train, x_test, y_test of uint8 images.

    Raises:
        FileNotFoundError: No place has the data; the message names the places.
        ValueError: Files that are damaged or of another data set.
    """
    return _images("fashion_mnist", path)


def mnist(path=None) -> Source:
    """MNIST: 60,000 + 10,000 handwritten digits, `[N, 28, 28, 1]` in [0, 1], 10 classes.

    Taken from the first of: `path`, the Keras cache, a download by `keras.datasets`. A given path
    is not passed over.

    Args:
        path: Folder of the four IDX files (plain or .gz), or an npz file with arrays x_train,
            y_train, x_test, y_test of uint8 images.

    Raises:
        FileNotFoundError: No place has the data; the message names the places.
        ValueError: Files that are damaged or of another data set.
    """
    return _images("mnist", path)


def cifar10(path=None) -> Source:
    """CIFAR-10: 50,000 + 10,000 colour images, `[N, 32, 32, 3]` in [0, 1], 10 classes.

    Taken from the first of: `path`, the Keras cache, a download by `keras.datasets`. A given path
    is not passed over.

    Args:
        path: Folder of the batches in the binary or Python version (which is pickled, and is read
            without unpickling), or an npz file with arrays x_train, y_train, x_test, y_test of
            uint8 images. No file may unpack to more than 1 GiB.

    Raises:
        FileNotFoundError: No place has the data; the message names the places.
        ValueError: Files that are damaged or of another data set.
    """
    return _images("cifar10", path)


def _images(name, path):
    arrays, origin = find_images(name, path)
    x_train, y_train, x_test, y_test = arrays
    return Source((x_train, y_train), (x_test, y_test), 10, origin)
