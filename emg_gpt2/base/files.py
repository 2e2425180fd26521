"""Results are replaced whole: whoever reads them, and whatever is killed, finds the old ones or the new ones."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from emg_gpt2.base.errors import EMGError


def check_is_file(path: Path) -> None:
    """Raises EMGError for a folder, and for a pipe or device, whose reading might never end."""
    if path.exists() and not path.is_file():
        raise EMGError("this is a folder, a pipe or a device; name a file")


def make_folder(folder: Path) -> None:
    """Raises EMGError where the folder cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise EMGError(f"{folder}: the folder cannot be written ({error.strerror}); name another one") from None


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file that then takes the place of `path`: a reader sees the old or the new one.

    What a killed process has left is overwritten by the next one, because the new file's name is always the same.
    """
    new = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        write(new)
        put_on_disk(new)
        os.replace(new, path)
    except OSError as error:
        _say_where(error, path)
        raise
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def new_files(folder: Path) -> Iterator[Path]:
    """A hidden folder whose files take their places in `folder` in the end, each one whole; after an error, none
    does."""
    new = folder / ".new"
    shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
    new.mkdir()
    try:
        yield new
        for file in sorted(new.iterdir()):
            put_on_disk(file)
            os.replace(file, folder / file.name)
    except OSError as error:
        _say_where(error, folder)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _say_where(error: OSError, place: Path) -> None:
    """A full disk is found out while writing, and then the error names no file."""
    if error.strerror and not error.filename:
        error.filename = str(place)


def put_on_disk(file: Path) -> None:
    """So that the rename that follows cannot outlive the content when the power fails."""
    with file.open("rb+") as written:
        os.fsync(written.fileno())


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def remove_lock(lock: FileLock) -> None:
    """Release a lock whose file is not to stay behind.

    The file goes while the lock is held: a process that waits for it finds that it has no name any more, and makes a
    new one. After the release, another process could hold it already, and a third one the new one.
    """
    with suppress(OSError):  # Windows removes no open file
        os.unlink(lock.lock_file)
    lock.release()


# ---- folders ---------------------------------------------------------------------------------------------------


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder that then takes the place of `folder`: a reader sees the old or the new one.

    After an error nothing is left of the new one, on a full disk above all.
    """
    recover_folder(folder)
    new, old = _beside(folder, "new"), _beside(folder, "old")
    new.mkdir(parents=True)
    try:
        write(new)
        for file in filter(Path.is_file, new.rglob("*")):
            put_on_disk(file)
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except BaseException:
        recover_folder(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Undo what a kill in the midst of `replace_folder` has left: the old folder is back in its place, alone."""
    if not folder.exists() and _beside(folder, "old").exists():
        os.replace(_beside(folder, "old"), folder)
    for leftover in (_beside(folder, "new"), _beside(folder, "old")):
        shutil.rmtree(leftover, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """At once: a kill in the midst of the removal leaves no half of it under its name."""
    new = _beside(folder, "new")
    shutil.rmtree(new, ignore_errors=True)
    os.replace(folder, new)
    shutil.rmtree(new, ignore_errors=True)


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")
