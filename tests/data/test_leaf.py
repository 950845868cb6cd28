"""Clients in LEAF's layout: round trips, cost, and refusals."""

import json
import pickle

import numpy as np
import pytest

from tffed import data
from tffed.data import leaf


def clients_of(count):
    rng = np.random.default_rng(4)
    return {
        f"c{i}": (rng.normal(size=(i + 1, 2)).astype(np.float32), rng.integers(0, 9, size=i + 1))
        for i in range(count)
    }


def write_leaf(folder, files, head_first=True, indent=None):
    for name, federation in files.items():
        content = {
            "users": list(federation), "num_samples": [len(y) for _, y in federation.values()],
            "user_data": {
                user: {"x": np.asarray(x).tolist(), "y": np.asarray(y).tolist()}
                for user, (x, y) in federation.items()
            },
        }
        if not head_first:
            content = dict(reversed(content.items()))
        (folder / name).write_text(json.dumps(content, indent=indent))


@pytest.fixture
def leaf_files():
    users = list(clients_of(6).items())
    return {f"part_{k}.json": dict(users[2 * k : 2 * k + 2]) for k in range(3)}


@pytest.mark.parametrize("head_first", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
def test_leaf_gives_back_what_was_written(head_first, indent, leaf_files, tmp_path):
    write_leaf(tmp_path, leaf_files, head_first, indent)
    federation = {user: parts for file in leaf_files.values() for user, parts in file.items()}
    population = data.from_leaf(tmp_path)
    assert list(population) == list(federation)
    for user, parts in federation.items():
        for got, want in zip(population[user], parts, strict=True):
            np.testing.assert_array_equal(got, want)
            assert got.dtype == want.dtype


def test_leaf_opens_without_parsing_examples(leaf_files, tmp_path, monkeypatch):
    write_leaf(tmp_path, leaf_files)
    # Whatever follows the head need not even be complete to open the folder and know the sizes.
    path = tmp_path / "part_2.json"
    path.write_text(path.read_text()[:-20])
    monkeypatch.setattr(leaf, "_CHUNK", 8)  # the head comes in pieces
    clients = data.from_leaf(tmp_path)
    assert clients.sizes().tolist() == [1, 2, 3, 4, 5, 6]
    assert clients.examples(["c0", "c3"]).sizes.tolist() == [1, 4]
    with pytest.raises(ValueError, match="part_2.json.*cannot be parsed"):
        clients["c5"]


def test_leaf_keeps_a_few_parsed_files(leaf_files, tmp_path, monkeypatch):
    write_leaf(tmp_path, leaf_files)
    parsed = []
    parse = leaf._parse
    monkeypatch.setattr(leaf, "_parse", lambda file: parsed.append(file.name[5]) or parse(file))
    clients = data.from_leaf(tmp_path)
    clients.examples(clients.ids)
    assert parsed == ["0", "1", "2"]
    clients.examples(["c5", "c2", "c4"])  # still there
    assert parsed == ["0", "1", "2"]
    clients["c0"]
    assert parsed == ["0", "1", "2", "0"]
    one = data.from_leaf(tmp_path, keep_files=1)
    parsed.clear()
    one.examples(["c0", "c2", "c1"])
    assert parsed == ["0", "1", "0"]
    assert pickle.loads(pickle.dumps(one))["c1"][1].shape == (2,)


def test_leaf_text_needs_a_parser(tmp_path):
    users = {"role": (["abc", "bcd"], ["d", "e"])}
    write_leaf(tmp_path, {"plays.json": users})
    with pytest.raises(ValueError, match=r"numbers in LEAF data.*parse=fn"):
        data.from_leaf(tmp_path)["role"]
    vocabulary = data.Vocabulary("abcde")

    def parse(x, y):
        return np.stack([vocabulary.encode(line) for line in x]), vocabulary.encode("".join(y))

    x, y = data.from_leaf(tmp_path, parse=parse)["role"]
    assert x.tolist() == [[1, 2, 3], [2, 3, 4]] and y.tolist() == [4, 5]


def test_bad_leaf_folders_are_refused(leaf_files, tmp_path):
    with pytest.raises(FileNotFoundError, match="LEAF's JSON files.*nowhere"):
        data.from_leaf(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="Received: 0 such files"):
        data.from_leaf(tmp_path)
    with pytest.raises(ValueError, match="keep_files=0"):
        data.from_leaf(tmp_path, keep_files=0)
    write_leaf(tmp_path, leaf_files)
    (tmp_path / "part_3.json").write_text((tmp_path / "part_0.json").read_text())
    with pytest.raises(ValueError, match="user 'c0' in 'part_0.json' and 'part_3.json'"):
        data.from_leaf(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[1, 2]", "one JSON object.*list"),
        ("{broken", "cannot be parsed"),
        ('{"users": ["a"]}', "'users' and 'num_samples'"),
        ('{"users": ["a"], "num_samples": [1, 2], "user_data": {}}', "of one length"),
        ('{"users": ["a"], "num_samples": [-1], "user_data": {}}', "at least 0.*-1 for user 'a'"),
    ],
)
def test_bad_leaf_files_are_refused_at_opening(content, message, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        data.from_leaf(tmp_path)


@pytest.mark.parametrize(
    "user, message",
    [
        ({}, "'x' and 'y'"),
        ({"x": [[1.0]], "y": [1]}, "Expected 2 examples of client 'a'.*Received: 1"),
        ({"x": [[1.0], [2.0, 3.0]], "y": [1, 2]}, "inhomogeneous|one shape"),
    ],
)
def test_bad_leaf_users_are_refused_when_read(user, message, tmp_path):
    content = {"users": ["a"], "num_samples": [2], "user_data": {"a": user}}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        data.from_leaf(tmp_path)["a"]


def test_a_user_may_have_no_examples_and_a_file_a_byte_order_mark(tmp_path):
    content = {
        "users": ["none", "one"], "num_samples": [0, 1],
        "user_data": {"none": {"x": [], "y": []}, "one": {"x": [[0.5, 2]], "y": [3]}},
    }
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8-sig")
    clients = data.from_leaf(tmp_path)
    assert clients.sizes().tolist() == [0, 1]
    x, y = clients["none"]
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((0, 2), np.float32, (0,), np.int64)
    assert clients.examples(["none", "one"]).sizes.tolist() == [0, 1]


@pytest.mark.parametrize(
    "x, message",
    [
        ([[9007199254740993, 0.5]], "user 'a' of .*a.json.*9007199254740993"),
        ([[16777217, 0.5], [1, 2]], "column 0 of x of client 'a' .*a.json.*loses digits"),
    ],
)
def test_leaf_numbers_that_would_become_others_are_refused(x, message, tmp_path):
    content = {"users": ["a"], "num_samples": [len(x)],
               "user_data": {"a": {"x": x, "y": [0] * len(x)}}}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        data.from_leaf(tmp_path)["a"]


def test_a_user_who_stands_in_a_file_twice_is_refused(tmp_path):
    one, other = '{"x": [[1.0]], "y": [0]}', '{"x": [[2.0]], "y": [1]}'
    text = f'{{"users": ["a"], "num_samples": [1], "user_data": {{"a": {one}, "a": {other}}}}}'
    (tmp_path / "part.json").write_text(text)
    with pytest.raises(ValueError, match="part.json.*'a' stands there more than once"):
        data.from_leaf(tmp_path)["a"]
    (tmp_path / "part.json").write_text(text.replace('"a": {"x": [[2.0]]', '"b": {"x": [[2.0]]'))
    assert data.from_leaf(tmp_path)["a"][0].tolist() == [[1]]


def test_users_and_nesting_that_no_json_of_leaf_has(tmp_path):
    deep = b"[" * 100_000 + b"]" * 100_000
    for text, message in (
        (b'{"users": [["u"]], "num_samples": [1], "user_data": {}}', r"strings. Received: \['u'\]"),
        (b'{"users": %b, "num_samples": [1]}' % deep, "cannot be parsed .*recursion"),
    ):
        (tmp_path / "a.json").write_bytes(text)
        with pytest.raises(ValueError, match=f"a.json.*{message}"):
            data.from_leaf(tmp_path)
