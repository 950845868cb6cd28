"""A file of lines, each forced to the disk before what it speaks of happens."""

import json
import os
from pathlib import Path

from tffed import private_files
from tffed.checkpoint_file import write_whole


class Journal:
    """Records of rounds, JSON dictionaries with a `"number"`, oldest first.

    Readable by its owner alone. A line that a killed process has left half written speaks of
    nothing that anybody saw, and is passed over.

    Args:
        path: The file; made with the first record.
    """

    def __init__(self, path: Path):
        self._path = path

    def add(self, record):
        """Appends a record; it is on the disk when this returns."""
        line = json.dumps(record).encode() + b"\n"
        descriptor = private_files.opener(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self):
        """All whole records."""
        if not self._path.exists():
            return []
        lines = self._path.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines if line]

    def drop_before(self, number):
        """Removes the records of rounds before `number`."""
        records = self.read()
        kept = [record for record in records if record["number"] >= number]
        if len(kept) < len(records):
            write_whole(self._path, [json.dumps(record).encode() + b"\n" for record in kept])
