"""Client ids and their places in a population."""

import itertools
from collections.abc import Iterable

import numpy as np

from tffed.client_text import client_text


class UnknownClientError(KeyError):
    """An id that is not in the population."""

    def __str__(self):
        return str(self.args[0])


def plain_id(client_id):
    """Returns an id as a Python `int` or `str`.

    Raises:
        ValueError: The id is neither an integer nor a string, or UTF-8 cannot write it.
    """
    if isinstance(client_id, (int, np.integer)) and not isinstance(client_id, bool):
        return int(client_id)
    if isinstance(client_id, str):
        client_text(client_id)
        return str(client_id)
    raise ValueError(
        f"Expected client ids that are integers or strings. Received: id={client_id!r} of type "
        f"{type(client_id).__name__}. Name the clients by integers or strings."
    )


class IdIndex:
    """The ids of a population in order, and the position of each.

    A `range` is kept as it is and costs nothing per client; any other ids are held with a
    dictionary of their positions.

    Args:
        ids: The ids, in population order.

    Raises:
        ValueError: No ids, an id twice, or an id that is neither integer nor string.
    """

    def __init__(self, ids: Iterable):
        self.ids = ids if isinstance(ids, range) else tuple(plain_id(i) for i in ids)
        if not self.ids:
            raise ValueError(
                f"Expected at least one client. Received: ids={ids!r}. Check the path, pattern or "
                "dictionary that the clients come from."
            )
        self._at = None if isinstance(ids, range) else {i: k for k, i in enumerate(self.ids)}
        if self._at is not None and len(self._at) != len(self.ids):
            seen = set()
            twice = next(i for i in self.ids if i in seen or seen.add(i))
            raise ValueError(
                f"Expected every client id once; the id {twice!r} occurs more than once. Received: "
                f"{len(self.ids)} ids, {len(self._at)} distinct. Rename or merge those clients."
            )

    def __len__(self):
        return len(self.ids)

    def __contains__(self, client_id):
        try:
            client_id = plain_id(client_id)
        except ValueError:
            return False
        return client_id in (self.ids if self._at is None else self._at)

    def position(self, client_id) -> int:
        """Returns the place of an id in the population, or raises `UnknownClientError`."""
        if client_id not in self:
            some = ", ".join(repr(i) for i in itertools.islice(self.ids, 3))
            raise UnknownClientError(
                f"Expected the id of one of the {len(self.ids)} clients, such as {some}. "
                f"Received: id={client_id!r}. Take ids from the `ids` of the client data."
            )
        client_id = plain_id(client_id)
        return self.ids.index(client_id) if self._at is None else self._at[client_id]
