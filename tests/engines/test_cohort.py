"""How a cohort is cut into chunks."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tffed.engines.cohort import alike, chunks

counts = st.integers(0, 300)
sizes = st.lists(st.integers(1, 5000), max_size=150)


def positions(parts):
    return np.concatenate([[], *parts]).astype(int).tolist()


def loads(parts, sizes):
    return [sum(sizes[p] for p in part) for part in parts]


@given(counts)
@example(0)
@example(1)
@example(8)
@example(65)
def test_without_sizes_chunks_are_consecutive(count):
    parts = chunks(count)
    assert positions(parts) == list(range(count))
    assert all(1 <= len(part) <= 8 for part in parts)
    assert len(parts) >= min(count, 4) and (len(parts) < 4 or len(parts) % 4 == 0)
    assert not parts or max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(deadline=None)
@given(sizes)
@example([])
@example([1])
@example([7] * 64)
@example([5000] + [1] * 100)
def test_with_sizes_every_client_is_in_one_chunk_in_cohort_order(sizes):
    parts = chunks(len(sizes), np.array(sizes, np.int64))
    assert sorted(positions(parts)) == list(range(len(sizes)))
    assert all(list(part) == sorted(part) and 1 <= len(part) <= 8 for part in parts)
    assert len(parts) >= min(len(sizes), 4)
    work = loads(parts, sizes)
    assert work == sorted(work, reverse=True)


@settings(deadline=None)
@given(sizes)
def test_chunks_depend_on_the_sizes_alone(sizes):
    first, again = chunks(len(sizes), sizes), chunks(len(sizes), np.array(sizes))
    assert [part.tolist() for part in first] == [part.tolist() for part in again]


@settings(deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=8))
def test_a_small_cohort_has_a_chunk_a_client(sizes):
    parts = chunks(len(sizes), sizes, multiple=8)
    assert [len(part) for part in parts] == [1] * len(sizes)
    assert loads(parts, sizes) == sorted(sizes, reverse=True)


@settings(deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=9, max_size=150))
def test_work_is_balanced(sizes):
    # The last client that came to the fullest chunk went where the load was least among the
    # chunks with room, so without it the chunk holds no more than each of those does at the end.
    parts = chunks(len(sizes), sizes)
    work = loads(parts, sizes)
    room = -(-len(sizes) // len(parts))
    fullest = int(np.argmax(work))
    least = min(sizes[p] for p in parts[fullest])
    open_loads = [w for w, part in zip(work, parts, strict=True) if len(part) < room]
    if open_loads:
        assert work[fullest] - least <= min(open_loads)


def test_largest_first_beats_the_order_of_the_cohort():
    sizes = [1000, 900, 800] + [50] * 21
    balanced = loads(chunks(len(sizes), sizes, multiple=8), sizes)
    consecutive = loads(chunks(len(sizes), multiple=8), sizes)
    assert max(consecutive) == 2700 and max(balanced) <= 1100


@settings(deadline=None)
@given(sizes, st.integers(1, 40))
def test_clients_side_by_side_are_of_similar_sizes(sizes, most):
    parts = alike(len(sizes), sizes, most)
    assert sorted(positions(parts)) == list(range(len(sizes)))
    assert all(1 <= len(part) <= most for part in parts)
    assert [sizes[p] for part in parts for p in part] == sorted(sizes, reverse=True)
    assert positions(alike(len(sizes), None, most)) == list(range(len(sizes)))
