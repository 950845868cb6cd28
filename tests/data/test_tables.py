"""CSV files: columns by name, every number as it stands there, or a sentence that says why not."""

import numpy as np
import pandas as pd
import pytest

from tffed import data
from tffed.data.folder import short_names


def folder(tmp_path, **files):
    for name, content in files.items():
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / f"{name}.csv").write_bytes(content)
    return tmp_path


def read(tmp_path, *, label="y", **options):
    return data.from_folder(tmp_path, "*.csv", label=label, **options)


def test_columns_are_found_by_name(tmp_path):
    folder(tmp_path, a="age,income,y\n30,1000,1\n", b="y,income,age\n0,1500,35\n")
    clients = read(tmp_path)
    np.testing.assert_array_equal(clients["b"][0], [[35, 1500]])
    np.testing.assert_array_equal(clients.subset(["b"])["b"][0], [[35, 1500]])
    np.testing.assert_array_equal(read(tmp_path, columns=["income", "age"])["b"][0], [[1500, 35]])
    assert read(tmp_path, columns=["age"])["a"][0].tolist() == [[30]]


@pytest.mark.parametrize("columns", ["age", [], ["age", "age"], ["age", "y"]])
def test_columns_are_a_list_of_features(columns, tmp_path):
    folder(tmp_path, a="age,income,y\n30,1000,1\n")
    with pytest.raises(ValueError, match="list of names of features.*Received: columns="):
        read(tmp_path, columns=columns)


@pytest.mark.parametrize(
    "other, message",
    [
        ("age,y\n1,0\n", r"b.csv.*\['income'\] are missing and \[\]"),
        ("age,income,city,y\n1,2,3,0\n", r"\[\] are missing and \['city'\] surplus"),
        ("age,income,income,y\n1,2,3,0\n", r"every column name.*\['income'\] more than once"),
        ("age,income,y\n1,2,0\n1,,0\n", "column 'income' of .*b.csv.*missing value .''. in line 3"),
        ("age,income,y\n1,2,0\n1,2\n", "have 3 columns. Received: 2 in line 3"),
        ("age,income,y\n1,2,3,0\n", "R writes row names.*row.names = FALSE"),
        ("age;income;y\n1;2;0\n", "delimiter=';'"),
        ("age,income,y\n1,1_000,0\n", "'1_000' in line 2"),
        ('age,income,y\n1,"2,0\n', "b.csv.*line 2 cannot be read"),
        ("age,income,y\n1,2,9223372036854775808\n", "int64.*'y'.*9223372036854775808 in line 2"),
        ("age,income,y\n9007199254740993,2,0\n", "float64.*'age'.*9007199254740993 in line 2"),
        ("größe,y\n1,0\n".encode("latin-1"), "b.csv.*encoding 'utf-8'.*encoding='latin-1'"),
        ("age,income,y\n1,2,0\n".encode("utf-16"), "encoding='utf-16'"),
    ],
)
def test_a_file_that_is_unlike_the_first_is_refused_by_name(other, message, tmp_path):
    folder(tmp_path, a="age,income,y\n30,1000,1\n", b=other)
    clients = read(tmp_path)
    assert len(clients["a"][1]) == 1
    with pytest.raises(ValueError, match=message):
        clients["b"]


def test_columns_without_a_name_are_refused_or_left_out(tmp_path):
    folder(tmp_path, a=",u,y\n0,5,0\n1,6,0\n2,7,1\n")
    with pytest.raises(ValueError, match=r"column 1 .*columns=\['u'\]"):
        read(tmp_path)
    np.testing.assert_array_equal(read(tmp_path, columns=["u"])["a"][0], [[5], [6], [7]])
    folder(tmp_path, a="Unnamed: 0,u,y\n0,5,0\n")
    with pytest.raises(ValueError, match=r"column 1 .*columns=\['u'\]"):
        read(tmp_path)


def test_neighbouring_whole_numbers_never_become_one(tmp_path):
    folder(tmp_path, a="user,ts,y\n16777216,1700000001,0\n16777217,1700000060,1\n")
    clients = read(tmp_path)
    message = "column 'user' of x of client 'a' .*a.csv.*16777217.0 becomes 16777216.0"
    with pytest.raises(ValueError, match=message):
        clients["a"]
    moved = clients.map(lambda x, y: (x - [16777216, 1.7e9], y))
    np.testing.assert_array_equal(moved["a"][0], [[0, 1], [1, 60]])
    with pytest.raises(ValueError, match="loses digits"):
        data.from_dict({0: (np.array([1.7e9 + 1, 1.7e9 + 60.25]), np.zeros(2))})
    with pytest.warns(UserWarning, match="column 0 of x of client 0 loses digits"):
        data.from_dict({0: (np.array([[19675.1234, 1], [19675.1235, 2]]), np.zeros(2))})


def test_a_column_has_one_dtype_whatever_file_comes_first(tmp_path):
    folder(tmp_path, a="u,price\n1,3\n0,5\n", b="u,price\n1,3.5\n2,4\n")
    for order in (["a", "b"], ["b", "a"]):
        clients = read(tmp_path, label="price").subset(order)
        for client_id in order:
            clients[client_id]
        y = clients.examples(order).arrays[1]
        assert y.dtype == clients["a"][1].dtype == np.float32
        want = {"a": [3, 5], "b": [3.5, 4]}
        np.testing.assert_array_equal(y, [v for i in order for v in want[i]])


def test_a_fraction_among_large_numbers_hides_no_merged_ones():
    def read(*values):
        return data.from_dict({0: (np.array(values), np.zeros(len(values)))})[0][0]

    for values in ((0.0, 1700000001.5, 1700000060.5), (0.5, 16777217, 16777216, 1e9)):
        with pytest.raises(ValueError, match="float32 can tell apart.*loses digits"):
            read(*values)
    with pytest.warns(UserWarning, match="16777217.0 becomes 16777216.0|33554433.0 becomes"):
        read(0.5, 16777217, 33554433)
    physical = np.random.default_rng(0).normal(size=1000) * 1e20
    for values in (physical, [1.234567e20, 2.345678e20]):
        with pytest.warns(UserWarning, match="loses digits"):
            np.testing.assert_array_equal(read(*values), np.float32(values))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1", "utf-16", "cp1252"])
def test_encodings(encoding, tmp_path):
    folder(tmp_path, a="größe,y\n1.5,0\n".encode(encoding))
    given = {} if encoding == "utf-8-sig" else {"encoding": encoding}
    clients = read(tmp_path, columns=["größe"], **given)
    assert clients["a"][0].tolist() == [[1.5]]


def test_a_file_of_column_names_alone_is_an_empty_client(tmp_path):
    folder(tmp_path, a="u,v,y\n", b="u,v,y\n1,2,0\n")
    clients = read(tmp_path)
    assert clients.sizes().tolist() == [0, 1]
    x, y = clients["a"]
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((0, 2), np.float32, (0,), np.int64)
    np.testing.assert_array_equal(clients.examples(["a", "b"]).arrays[0], [[1, 2]])
    folder(tmp_path, b="u,v,y\n")
    with pytest.raises(ValueError, match="one client with examples.*2 clients, all without"):
        read(tmp_path).spec  # noqa: B018


def test_ids_are_the_shortest_part_that_tells_files_apart():
    assert short_names(["a.csv", "b.csv"]) == ["a", "b"]
    assert short_names(["a/train.csv", "b/train.csv"]) == ["a", "b"]
    assert short_names(["a/x/1.csv", "a/y/1.csv"]) == ["x", "y"]
    assert short_names(["a/1.csv", "a/2.csv", "b/1.csv"]) == ["a/1", "a/2", "b/1"]
    assert short_names(["a.csv", "a.npz"]) == ["a.csv", "a.npz"]
    assert short_names(["1.csv", "b/1.csv"]) == ["1", "b/1"]


def test_tables_of_pandas_are_matched_by_name_too():
    one = pd.DataFrame({"age": [30.0], "income": [1000.0]})
    other = pd.DataFrame({"income": [1500.0], "age": [35.0]})
    y = np.zeros(1)
    tables = {"a": (one, y), "b": (other, y)}
    for clients in (data.from_dict(tables), data.from_function(tables, tables.__getitem__)):
        np.testing.assert_array_equal(clients["b"][0], [[35, 1500]])
        np.testing.assert_array_equal(clients.map(lambda x, y: (x, y))["b"][0], [[35, 1500]])
    lazy = data.from_function(tables, tables.__getitem__).subset(["b", "a"])
    np.testing.assert_array_equal(lazy["b"][0], [[35, 1500]])
    with pytest.raises(ValueError, match=r"client 'b'.*\['age'\] are missing"):
        data.from_dict({"a": (one, y), "b": (other[["income"]], y)})


def test_partition_keeps_the_names_of_columns():
    table = pd.DataFrame({"age": [30.0, 40.0], "income": [1.0, 2.0]})
    clients = data.partition(table, np.zeros(2), clients=2, scheme=data.IID(), seed=0)
    assert clients.columns == {"x": ("age", "income")}
    assert clients.subset([1]).columns == clients.columns


def test_masked_arrays_are_refused():
    x = np.ma.masked_array([[1.0], [999.0]], [[False], [True]])
    with pytest.raises(ValueError, match=r"hides 1 of 2.*\.filled"):
        data.from_dict({0: (x, np.zeros(2))})
    with pytest.raises(ValueError, match="y of the data set.*hides 1 of 2"):
        data.partition(x.filled(0), x[:, 0], clients=1, scheme=data.IID(), seed=0)
    assert data.from_dict({0: (x.filled(0), np.zeros(2))})[0][0].tolist() == [[1], [0]]
    assert data.from_dict({0: (x[:1], np.zeros(1))})[0][0].tolist() == [[1]]
