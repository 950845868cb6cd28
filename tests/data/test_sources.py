"""Sources of real data: content, places looked in, formats, and refusals."""

import contextlib
import gzip
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from tffed import data
from tffed.data import image_files

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def test_digits_are_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets")
    source = data.digits()
    x, y = (np.concatenate(parts) for parts in zip(source.train, source.test, strict=True))
    assert x.shape == (1797, 64) and x.dtype == np.float32 and y.dtype == np.int64
    assert len(source.test[1]) == 359 and source.num_classes == 10
    assert "scikit-learn" in source.origin
    want_x, want_y = datasets.load_digits(return_X_y=True)
    order, want = np.lexsort([y, *x.T]), np.lexsort([want_y, *want_x.T])
    np.testing.assert_array_equal(x[order] * 16, want_x[want])
    np.testing.assert_array_equal(y[order], want_y[want])
    np.testing.assert_array_equal(
        data.digits(image=True).train[0], source.train[0].reshape(-1, 8, 8, 1)
    )


def test_splits_depend_on_the_seed_only():
    pytest.importorskip("sklearn")
    np.testing.assert_array_equal(data.digits().test[1], data.digits().test[1])
    assert not np.array_equal(data.digits(seed=1).test[1], data.digits().test[1])
    assert len(data.digits(test_fraction=0.5).test[1]) == 898
    for bad in (0, 1, -0.1, 0.0001, "a"):
        with pytest.raises(ValueError, match="test_fraction"):
            data.digits(test_fraction=bad)


@pytest.mark.parametrize("name, shape", [("breast_cancer", (569, 30)), ("diabetes", (442, 10))])
def test_tables_are_standardised_by_their_training_part(name, shape):
    pytest.importorskip("sklearn")
    source = getattr(data, name)()
    x = source.train[0]
    assert len(x) + len(source.test[0]) == shape[0] and x.shape[1] == shape[1]
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(0), 1, atol=1e-4)
    assert source.test[0].std(0).min() > 0.3 and x.dtype == np.float32


def test_diabetes_targets_have_their_units_or_none():
    pytest.importorskip("sklearn")
    source, standard = data.diabetes(), data.diabetes(standardise_target=True)
    y = np.concatenate([source.train[1], source.test[1]])
    assert source.num_classes is None and y.dtype == np.float32
    assert (y.min(), y.max()) == (25, 346)
    want = (source.test[1] - source.train[1].mean()) / source.train[1].std()
    np.testing.assert_allclose(standard.test[1], want, atol=1e-5)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_from_debian():
    source = data.fashion_mnist()
    assert source.origin == f"Debian package {DEBIAN}" and source.num_classes == 10
    assert source.train[0].shape == (60000, 28, 28, 1)
    assert source.test[0].shape == (10000, 28, 28, 1)
    assert source.train[0].dtype == np.float32 and source.train[1].dtype == np.int64
    raw = gzip.decompress((DEBIAN / "t10k-images-idx3-ubyte.gz").read_bytes())
    np.testing.assert_array_equal(
        source.test[0].reshape(-1) * 255, np.frombuffer(raw[16:], np.uint8)
    )
    assert (np.bincount(source.train[1]) == 6000).all()


def images(shape, train=6, test=3):
    rng = np.random.default_rng(8)
    return tuple(
        part for n in (train, test)
        for part in (rng.integers(0, 256, (n, *shape), dtype=np.uint8),
                     rng.integers(0, 10, n, dtype=np.uint8))
    )


def write_idx(folder, arrays, zipped=True, dotted=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(image_files._IDX, arrays, strict=True):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
        name = name.replace("-idx", ".idx") if dotted else name
        content = header + array.tobytes()
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


def write_npz(path, arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **dict(zip(image_files._NPZ, arrays, strict=True)))


def write_batches(folder, arrays, binary):
    folder.mkdir(parents=True, exist_ok=True)
    x_train, y_train, x_test, y_test = arrays
    parts = list(zip(np.array_split(x_train, 5), np.array_split(y_train, 5), strict=True))
    for name, (x, y) in zip((*image_files._CIFAR, "test_batch"), [*parts, (x_test, y_test)],
                            strict=True):
        rows = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        if binary:
            (folder / f"{name}.bin").write_bytes(np.column_stack([y, rows]).tobytes())
        else:
            batch = {b"data": rows, b"labels": y.tolist()}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def assert_holds(source, arrays):
    x_train, y_train, x_test, y_test = arrays
    for (x, y), (want_x, want_y) in zip((source.train, source.test),
                                        ((x_train, y_train), (x_test, y_test)), strict=True):
        np.testing.assert_array_equal(
            x.reshape(want_x.shape), want_x.astype(np.float32) / np.float32(255)
        )
        np.testing.assert_array_equal(y, want_y.reshape(-1))
        assert x.ndim == 4 and y.ndim == 1


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty Keras cache, no Debian folder and no network."""
    import keras

    def load_data():
        raise Exception("URL fetch failure")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(image_files, "_DEBIAN", {})
    for name in ("mnist", "fashion_mnist", "cifar10"):
        monkeypatch.setattr(getattr(keras.datasets, name), "load_data", load_data)
    return tmp_path / "keras" / "datasets"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dotted", [True, False])
def test_idx_files_in_a_given_folder(zipped, dotted, cache, tmp_path):
    arrays = images((28, 28))
    write_idx(tmp_path / "here", arrays, zipped, dotted)
    for read in (data.mnist, data.fashion_mnist):
        source = read(tmp_path / "here")
        assert_holds(source, arrays)
        assert source.origin == f"given path {tmp_path / 'here'}"


@pytest.mark.parametrize("binary", [True, False])
def test_cifar_batches_in_a_given_folder(binary, cache, tmp_path):
    arrays = images((32, 32, 3))
    write_batches(tmp_path / "here", arrays, binary)
    assert_holds(data.cifar10(str(tmp_path / "here")), arrays)


def test_npz_files(cache, tmp_path):
    grey, colour = images((28, 28)), images((32, 32, 3))
    write_npz(tmp_path / "grey.npz", grey)
    write_npz(tmp_path / "colour.npz", (colour[0], colour[1][:, None], *colour[2:]))
    assert_holds(data.mnist(tmp_path / "grey.npz"), grey)
    assert_holds(data.cifar10(tmp_path / "colour.npz"), colour)


def test_the_keras_cache_is_read(cache):
    grey, colour = images((28, 28)), images((32, 32, 3))
    write_npz(cache / "mnist.npz", grey)
    write_idx(cache / "fashion-mnist", grey)
    write_batches(cache / "cifar-10-batches-py-target" / "cifar-10-batches-py", colour, False)
    for read, arrays in ((data.mnist, grey), (data.fashion_mnist, grey), (data.cifar10, colour)):
        source = read()
        assert_holds(source, arrays)
        assert source.origin.startswith(f"Keras cache {cache}")


def test_a_download_is_the_last_resort(cache, monkeypatch):
    import keras

    arrays = images((32, 32, 3))
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: (
        (arrays[0], arrays[1][:, None]), (arrays[2], arrays[3][:, None])
    ))
    source = data.cifar10()
    assert_holds(source, arrays)
    assert source.origin == "download by keras.datasets.cifar10"


def test_all_places_tried_are_named(cache, monkeypatch):
    monkeypatch.setattr(image_files, "_DEBIAN", {"fashion_mnist": "/no/debian"})
    with pytest.raises(FileNotFoundError) as error:
        data.fashion_mnist()
    message = str(error.value)
    for place in ("/no/debian", str(cache / "fashion-mnist"), "keras.datasets.fashion_mnist",
                  "URL fetch failure", "fashion_mnist(path=...)"):
        assert place in message


def test_a_given_path_is_not_passed_over(cache, tmp_path):
    write_npz(cache / "mnist.npz", images((28, 28)))
    with pytest.raises(FileNotFoundError, match="none in: given path .*elsewhere"):
        data.mnist(tmp_path / "elsewhere")


@pytest.mark.parametrize("cut", [10, -20])
def test_damaged_idx_files_are_refused(cut, cache, tmp_path):
    write_idx(tmp_path, images((28, 28)), zipped=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="train-images.*cannot be read"):
        data.mnist(tmp_path)


def test_other_files_are_refused(cache, tmp_path):
    write_npz(tmp_path / "small.npz", images((8, 8)))
    with pytest.raises(ValueError, match=r"shape \(28, 28, 1\).*\(6, 8, 8\)"):
        data.mnist(tmp_path / "small.npz")
    x, y, x_test, y_test = images((28, 28))
    write_npz(tmp_path / "real.npz", (x / 255, y, x_test, y_test))
    with pytest.raises(ValueError, match="uint8.*float64"):
        data.mnist(tmp_path / "real.npz")
    write_npz(tmp_path / "labels.npz", (x, y + 10, x_test, y_test))
    with pytest.raises(ValueError, match="labels from 0 to 9"):
        data.mnist(tmp_path / "labels.npz")
    np.savez(tmp_path / "names.npz", a=x)
    with pytest.raises(ValueError, match="names.npz.*cannot be read"):
        data.mnist(tmp_path / "names.npz")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"not an idx file")
    write_idx(tmp_path, images((28, 28)), zipped=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"not an idx file")
    with pytest.raises(ValueError, match="not an IDX file"):
        data.mnist(tmp_path)


class Runs:
    """An object whose unpickling would run a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_batch_may_not_run_code(cache, tmp_path):
    write_batches(tmp_path, images((32, 32, 3)), binary=False)
    buffer = io.BytesIO()
    pickle.dump({b"data": Runs(tmp_path / "made")}, buffer, protocol=2)
    (tmp_path / "data_batch_3").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="data_batch_3.*holds 0 images and 0 labels"):
        data.cifar10(tmp_path)
    assert not (tmp_path / "made").exists()


def test_a_python_version_of_python_2_is_read(cache, tmp_path):
    """Its words as cPickle wrote them in 2009, with labels in two lots."""
    arrays = images((32, 32, 3))
    write_batches(tmp_path, arrays, binary=False)
    x = arrays[2].transpose(0, 3, 1, 2).tobytes()
    labels = [b"K" + bytes([y]) for y in arrays[3].tolist()]
    content = b"".join([
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x14testing batch 1 of 1q\x03U\x06labelsq\x04]q\x05",
        b"(", *labels[:2], b"e(", *labels[2:], b"eU\x04dataq\x06",
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08",
        b"K\x00\x85U\x01b\x87Rq\t(K\x01K",
        bytes([len(labels)]),
        b"M\x00\x0c\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ",
        b"\xff\xff\xff\xffK\x00tb\x89T", len(x).to_bytes(4, "little"), x,
        b"tbU\tfilenamesq\x0c]q\r(U\x05a.pngeu.",
    ])
    (tmp_path / "test_batch").write_bytes(content)
    assert_holds(data.cifar10(tmp_path), arrays)


class Evil:
    """An array of objects at addresses of the file's choice, as a pickle can make one."""

    def __reduce__(self):
        return np.frombuffer, (b"\x41" * 3072, "O8")


def test_a_pickle_that_makes_pointers_of_bytes_is_not_run(cache, tmp_path):
    write_batches(tmp_path, images((32, 32, 3)), binary=False)
    for content in ({b"data": Evil(), b"labels": [1]}, {b"labels": [1, 2], b"data": Evil()}):
        (tmp_path / "data_batch_2").write_bytes(pickle.dumps(content, protocol=2))
        with contextlib.suppress(ValueError):  # bytes are bytes, or no batch
            (x, _), _, *_ = data.cifar10(tmp_path)
            assert x.dtype == np.float32


def test_a_small_file_does_not_fill_the_memory(cache, tmp_path, monkeypatch):
    bomb = images((32, 32, 3))
    np.savez_compressed(tmp_path / "a.npz", **dict(zip(
        ("x_train", "y_train", "x_test", "y_test"), (np.zeros((4000, 32, 32, 3), "u1"), *bomb[1:]),
        strict=True)))
    monkeypatch.setattr("tffed.data.npz.MOST", 10**7)
    with pytest.raises(ValueError, match="more than the 10,000,000 allowed"):
        data.cifar10(tmp_path / "a.npz")
    write_idx(tmp_path / "here", images((28, 28)), True)
    monkeypatch.setattr("tffed.data.npz.MOST", 100)
    with pytest.raises(ValueError, match="unpacks to more than 100 bytes"):
        data.mnist(tmp_path / "here")
