"""Clients' examples, read by a thread of their own, ahead of the lanes."""

from concurrent.futures import ThreadPoolExecutor


class Reader:
    """Reads parts of cohorts, one at a time: a user's reader need not be safe in several threads.

    Args:
        prepare: `(clients, part) -> ` what is to be had of the clients with these ids.
    """

    def __init__(self, prepare):
        self._prepare = prepare
        self._thread = ThreadPoolExecutor(1)
        self._expected = (None, {})

    def read(self, clients, part):
        """The future of what `prepare` gives."""
        population, parts = self._expected
        if population is clients and tuple(part) in parts:
            return parts.pop(tuple(part))
        return self._thread.submit(self._prepare, clients, part)

    def expect(self, clients, parts):
        """Reads parts that are likely to be asked for next; those of the last call are let go."""
        self._expected = (None, {})
        self._expected = clients, {tuple(part): self.read(clients, part) for part in parts}
