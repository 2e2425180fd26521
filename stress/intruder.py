"""What a stranger may plant where a program unpickles."""

from pathlib import Path


class Intruder:
    """Makes the file `path` where it is unpickled."""

    def __init__(self, path: Path | str):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")
