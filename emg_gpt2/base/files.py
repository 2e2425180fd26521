"""Files and folders that are replaced whole: a reader, also after a kill, finds the old content or the new one."""

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from emg_gpt2.base.errors import EMGError

PRIVATE = 0o600  # mode of a temporary file


def check_is_file(path: Path) -> None:
    """Raises EMGError for a folder, and for a pipe or device, whose reading might never end."""
    if path.exists() and not path.is_file():
        raise EMGError("this is a folder, a pipe or a device; name a file")


def make_folder(folder: Path) -> None:
    """Make the folder where there is none; raises EMGError where it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise EMGError(f"{folder}: the folder cannot be written ({error.strerror}); name another one") from None


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with the path of a new file, which then takes the place of `path`.

    The new file always has the same name, so that the next process overwrites what a killed one has left.
    """
    new = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        with errors_name(path):
            write(new)
            put_on_disk(new)
            os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def new_files(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder; at the end its files move into `folder`, each one whole. After an error none does."""
    new = folder / ".new"
    shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
    new.mkdir()
    try:
        with errors_name(folder):
            yield new
            for file in sorted(new.iterdir()):
                put_on_disk(file)
                os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def errors_name(place: Path) -> Iterator[None]:
    """Give an OSError that names no file the name of `place`: a full disk shows while writing, without a name."""
    try:
        yield
    except OSError as error:
        if error.strerror and not error.filename:
            error.filename = str(place)
        raise


def put_on_disk(file: Path) -> None:
    """Wait until the content is on the disk: a rename that follows cannot survive a power failure without it.

    A file that its owner alone can read, as safetensors makes it, becomes readable for those whom the umask allows.
    """
    with file.open("rb+") as written:
        os.fsync(written.fileno())
    if stat.S_IMODE(file.stat().st_mode) == PRIVATE:
        file.chmod(0o666 & ~_umask())


def _umask() -> int:
    """The umask of this process; it can be read only by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_json(path: Path, content: dict) -> None:
    """Write the content as indented JSON in UTF-8."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def remove_lock(lock: FileLock) -> None:
    """Release a lock and remove its file.

    The file is removed while the lock is held: a process that waits for the lock finds that its file has no name any
    more, and makes a new one. Removed after the release, the file could already be the lock of another process.
    """
    with suppress(OSError):  # Windows removes no open file
        os.unlink(lock.lock_file)
    lock.release()


# ---- folders ---------------------------------------------------------------------------------------------------


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a new folder, which then takes the place of `folder`.

    After an error nothing is left of the new folder, so that it does not fill the disk.
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
    """Undo a `replace_folder` that was killed: put the old folder back, and remove the rest of the new one."""
    if not folder.exists() and _beside(folder, "old").exists():
        os.replace(_beside(folder, "old"), folder)
    for leftover in (_beside(folder, "new"), _beside(folder, "old")):
        shutil.rmtree(leftover, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove the folder; a kill during the removal leaves no half of it under its name."""
    new = _beside(folder, "new")
    shutil.rmtree(new, ignore_errors=True)
    os.replace(folder, new)
    shutil.rmtree(new, ignore_errors=True)


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")
