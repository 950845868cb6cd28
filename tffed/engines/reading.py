"""Clients' examples, read by a thread of their own, ahead of the lanes."""

import contextlib
import queue
import threading
import weakref
from concurrent.futures import CancelledError, Future, InvalidStateError, wait

_PATIENCE = 2.0  # seconds for a read that was interrupted to end by itself


class Reader:
    """Reads parts of cohorts, one at a time: a user's reader need not be safe in several threads.

    Args:
        prepare: `(clients, part) -> ` what is to be had of the clients with these ids.
    """

    def __init__(self, prepare):
        self._prepare = prepare
        self._thread = None
        self._expected = (None, {})

    def read(self, clients, part):
        """The future of what `prepare` gives."""
        population, parts = self._expected
        if population is clients and tuple(part) in parts:
            return parts.pop(tuple(part))
        if self._thread is None:
            self._thread = _Thread()
            weakref.finalize(self, self._thread.asked.put, None)
        return self._thread.ask(self._prepare, clients, part)

    def expect(self, clients, parts):
        """Reads parts that are likely to be asked for next; those of the last call are let go."""
        self._expected = (None, {})
        self._expected = clients, {tuple(part): self.read(clients, part) for part in parts}

    def abandon(self):
        """Lets go of all that is being read: whoever waits for it gets an error.

        A read that hangs stays behind in its thread; the next one has a thread of its own.
        """
        self._expected = (None, {})
        if self._thread is not None and not self._thread.abandon():
            self._thread = None


class _Thread:
    """Does one thing after the other, until None is asked for."""

    def __init__(self):
        self.asked = queue.SimpleQueue()
        self._waiting = weakref.WeakSet()
        # A daemon: the end of the program does not wait for a user's reader that hangs.
        threading.Thread(target=_work, args=(self.asked,), daemon=True).start()

    def ask(self, function, *arguments):
        future = Future()
        self._waiting.add(future)
        self.asked.put((future, function, arguments))
        return future

    def abandon(self):
        """Does nothing more of what was asked for; whether the thread can be used again."""
        waiting = [future for future in list(self._waiting) if not future.cancel()]
        hanging = wait(waiting, _PATIENCE).not_done
        for future in hanging:
            with contextlib.suppress(InvalidStateError):  # it is there after all
                future.set_exception(CancelledError())
        if hanging:
            self.asked.put(None)
        return not hanging


def _work(asked):
    while (one := asked.get()) is not None:
        future, function, arguments = one
        if future.set_running_or_notify_cancel():
            _do(future, function, arguments)
        del one, future, function, arguments


def _do(future, function, arguments):
    try:
        result = function(*arguments)
    except BaseException as error:
        with contextlib.suppress(InvalidStateError):  # abandoned
            future.set_exception(error)
        del future, function, arguments  # which the error's traceback would keep
    else:
        with contextlib.suppress(InvalidStateError):
            future.set_result(result)
