"""Checkpoints: exact, whole or absent, and no damaged or foreign file is taken or lost."""

import os
import random
import signal

import ml_dtypes
import numpy as np
import pytest

from tests.processes import kill_during, start
from tffed.checkpoint import CheckpointError, Checkpoints
from tffed.checkpoint_file import encode

LEAVES = [np.arange(3, dtype=np.float32), np.array(7, np.int64)]
FINGERPRINT = {"algorithm": "fed_avg", "seed": 7, "shapes": [[3], []]}

# Saves rounds for ever, each with values that follow from its number, and says which it has saved.
SAVE_FOR_EVER = """
import sys
import numpy as np
from tffed.checkpoint import Checkpoints

checkpoints = Checkpoints(sys.argv[1])
number = checkpoints.latest() or 0
print("ready", flush=True)
while True:
    number += 1
    leaves = [np.full(300_000, number, np.float64), np.arange(number % 50)]
    checkpoints.save(number, leaves, {"round": number})
    print(number, flush=True)
"""

# Saves round 3 and kills itself at the file operation whose number is given (by Python's audit
# events: open, rename, remove, listing a folder); exits normally if there are not so many.
KILL_AT_OPERATION = """
import os, signal, sys
import numpy as np
from tffed.checkpoint import Checkpoints

checkpoints, left = Checkpoints(sys.argv[1]), int(sys.argv[2])
checkpoints.load()

def count(event, arguments):
    global left
    if event.partition(".")[0] in ("open", "os", "pathlib"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
checkpoints.save(3, [np.full(9, 3)], {"round": 3})
"""


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "run")


def fill(checkpoints, *rounds):
    """Saves rounds; returns the content of the last one's file."""
    for number in rounds:
        checkpoints.save(number, LEAVES, {"fingerprint": FINGERPRINT})
    return checkpoints.path(rounds[-1]).read_bytes()


def names(checkpoints):
    return sorted(path.name for path in checkpoints.directory.iterdir())


def test_leaves_and_manifest_come_back_exactly(checkpoints):
    leaves = [
        np.array([1.5, np.nan, -0.0], ml_dtypes.bfloat16),
        np.array(3, np.uint8),
        np.zeros((0, 4), np.float16),
        np.array([[True], [False]]),
        np.array(-(2**62), np.int64),
    ]
    manifest = {"b": [1, {"x": None}], "a": "é", "loss": 0.1 + 0.2, "n": np.int64(3)}
    checkpoints.save(12, leaves, manifest)
    found, described = checkpoints.load()
    assert names(checkpoints) == ["round-000012.ckpt"]
    assert list(described.items()) == list({**manifest, "n": 3}.items())
    for a, b in zip(found, leaves, strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def test_same_state_gives_the_same_file(tmp_path):
    first, second = (fill(Checkpoints(tmp_path / name), 5) for name in "ab")
    assert first == second


def test_keeps_the_newest_and_returns_the_oldest(checkpoints):
    oldest = [checkpoints.save(n, LEAVES, {}) for n in (1, 2, 5, 9)]
    assert oldest == [1, 1, 2, 5]
    assert checkpoints.rounds() == [5, 9]
    assert Checkpoints(checkpoints.directory, keep=1).save(10, [], {}) == 10
    assert checkpoints.rounds() == [10]


def test_other_files_stay_and_unfinished_ones_go(checkpoints):
    checkpoints.directory.mkdir()
    for name in ("notes.txt", "round-12.ckpt", "round-000001.ckpt.77.unfinished"):
        (checkpoints.directory / name).write_text("mine")
    assert checkpoints.latest() is None
    fill(checkpoints, 1)
    assert names(checkpoints) == ["notes.txt", "round-000001.ckpt", "round-12.ckpt"]


def test_rounds_sort_as_numbers(checkpoints):
    fill(checkpoints, 999_999, 1_000_000)
    assert checkpoints.latest() == 1_000_000
    assert checkpoints.load(999_999).leaves[1] == 7


def test_nothing_to_load(checkpoints):
    assert checkpoints.latest() is None
    with pytest.raises(CheckpointError, match="Received: none"):
        checkpoints.load()
    fill(checkpoints, 3)
    with pytest.raises(CheckpointError, match=r"of round 4 .* Received: rounds \[3\]"):
        checkpoints.load(4)


def test_every_cut_and_every_flipped_bit_is_found(checkpoints):
    content = fill(checkpoints, 4)
    path = checkpoints.path(4)
    assert len(content) < 400
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="round-000004.ckpt"):
            checkpoints.load()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="round-000004.ckpt"):
            checkpoints.load()
    path.write_bytes(content + b"\n")
    with pytest.raises(CheckpointError, match="something was added"):
        checkpoints.load()
    path.write_bytes(content)
    assert checkpoints.load().manifest == {"fingerprint": FINGERPRINT}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: b"PK\3\4" + content, "does not begin as a checkpoint"),
        (lambda content: b"", "does not begin as a checkpoint"),
        (lambda content: content[:-5], "cut off"),
        (lambda content: content[:-5] + b"12345", "checksum does not match"),
        (lambda content: content.replace(b"checkpoint 1 ", b"checkpoint 2 "), "a newer version"),
        (lambda content: b"".join(encode(1, LEAVES, {})), "holds round 1: it was renamed"),
    ],
)
def test_message_says_what_is_wrong_and_the_way_out(checkpoints, change, reason):
    content = fill(checkpoints, 1, 2)
    checkpoints.path(2).write_bytes(change(content))
    with pytest.raises(CheckpointError, match=reason) as caught:
        checkpoints.load()
    assert str(checkpoints.path(2)) in str(caught.value)
    assert "delete it to resume from round 1, which is intact" in str(caught.value)
    checkpoints.path(1).write_bytes(b"")
    with pytest.raises(CheckpointError, match="No other checkpoint there is intact"):
        Checkpoints(checkpoints.directory).load()


def test_a_damaged_file_is_never_lost(checkpoints):
    fill(checkpoints, 1, 2)
    checkpoints.path(2).write_bytes(b"damaged")
    again = Checkpoints(checkpoints.directory, keep=1)
    with pytest.raises(CheckpointError, match="not written over"):
        again.save(2, LEAVES, {})
    with pytest.raises(CheckpointError, match="resume from round 1"):
        again.rollback(1)
    for number in (3, 4):
        assert again.save(number, LEAVES, {}) == number
    assert checkpoints.path(2).read_bytes() == b"damaged"
    assert again.rounds() == [2, 4]


def test_going_back_needs_a_rollback(checkpoints):
    fill(checkpoints, 1, 2)
    with pytest.raises(CheckpointError, match=r"Received: round_number=1\. .*rollback\(1\)"):
        checkpoints.save(1, LEAVES, {})
    checkpoints.rollback(1)
    assert checkpoints.rounds() == [1]
    assert checkpoints.save(1, LEAVES, {"again": True}) == 1
    assert checkpoints.load().manifest == {"again": True}


def test_checkpoint_of_another_run_is_refused(checkpoints):
    fill(checkpoints, 1)
    checkpoints.load(expect={**FINGERPRINT, "shapes": ((3,), ())})
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(expect={"algorithm": "fed_prox", "shapes": [[3], []]})
    message = str(caught.value)
    assert "algorithm: 'fed_avg' in the checkpoint, 'fed_prox' here" in message
    assert "seed: 7 in the checkpoint, nothing here" in message and "shapes" not in message
    with pytest.raises(CheckpointError, match="says nothing of mu: another version"):
        checkpoints.load(expect=FINGERPRINT | {"mu": 0.1})
    checkpoints.save(2, LEAVES, {})
    with pytest.raises(CheckpointError, match="says nothing of .*seed"):
        checkpoints.load(expect=FINGERPRINT)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((-1, [], {}), "Received: round_number=-1"),
        ((1, [np.array(["text"])], {}), r"Received: arrays\[1\]\.dtype"),
        ((1, [], {"a": object()}), "object is not JSON-able"),
    ],
)
def test_what_cannot_be_saved_is_refused(checkpoints, arguments, reason):
    with pytest.raises(ValueError, match=reason):
        checkpoints.save(*arguments)
    assert checkpoints.rounds() == []


def test_bad_construction_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Received: keep=0"):
        Checkpoints(tmp_path, keep=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="which is a file"):
        Checkpoints(tmp_path / "file")


def test_failed_write_leaves_the_files_of_before(checkpoints, monkeypatch):
    content = fill(checkpoints, 1)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(2, LEAVES, {})
    assert names(checkpoints) == ["round-000001.ckpt"]
    assert checkpoints.path(1).read_bytes() == content


def test_killed_at_random_moments(tmp_path):
    checkpoints, draw, least, unfinished = Checkpoints(tmp_path), random.Random(1), 0, 0

    def writing():
        return any(tmp_path.glob("*.unfinished"))

    for kill in range(24):
        saved = kill_during(
            SAVE_FOR_EVER,
            tmp_path,
            lines=draw.randrange(3),
            seconds=draw.uniform(0, 0.04),
            seen=writing if kill % 2 else None,
        )
        least = max(saved, default=least)
        assert (checkpoints.latest() or 0) in (least, least + 1)
        least = checkpoints.latest() or 0
        unfinished += writing()
        for number in checkpoints.rounds():
            leaves, manifest = Checkpoints(tmp_path).load(number)
            assert manifest == {"round": number}
            np.testing.assert_array_equal(leaves[0], np.full(300_000, number, np.float64))
    assert unfinished, "no kill met a file being written"


def test_killed_at_every_file_operation(tmp_path):
    outcomes = []
    for operation in range(1, 40):
        directory = tmp_path / str(operation)
        for number in (1, 2):
            Checkpoints(directory).save(number, [np.full(9, number)], {"round": number})
        with start(KILL_AT_OPERATION, directory, operation) as process:
            process.wait()
        latest = Checkpoints(directory).latest()
        leaves, manifest = Checkpoints(directory).load()
        assert manifest == {"round": latest}
        np.testing.assert_array_equal(leaves[0], np.full(9, latest))
        assert Checkpoints(directory).save(4, [], {}) == latest
        assert not list(directory.glob("*.unfinished"))
        outcomes.append((process.returncode, latest))
        if process.returncode == 0:
            break
    assert outcomes[-1] == (0, 3)
    assert outcomes[0] == (-signal.SIGKILL, 2)
    # Killed before and after the rename; the latest round never goes back.
    assert (-signal.SIGKILL, 3) in outcomes
    assert [latest for _, latest in outcomes] == sorted(latest for _, latest in outcomes)
