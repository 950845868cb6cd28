"""State that belongs to clients: control variates, personal layers, dual variables, residuals.

`ServerState` is the same size for ten clients and for ten million; what an algorithm remembers of
each client is kept here, by client id and round, in memory or in a file. The rounds are what makes
a run resumable: going back to the checkpoint of a round takes back the rows written after it.
"""

import hashlib
import operator
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tffed import private_files
from tffed.client_text import client_text
from tffed.serialize import pack, unpack

_APPLICATION_ID = 0x74666564  # "tffed": tells our databases from others.
_FORMAT = 1
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE states (
    client TEXT NOT NULL, round INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (client, round)
);
CREATE INDEX states_by_round ON states (round);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_FORMAT};
COMMIT;
"""
_NEWEST = "SELECT round, data FROM states WHERE client = ? ORDER BY round DESC LIMIT 1"


class ClientStoreError(ValueError):
    """A client store that cannot be opened, read or written."""


class ClientStore:
    """The states of clients: for each, a sequence of arrays, with the rounds they are from.

    ```python
    with ClientStore("run/clients.sqlite") as store:
        store.put_all(1, {"ada": [np.zeros(3, np.float32)], "bob": [np.ones(3, np.float32)]})
        (variate,) = store.get("ada")
    ```

    Methods may be called from several threads. All of a round's states are written in one
    transaction: a process killed at any moment leaves the states of the last round that was
    written whole. A file serves one run at a time, which sees to that itself, and its owner alone
    can read it: a client's state may say much of its data.

    Args:
        path: File of the database, made when missing, with its folders. By default the states live
            in memory, as long as this object.

    Raises:
        ClientStoreError: The file cannot be opened, is damaged, or is no client store.
    """

    def __init__(self, path: str | Path = ":memory:"):
        self.path = str(path)
        self._lock = threading.RLock()
        self._total = None  # see `tally`; None: to be counted when it is asked for
        with self._reporting():
            if self.path != ":memory:":
                private_files.make_folder(Path(self.path).parent)
                private_files.make_file(self.path)  # SQLite gives its journal the same rights
            self._connection = sqlite3.connect(self.path, check_same_thread=False)
        try:
            self._open()
        except BaseException:
            self._connection.close()
            raise

    def get(self, client_id: int | str) -> tuple[np.ndarray, ...] | None:
        """Returns the newest state of a client, or None if it has none."""
        rows = self._query(_NEWEST, client_text(client_id))
        if not rows:
            return None
        try:
            return tuple(unpack(rows[0][1]))
        except (TypeError, ValueError) as error:
            raise ClientStoreError(
                f"The state of client {client_id!r} cannot be read: {error} {self._remedy()}"
            ) from error

    def put_all(self, round_number: int, states: Mapping[int | str, Sequence[np.ndarray]]) -> None:
        """Writes the states of a round's clients: all of them or, on any failure, none.

        Args:
            round_number: The round after which the clients have these states. A state of the same
                client and round is replaced.
            states: For each client id the arrays of its state.

        Raises:
            ValueError: An id is neither int nor str, or an array has a dtype that cannot be stored.
            ClientStoreError: The store holds states of a later round, or cannot be written.
        """
        round_number = operator.index(round_number)
        rows = [(client_text(i), round_number, pack(arrays)) for i, arrays in states.items()]
        with self._lock:
            with self._transaction() as connection:
                (newest,) = connection.execute("SELECT max(round) FROM states").fetchone()
                if newest is not None and newest > round_number:
                    raise ClientStoreError(
                        f"Expected a round not before {newest}, the newest in the client store "
                        f"{self.path}. Received: round_number={round_number}. Give each run a file "
                        "of its own: another one may have written to this. (To go back in a store "
                        "that you keep yourself: rollback removes the states of later rounds.)"
                    )
                total = self._total and self._exchanged(rows)
                self._total = None  # until it is known that the transaction is done
                connection.executemany("INSERT OR REPLACE INTO states VALUES (?, ?, ?)", rows)
            self._total = total

    def tally(self, round_number: int | None = None) -> dict:
        """What tells the states that clients have after a round from any others.

        Counted once, over all clients; from then on it costs as much as what is written.

        Args:
            round_number: The round; None: the last one, as it is now.

        Returns:
            `{"clients": how many have a state, "digest": text}`, the same for the same states,
            whatever was written before and since replaced.
        """
        with self._lock:
            if round_number is not None:
                return _told(self._counted(operator.index(round_number)))
            if self._total is None:
                self._total = self._counted(2**62)
            return _told(self._total)

    def _counted(self, round_number):
        """`(clients, sum of digests)` of the states after a round."""
        count = total = 0
        with self._lock, self._reporting():
            # Beside a maximum, SQLite gives the other columns of the row that has it.
            for row in self._connection.execute(
                "SELECT client, max(round), data FROM states WHERE round <= ? GROUP BY client",
                (round_number,),
            ):
                count, total = count + 1, total + _digest(*row)
        return count, total

    def _exchanged(self, rows):
        """`_total` with rows in the place of the newest ones of the same clients."""
        count, total = self._total
        for key, number, data in rows:
            before = self._connection.execute(_NEWEST, (key,)).fetchone()
            count += before is None
            total += _digest(key, number, data) - (_digest(key, *before) if before else 0)
        return count, total

    def rollback(self, round_number: int) -> None:
        """Removes the states of rounds after the given one, to go on from there."""
        self._total = None
        with self._transaction() as connection:
            connection.execute(
                "DELETE FROM states WHERE round > ?", (operator.index(round_number),)
            )

    def prune(self, round_number: int) -> None:
        """Removes the states that going back to the given round, or a later one, never needs.

        That is each state that the same client replaced up to and including that round.
        """
        round_number = operator.index(round_number)
        with self._transaction() as connection:
            connection.execute(
                "DELETE FROM states WHERE round < ? AND EXISTS (SELECT 1 FROM states AS newer "
                "WHERE newer.client = states.client AND newer.round > states.round "
                "AND newer.round <= ?)",
                (round_number, round_number),
            )

    def close(self) -> None:
        """Closes the store; one in memory is gone then. Closing twice does nothing."""
        with self._lock:
            self._connection.close()

    def __len__(self) -> int:
        """The number of clients that have a state."""
        return self._query("SELECT count(DISTINCT client) FROM states")[0][0]

    def __bool__(self) -> bool:
        """True, also when empty: `store or other` must not put an empty store aside."""
        return True

    def __contains__(self, client_id: int | str) -> bool:
        return bool(
            self._query("SELECT 1 FROM states WHERE client = ? LIMIT 1", client_text(client_id))
        )

    def __iter__(self) -> Iterator[int | str]:
        """The ids of the clients that have a state, in an order that depends on them alone."""
        rows = self._query("SELECT DISTINCT client FROM states ORDER BY client")
        return iter([int(key[1:]) if key[0] == "i" else key[1:] for (key,) in rows])

    def __enter__(self) -> "ClientStore":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _open(self) -> None:
        """Chooses how the file is written and checks what it is; gives an empty one its table."""
        with self._reporting():
            # Every commit reaches the disk, and the journal beside the file undoes a half-written
            # one at the next opening. A rollback journal writes the states once, where a
            # write-ahead log would write them twice, and it works on network file systems.
            self._connection.execute("PRAGMA journal_mode = DELETE").fetchall()
            self._connection.execute("PRAGMA synchronous = EXTRA").fetchall()
            if not self._connection.execute("SELECT 1 FROM sqlite_master").fetchall():
                self._connection.executescript(_SCHEMA)
            (application,) = self._connection.execute("PRAGMA application_id").fetchone()
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if application != _APPLICATION_ID or version != _FORMAT:
            raise ClientStoreError(
                f"Expected a client store of tffed, format {_FORMAT}. Received: the database "
                f"{self.path} with application_id={application}, user_version={version}. Give "
                "another path, or install the tffed that wrote it."
            )

    def _query(self, query: str, *values) -> list[tuple]:
        with self._lock, self._reporting():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Runs what is inside as one transaction: committed at the end, undone on an exception."""
        with self._lock, self._reporting(), self._connection:
            # SQLite would otherwise begin only at the first write, after what was read before it.
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turns the errors of SQLite and of the file system into one that says what to do."""
        try:
            yield
        except sqlite3.ProgrammingError as error:
            raise ClientStoreError(
                f"The client store {self.path} is closed ({error}). Open it again."
            ) from error
        except sqlite3.OperationalError as error:
            raise ClientStoreError(
                f"The client store {self.path} cannot be read or written: {error}. Check that its "
                "folder exists, may be written and has space, and that no other run uses it."
            ) from error
        except (sqlite3.DataError, OverflowError) as error:
            raise ClientStoreError(
                f"A state is too large for the client store {self.path}: {error}. SQLite takes "
                "about 1 GB a client; keep less, or a narrower dtype."
            ) from error
        except sqlite3.DatabaseError as error:
            raise ClientStoreError(
                f"The client store {self.path} cannot be read: {error}. {self._remedy()}"
            ) from error
        except OSError as error:
            raise ClientStoreError(
                f"The folder of the client store {self.path} cannot be made: {error}. Give "
                "another path."
            ) from error

    def _remedy(self) -> str:
        return (
            f"The file {self.path} is damaged or something else. It is left as it is: put a copy "
            "of it in its place, or give another path and start the run again."
        )


def _digest(key, number, data):
    found = hashlib.blake2b(f"{key}\0{number}\0".encode(), digest_size=16)
    found.update(data)
    return int.from_bytes(found.digest(), "little")


def _told(total):
    count, digests = total
    return {"clients": count, "digest": f"{digests % 2**128:032x}"}
