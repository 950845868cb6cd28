"""Next-character data: segments, windows, vocabulary, and refusals."""

import itertools

import numpy as np
import pytest

from tffed import data
from tffed.data.lazy import LazyClientData
from tffed.data.segments import segments_of

text_module = __import__("sys").modules["tffed.data.text"]

PLAY = """The Tragedy of Nobody

ACT I.
SCENE II.

HAMLET.
To be, or not to be.
That is it.

GHOST OF KING.
Swear.

HAMLET.
Rest, rest. Enough
I.
"""

COLONS = "First Citizen:\nBefore we go\n\nAll:\nSpeak, speak: now.\n\nFirst Citizen:\nYou are all\n"

NOVEL = """Contents
CHAPTER I
CHAPTER II

CHAPTER I
It was night.

CHAPTER II
It was day; Chapter two of his life.
"""


def test_speakers_of_a_play():
    got = segments_of([("play", PLAY)], "speaker")
    assert got == {
        "HAMLET": "To be, or not to be.\nThat is it.\nRest, rest. Enough\nI.",
        "GHOST OF KING": "Swear.",
    }
    assert segments_of([("play", COLONS)], "speaker") == {
        "First Citizen": "Before we go\nYou are all", "All": "Speak, speak: now.",
    }
    assert segments_of([("play", PLAY.replace("\n", "\r\n"))], "speaker") == got


def test_chapters_books_and_expressions():
    assert segments_of([("novel", NOVEL)], "chapter") == {
        "CHAPTER I": "It was night.", "CHAPTER II": "It was day; Chapter two of his life.",
    }
    books = "preface\nBOOK IV\nfour\nTHE SECOND BOOK OF MOSES\ntwo\n"
    assert segments_of([("b", books)], "book") == {
        "BOOK IV": "four", "THE SECOND BOOK OF MOSES": "two",
    }
    verses = "Genesis 1\n\n  1 In the\n\nGenesis 2\n\n  1 Thus\n\nExodus 1\n\n  1 Now\n"
    assert segments_of([("kjv", verses)], r"([A-Z][a-z]+) \d+$") == {
        "Genesis": "  1 In the\n  1 Thus", "Exodus": "  1 Now",
    }
    assert segments_of([("t", "#a\nx\n#b\ny")], "#.") == {"#a": "x", "#b": "y"}
    assert segments_of([("one", "abc"), ("two", "def")], "book") == {"one": "abc", "two": "def"}


def windows(part, length, stride):
    starts = range(0, len(part) - length, stride or length)
    return [(part[s : s + length], part[s + 1 : s + length + 1]) for s in starts]


@pytest.mark.parametrize("stride, length", itertools.product([1, 3, 5, None], [1, 5]))
@pytest.mark.parametrize("targets", ["next", "sequence"])
def test_windows_against_slices(stride, length, targets, tmp_path):
    said = {"AB": "abcabcabcabcabcabcabc", "CD": "hello hello hello hello"}
    path = tmp_path / "play.txt"
    path.write_text("".join(f"{name}.\n{body}\n" for name, body in said.items()))
    source = data.text(path, sequence_length=length, stride=stride, targets=targets)

    def check(got, want):
        x, y = got
        assert (x.dtype, y.dtype) == (np.int32, np.int64)
        assert [source.vocabulary.decode(row) for row in x] == [pair[0] for pair in want]
        kept = [pair[1] if targets == "sequence" else pair[1][-1] for pair in want]
        assert [source.vocabulary.decode(np.atleast_1d(row)) for row in y] == kept
        assert y.shape == (x.shape if targets == "sequence" else (len(x),))

    cut = {name: len(body) - len(body) // 5 for name, body in said.items()}
    for name, body in said.items():
        check(source.clients[name], windows(body[: cut[name]], length, stride))
    held_out = [windows(body[cut[name] :], length, stride) for name, body in said.items()]
    check(source.test, sum(held_out, []))
    assert source.origin == str(path)


def test_large_texts_are_cut_when_read(tmp_path, monkeypatch):
    path = tmp_path / "play.txt"
    path.write_text(COLONS * 5)
    resident = data.text(path, sequence_length=4, stride=1)
    monkeypatch.setattr(text_module, "_RESIDENT_BYTES", 0)
    lazy = data.text(path, sequence_length=4, stride=1)
    assert resident.clients.resident and isinstance(lazy.clients, LazyClientData)
    np.testing.assert_array_equal(lazy.clients.sizes(), resident.clients.sizes())
    for name in resident.clients:
        for got, want in zip(lazy.clients[name], resident.clients[name], strict=True):
            np.testing.assert_array_equal(got, want)


def test_short_segments_are_named(tmp_path):
    path = tmp_path / "play.txt"
    path.write_text(PLAY)
    source = data.text(path, sequence_length=10)
    assert list(source.clients) == ["HAMLET"] and source.left_out == ("GHOST OF KING",)


def test_a_vocabulary_can_be_shared_and_knows_what_it_does_not_know(tmp_path):
    path = tmp_path / "play.txt"
    path.write_text("A.\nabcabcabcabcz\n")
    source = data.text(path, sequence_length=2, test_fraction=0)
    assert source.vocabulary.characters == "abcz" and source.vocabulary.size == 5
    assert len(source.test[1]) == 0
    shared = data.text(path, sequence_length=2, vocabulary=data.Vocabulary("ab"))
    np.testing.assert_array_equal(shared.clients["A"][0][:3], [[1, 2], [0, 1], [2, 0]])


def test_vocabulary_round_trip():
    said = "Zażółć gęślą jaźń 𝛼🙂\n"
    vocabulary = data.Vocabulary.of([said])
    codes = vocabulary.encode(said)
    assert codes.dtype == np.int32 and codes.min() == 1 and codes.max() < vocabulary.size
    assert vocabulary.decode(codes) == said
    assert vocabulary.decode(vocabulary.encode("Z?"), unknown="_") == "Z_"
    assert vocabulary.encode("").shape == (0,)
    with pytest.raises(ValueError, match="codes from 0 to"):
        vocabulary.decode([vocabulary.size])
    for bad in ("", "ba", "aa"):
        with pytest.raises(ValueError, match="distinct characters in ascending order"):
            data.Vocabulary(bad)


def test_python_topics_ship_with_python():
    pytest.importorskip("pydoc_data.topics")
    source = data.python_topics(sequence_length=40)
    assert len(source.clients) > 50 and "pydoc_data.topics of Python 3." in source.origin
    sizes = source.clients.sizes()
    assert sizes.sum() > 5000 and sizes.max() > 20 * sizes.min()
    x, _ = source.clients["while"]
    assert "while" in source.vocabulary.decode(x)
    assert source.test[0].max() < source.vocabulary.size < 200


BAD = {
    "speaker": ({"clients": "chapter"}, "matches no line.*regular expression"),
    "expression": ({"clients": "("}, "clients='\\('"),
    "length": ({"sequence_length": 0}, "sequence_length=0"),
    "long": ({"sequence_length": 1000}, "more than sequence_length=1000.*2 clients"),
    "stride": ({"stride": 0}, "stride=0"),
    "test_fraction": ({"test_fraction": 1.0}, "test_fraction=1.0"),
    "targets": ({"targets": "all"}, "targets='all'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused(case, tmp_path):
    options, message = BAD[case]
    path = tmp_path / "play.txt"
    path.write_text(PLAY)
    with pytest.raises(ValueError, match=message):
        data.text(path, **options)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.txt"):
        data.text(tmp_path / "nothing.txt")
    with pytest.raises(FileNotFoundError, match="Expected text files"):
        data.text([])


def test_only_lines_that_look_like_roles_start_a_speech():
    lines = "ANNA.\nhello\nO.\nNote this:\nwell\nFirst Lady of Rome:\nyes\nLORD & LADY."
    assert segments_of([("play", lines)], "speaker") == {
        "ANNA": "hello\nO.\nNote this:\nwell", "First Lady of Rome": "yes",
        "LORD & LADY": "",
    }
    books = "The First Book of Moses\none\nThe first book that he wrote\nmore\nBOOK II\ntwo"
    assert segments_of([("bible", books)], "book") == {
        "The First Book of Moses": "one\nThe first book that he wrote\nmore", "BOOK II": "two",
    }


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_the_text(encoding, tmp_path):
    path = tmp_path / "play.txt"
    path.write_text("ANNA.\n" + "hello " * 9 + "\nBEN.\n" + "good day " * 9, encoding=encoding)
    given = {} if encoding == "utf-8-sig" else {"encoding": encoding}
    source = data.text(path, clients="speaker", sequence_length=10, **given)
    assert source.clients.ids == ("ANNA", "BEN")
    with pytest.raises(ValueError, match="play.txt.*encoding 'ascii'.*encoding="):
        path.write_text("größe", encoding="utf-8")
        data.text(path, encoding="ascii")
