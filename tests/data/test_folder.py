"""Clients in folders of files: round trips, cost, and refusals."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from tffed import data


def clients_of(count=3, width=2):
    rng = np.random.default_rng(4)
    return {
        f"c{i}": (
            rng.normal(size=(i + 1, width)).astype(np.float32), rng.integers(0, 9, size=i + 1)
        )
        for i in range(count)
    }


def assert_holds(population, federation):
    assert list(population) == list(federation)
    for client_id, (x, y) in federation.items():
        got_x, got_y = population[client_id]
        np.testing.assert_array_equal(got_x, x)
        np.testing.assert_array_equal(got_y, y)
        assert (got_x.dtype, got_y.dtype) == (x.dtype, y.dtype)
    examples = population.examples(list(federation)[:2])
    np.testing.assert_array_equal(
        examples.arrays[1], np.concatenate([y for _, y in list(federation.values())[:2]])
    )


def write_npz(folder, federation):
    for client_id, (x, y) in federation.items():
        np.savez(folder / f"{client_id}.npz", x=x, y=y)


def write_csv(folder, federation, label="kind"):
    for client_id, (x, y) in federation.items():
        lines = [f'a,{label},"b, quoted"']
        lines += [f"{row[0]!r},{target},{row[1]!r}" for row, target in zip(x.tolist(), y.tolist(),
                                                                          strict=True)]
        (folder / f"{client_id}.csv").write_text("\n".join(lines) + "\n")


def write_tfrecord(folder, federation):
    import tensorflow as tf

    for client_id, (x, y) in federation.items():
        with tf.io.TFRecordWriter(str(folder / f"{client_id}.tfrecord")) as writer:
            for row, target in zip(x, y, strict=True):
                features = tf.train.Features(feature={
                    "x": tf.train.Feature(float_list=tf.train.FloatList(value=row)),
                    "y": tf.train.Feature(int64_list=tf.train.Int64List(value=[target])),
                })
                writer.write(tf.train.Example(features=features).SerializeToString())


def parse_tfrecord(serialized):
    import tensorflow as tf

    fields = {"x": tf.io.FixedLenFeature([2], tf.float32), "y": tf.io.FixedLenFeature([], tf.int64)}
    parsed = tf.io.parse_single_example(serialized, fields)
    return parsed["x"], parsed["y"]


@pytest.mark.parametrize(
    "write, options",
    [
        (write_npz, {}),
        (write_csv, {"pattern": "*.csv", "label": "kind"}),
        (write_tfrecord, {"pattern": "*.tfrecord", "parse": parse_tfrecord}),
    ],
    ids=["npz", "csv", "tfrecord"],
)
def test_a_folder_gives_back_what_was_written(write, options, tmp_path):
    federation = clients_of()
    write(tmp_path, federation)
    (tmp_path / "notes.txt").write_text("not a client")
    assert_holds(data.from_folder(tmp_path, **options), federation)
    assert_holds(data.from_folder(str(tmp_path), **options).subset(["c0"]), {
        "c0": federation["c0"]
    })


def test_a_folder_reads_only_the_files_asked_for(tmp_path):
    write_npz(tmp_path, clients_of())
    clients = data.from_folder(tmp_path)
    (tmp_path / "c1.npz").unlink()  # would fail if it were read
    assert clients.examples(["c0", "c2"]).sizes.tolist() == [1, 3]
    again = pickle.loads(pickle.dumps(clients))
    assert again.sizes(["c2"]) == [3]


def test_npz_with_several_inputs_and_weights(tmp_path):
    np.savez(tmp_path / "a.npz", x_image=np.zeros((2, 3)), x_age=np.arange(2.0),
             y=np.arange(2), sample_weight=np.ones(2))
    x, y, weight = data.from_folder(tmp_path)["a"]
    assert set(x) == {"image", "age"}
    np.testing.assert_array_equal(x["age"], [0, 1])
    assert y.tolist() == [0, 1] and weight.tolist() == [1, 1]


def test_sub_folders_by_pattern(tmp_path):
    for part, federation in (("one", clients_of(1)), ("two", clients_of(1))):
        (tmp_path / part).mkdir()
        write_npz(tmp_path / part, federation)
    assert list(data.from_folder(tmp_path, "**/*.npz")) == ["one", "two"]
    assert list(data.from_folder(tmp_path, "one/*.npz")) == ["c0"]


def test_csv_targets_are_whole_or_real(tmp_path):
    (tmp_path / "a.csv").write_text("y,x\n1.0,2\n3.5,4\n")
    x, y = data.from_folder(tmp_path, "*.csv", label="y")["a"]
    assert (y.dtype, y.tolist()) == (np.float32, [1.0, 3.5])
    assert (x.dtype, x.tolist()) == (np.float32, [[2.0], [4.0]])


@pytest.mark.parametrize(
    "content, message",
    [
        ("x,y\n1,2\n", "one column 'kind'.*columns.*'x', 'y'"),
        ("kind\n1\n", "at least one other"),
        ("", r"columns \[\]"),
        ("x,kind\nred,1\n", "numbers in column 'x'.*'red' in line 2.*Encode categories"),
        ("x,kind\n1,red\n", "numbers in column 'kind'"),
        ("x,kind\n,1\n", "numbers in column 'x'"),
        ("x,kind\n1,2\n1\n", "to have 2 columns"),
        ("x,kind\nnan,1\n", "column 'x' of .*a.csv.*missing value .'nan'. in line 2"),
    ],
)
def test_bad_csv_files_are_refused(content, message, tmp_path):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        data.from_folder(tmp_path, "*.csv", label="kind")["a"]


@pytest.mark.parametrize(
    "stored, message",
    [
        ({"x": np.zeros(2)}, "inputs and targets.*Received: \\['x'\\]"),
        ({"x": np.zeros(2), "y": np.zeros(2), "z": np.zeros(2)}, "array name 'z'"),
        ({"x": np.zeros(2), "x_a": np.zeros(2), "y": np.zeros(2)}, "either x or x_<name>"),
        ({"x": np.array([None, 1]), "y": np.zeros(2)}, "numeric arrays.*pickle|allow_pickle"),
    ],
)
def test_bad_npz_files_are_refused(stored, message, tmp_path):
    np.savez(tmp_path / "a.npz", **stored)
    with pytest.raises(ValueError, match=message):
        data.from_folder(tmp_path)["a"]


def test_a_damaged_npz_file_is_named(tmp_path):
    write_npz(tmp_path, clients_of(1))
    path = tmp_path / "c0.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="c0.npz.*cannot be read"):
        data.from_folder(tmp_path)["c0"]


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder of client files.*nowhere"):
        data.from_folder(tmp_path / "nowhere")
    write_csv(tmp_path, clients_of(1))
    with pytest.raises(ValueError, match=r"match the pattern.*'\*.npz'.*'.csv'"):
        data.from_folder(tmp_path)
    with pytest.raises(ValueError, match="label=None"):
        data.from_folder(tmp_path, "*.csv")
    (tmp_path / "a.tfrecord").write_bytes(b"")
    with pytest.raises(ValueError, match="parse=None"):
        data.from_folder(tmp_path, "*.tfrecord")
    (tmp_path / "a.mat").write_bytes(b"")
    with pytest.raises(ValueError, match="ending in .npz, .csv, .tfrecord.*'.mat'"):
        data.from_folder(tmp_path, "*.mat")


def test_an_npz_file_may_not_unpack_to_more_than_is_said(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((1000, 100)), y=np.zeros(1000, int))
    assert (tmp_path / "a.npz").stat().st_size < 10_000
    assert len(data.from_folder(tmp_path)["a"][0]) == 1000
    with pytest.raises(ValueError, match="unpacks to 808,256 bytes, .* 100,000 allowed.*max_bytes"):
        data.from_folder(tmp_path, max_bytes=100_000)["a"]
    with pytest.raises(ValueError, match="max_bytes"):
        data.from_folder(tmp_path, max_bytes=0)


def test_an_npz_array_that_says_to_be_larger_than_it_is_takes_no_memory(tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 3)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("x.npy", buffer.getvalue() + bytes(24))
        file.writestr("y.npy", buffer.getvalue() + bytes(24))
    with pytest.raises(ValueError, match=r"x.npy' says that .*\(10{12}, 3\), and has 24 bytes"):
        data.from_folder(tmp_path)["a"]


def test_npz_columns_of_other_dtypes_become_one_or_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([[1], [0]]), y=np.array([1], "i4").repeat(2))
    np.savez(tmp_path / "b.npz", x=np.array([[0.5]]), y=np.array([2**40]))
    for order in (["a", "b"], ["b", "a"]):
        clients = data.from_folder(tmp_path).subset(order)
        x, y = clients.examples(order).arrays
        assert (x.dtype, y.dtype) == (np.float32, np.int64)
        assert sorted(x[:, 0]) == [0, 0.5, 1] and sorted(y) == [1, 1, 2**40]
    np.savez(tmp_path / "a.npz", x=np.array([[2**24 + 1]]), y=np.array([1]))
    with pytest.raises(ValueError, match="x of client 'a' .*a.npz.*float32.*16777217 at row 0"):
        data.from_folder(tmp_path).examples(["b", "a"])


def test_a_damaged_tfrecord_file_is_named(tmp_path):
    write_tfrecord(tmp_path, clients_of(2))
    path = tmp_path / "c1.tfrecord"
    path.write_bytes(path.read_bytes()[:-1])
    clients = data.from_folder(tmp_path, "*.tfrecord", parse=parse_tfrecord)
    with pytest.raises(ValueError, match="c1.tfrecord.*DataLossError.*Write the file again"):
        clients["c1"]
    path.write_bytes(b"")
    assert clients["c1"][0].shape == (0, 2)
