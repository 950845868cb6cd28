"""Random folders of files: what is read is what was written, or an error names the file."""

import csv
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from tffed import data

EXAMPLES = settings(max_examples=50, deadline=None, derandomize=True)
pytestmark = pytest.mark.filterwarnings("ignore:.*loses digits:UserWarning")

WHOLE = st.one_of(
    st.integers(-300, 300), st.integers(-(2**25), 2**25), st.integers(-(2**64), 2**64)
)
FRACTION = st.floats(-1e6, 1e6, width=32)
NAMES = st.text("abcxyzäß_ 0,\"'", min_size=1, max_size=4).map(str.strip).filter(bool)
TROUBLE = ("missing", "short", "long", "text", "column", "twice", "unnamed", "bytes")


@st.composite
def tables(draw, most=3):
    """`(columns, {client: {column: list of numbers}})`; `columns[-1]` is the target."""
    columns = draw(st.lists(NAMES, min_size=2, max_size=4, unique=True))
    clients = {}
    for k in range(draw(st.integers(1, most))):
        rows = draw(st.integers(0, 4))
        kinds = [draw(st.sampled_from((WHOLE, FRACTION))) for _ in columns]
        cells = [draw(st.lists(kind, min_size=rows, max_size=rows)) for kind in kinds]
        clients[f"c{k}"] = dict(zip(columns, cells, strict=True))
    return columns, clients


def expected(clients, columns):
    """What each client holds, exactly; or None if float32 or int64 cannot hold all of it."""
    target = columns[-1]
    whole = all(type(v) is int for table in clients.values() for v in table[target])
    if any(type(v) is int and not -(2**63) <= v < 2**63 for t in clients.values()
           for v in t[target]):
        return None
    found = {}
    for client, table in clients.items():
        for name in columns:
            kept = name == target and whole
            if not kept and any(type(v) is int and int(np.float32(v)) != v for v in table[name]):
                return None
        x = [np.array(table[name], np.float64).astype(np.float32) for name in columns[:-1]]
        y = np.array(table[target], np.int64 if whole else np.float32)
        found[client] = np.stack(x, axis=1), y
    return found


def assert_read(make, want, files):
    """Reads all clients and compares, or sees a ValueError that names one of the files."""
    try:
        clients = make()
        got = {name: clients.examples([name]) for name in clients.ids}
        got = {name: clients[name] for name in got}  # dtypes are settled now
    except ValueError as error:
        note(str(error))
        assert any(str(file) in str(error) for file in files) or "all without" in str(error)
        assert want is None or not any(len(y) for _, y in want.values()), error
        return
    assert want is not None
    for name, (x, y) in want.items():
        np.testing.assert_array_equal(got[name][0], x)
        np.testing.assert_array_equal(got[name][1], y)
        assert len({(parts[0].dtype, parts[1].dtype) for parts in got.values()}) == 1


def write_csv(path, columns, table, encoding, quoting, trouble):
    rows = [[table[name][k] for name in columns] for k in range(len(table[columns[0]]))]
    header = list(columns)
    if trouble == "missing" and rows:
        rows[-1][0] = ""
    elif trouble == "short" and rows:
        rows[0] = rows[0][:-1]
    elif trouble == "long" and rows:
        rows[0] = [*rows[0], 1]
    elif trouble == "text" and rows:
        rows[-1][-1] = "red"
    elif trouble == "column":
        header[0] = "another"
    elif trouble in ("twice", "unnamed"):
        header = [*header, header[0] if trouble == "twice" else ""]
        rows = [[*row, 0] for row in rows]
    elif trouble != "bytes":
        trouble = None
    out = io.StringIO()
    csv.writer(out, quoting=quoting).writerows([header, *rows])
    content = out.getvalue().encode(encoding)
    path.write_bytes(content + b"\xff\xfe\xfd" * (trouble == "bytes"))
    return trouble is not None


@EXAMPLES
@given(
    tables(),
    st.sampled_from(["utf-8", "utf-8-sig", "latin-1", "utf-16"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from([None, None, None, *TROUBLE]),
    st.randoms(use_true_random=False),
)
def test_csv_files(drawn, encoding, quoting, trouble, random):
    columns, clients = drawn
    with tempfile.TemporaryDirectory() as folder:
        wrong = False
        for k, (client, table) in enumerate(clients.items()):
            order = columns if k == 0 else random.sample(columns, len(columns))
            here = trouble if k == len(clients) - 1 and encoding != "latin-1" else None
            path = Path(folder, f"{client}.csv")
            told = write_csv(path, order, table, encoding, quoting, here)
            wrong |= told and not (here == "column" and len(clients) == 1)
        options = {} if encoding.startswith("utf-8") else {"encoding": encoding}
        label = columns[-1]
        if trouble == "column" and len(clients) == 1 and encoding != "latin-1":
            return  # a first file sets the names
        want = None if wrong else expected(clients, columns)
        assert_read(
            lambda: data.from_folder(folder, "*.csv", label=label, **options),
            want, list(Path(folder).iterdir()),
        )
        if want is not None and encoding != "utf-16":
            for client in clients:  # pandas reads the same numbers
                path = Path(folder, f"{client}.csv")
                frame = pd.read_csv(path, encoding=encoding, float_precision="round_trip")
                x = frame.rename(columns=str.strip)[columns[:-1]].to_numpy(np.float32)
                np.testing.assert_array_equal(x, want[client][0])


DTYPES = ["bool", "uint8", "int8", "int32", "int64", "uint64", "float16", "float32", "float64"]


@EXAMPLES
@given(
    st.lists(st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)), min_size=1, max_size=3),
    st.lists(st.lists(WHOLE, max_size=4), min_size=3, max_size=3),
)
def test_npz_files(dtypes, values):
    with tempfile.TemporaryDirectory() as folder:
        written = {}
        for k, (pair, numbers) in enumerate(zip(dtypes, values, strict=False)):
            x, y = (np.array(numbers, object).astype(dtype) if _holds(dtype, numbers)
                    else np.array([n % 100 for n in numbers]).astype(dtype) for dtype in pair)
            np.savez(Path(folder, f"c{k}.npz"), **{"x_b": x, "x_a": x[:, None], "y": y})
            written[f"c{k}"] = x, y
        try:
            clients = data.from_folder(folder)
            examples = clients.examples(clients.ids)
        except ValueError as error:
            note(str(error))
            assert "all without" in str(error) or any(f"c{k}.npz" in str(error) for k in range(3))
            assert not any(len(x) for x, _ in written.values()) or _lost(written)
            return
        for got, place in ((examples.arrays[0]["b"], 0), (examples.arrays[1], 1)):
            want = [int(v) for pair in written.values() for v in pair[place]]
            assert [int(v) for v in got] == want
        assert examples.arrays[0]["a"].shape == (len(want), 1)


def _holds(dtype, numbers):
    kind = np.dtype(dtype).kind
    if kind == "f":
        return all(abs(n) < 2**24 and np.dtype(dtype) != "float16" for n in numbers)
    limits = (0, 1) if kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return all(limits[0] <= n <= limits[1] for n in numbers)


def _lost(written):
    """Whether clients of other dtypes hold whole numbers beyond what a common dtype holds."""
    return any(
        len({pair[place].dtype for pair in written.values()}) > 1
        and any(abs(int(v)) > 2**11 for pair in written.values() for v in pair[place])
        for place in (0, 1)
    )


@EXAMPLES
@given(tables(), st.sampled_from(["utf-8", "utf-8-sig"]), st.booleans())
def test_leaf_files(drawn, encoding, cut):
    columns, clients = drawn
    content = {
        "users": list(clients),
        "num_samples": [len(table[columns[0]]) for table in clients.values()],
        "user_data": {
            client: {
                "x": [list(row) for row in zip(*(table[n] for n in columns[:-1]), strict=True)],
                "y": table[columns[-1]],
            }
            for client, table in clients.items()
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "all.json")
        text = json.dumps(content)
        path.write_text(text[: len(text) - 3] if cut else text, encoding=encoding)
        want = expected_of_lists(clients, columns)
        if want == "either":
            return
        assert_read(lambda: data.from_leaf(folder), None if cut else want, [path])


def expected_of_lists(clients, columns):
    """As `expected`, for x in one array: whole where all of it is; "either": left open."""
    values = [v for t in clients.values() for n in columns[:-1] for v in t[n]]
    if any(type(v) is int and abs(v) > 2**24 for v in values) or any(
        type(v) is int and abs(v) > 2**24 for t in clients.values() for v in t[columns[-1]]
    ):
        return "either"
    return expected(clients, columns)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(tables(most=2), st.booleans())
def test_tfrecord_files(drawn, cut):
    import tensorflow as tf

    columns, clients = drawn
    width = len(columns) - 1

    def parse(serialized):
        fields = {"x": tf.io.FixedLenFeature([width], tf.float32),
                  "y": tf.io.FixedLenFeature([], tf.int64)}
        found = tf.io.parse_single_example(serialized, fields)
        return found["x"], found["y"]

    want = {}
    with tempfile.TemporaryDirectory() as folder:
        for client, table in clients.items():
            x = np.array([table[name] for name in columns[:-1]], np.float64).T.astype("f4")
            y = np.arange(len(x)) + 2**60
            want[client] = x.reshape(len(y), width), y
            path = Path(folder, f"{client}.tfrecord")
            with tf.io.TFRecordWriter(str(path)) as writer:
                for row, target in zip(x, y, strict=True):
                    writer.write(tf.train.Example(features=tf.train.Features(feature={
                        "x": tf.train.Feature(float_list=tf.train.FloatList(value=row)),
                        "y": tf.train.Feature(int64_list=tf.train.Int64List(value=[target])),
                    })).SerializeToString())
        cut = cut and path.stat().st_size > 0
        if cut:
            path.write_bytes(path.read_bytes()[:-1])
        assert_read(lambda: data.from_folder(folder, "*.tfrecord", parse=parse),
                    None if cut else want, list(Path(folder).iterdir()))
