"""Files: atomic writes, locks on folders, checksums, text files, and wheels read as data."""

import errno
import glob
import hashlib
import os
import platform
import re
import secrets
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

from internals.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

DATA = Path(__file__).resolve().parent.parent / "data"


@contextmanager
def replacing(path):
    """A context manager for atomic writes. It yields a temporary path; when the body is done, the
    file written there is renamed to `path`. If the body raises an exception, `path` is unchanged.

    The temporary name is unique. If several processes write the same file, each replaces it with a
    complete file, and the last one wins. A link stays, and the file that it points to is replaced.
    What is not a regular file, such as /dev/null or a named pipe, is written to directly. Raises
    IsADirectoryError if `path` is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        yield path
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    writer = f"{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f"{path.name}.{writer}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # the data must reach the disk before the rename does
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path):
    """Remove temporary files of `path` that killed processes left. Files of other machines are
    kept, because their processes may still be running."""
    pattern = glob.escape(f"{path.name}.{platform.node()}-") + "*.tmp"
    for leftover in path.parent.glob(pattern):
        pid = re.search(r"-(\d+)-[0-9a-f]+\.tmp$", leftover.name)
        if pid and not is_alive(int(pid[1])):
            leftover.unlink(missing_ok=True)


def is_alive(pid):
    """Whether a process runs on this machine; True if that is not known."""
    if os.name != "posix":  # on Windows, signal 0 is a Ctrl-C
        return True
    try:
        os.kill(pid, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


@contextmanager
def locked(folder):
    """A context manager that locks a folder, so that processes which prepare the same dataset run
    one after the other. It creates the folder if necessary, and removes it at the end if it is
    still empty. The operating system releases the lock when the process ends, even if it is killed.

    Windows and some network disks have no such locks. The body then runs without a lock. If two
    processes write at the same time, the files may not match, which the checksums in meta.json
    reveal.
    """
    if fcntl is None:
        with removing_empty(folder):
            make_data_folder(folder)
            yield
        return
    missing = missing_folders(folder)
    descriptor = open_locked(folder)
    try:
        with removing_empty(folder, missing):
            yield
    finally:
        os.close(descriptor)


def open_locked(folder):
    """A descriptor of the folder that has the lock. Another process may have removed the folder at
    the moment when it released the lock; then it is created again."""
    while True:
        make_data_folder(folder)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with suppress(OSError):  # stderr may be closed
                print(f"another process is preparing {folder}; waiting until it is done",
                      file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # this disk does not support locks
            return descriptor
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                return descriptor
        os.close(descriptor)


def make_data_folder(folder):
    """Create a folder for data if it does not exist. Raises UserError if that is not possible, or
    if nothing can be written to it."""
    advice = "choose a folder that can be written to with --data_dir"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be created ({error.strerror}): {advice}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written to: {advice}")


def missing_folders(folder):
    """The folders that would be created with a folder: itself and its parents, innermost first."""
    return [path for path in (folder, *folder.parents) if not os.path.exists(path)]


@contextmanager
def removing_empty(folder, missing=None):
    """A context manager that removes what it leaves empty: a folder and parents of it that did not
    exist before. missing: these folders; None: those that do not exist now."""
    missing = missing_folders(folder) if missing is None else missing
    try:
        yield
    finally:
        with suppress(OSError):  # a folder with files stays, and so do its parents
            for path in missing:
                path.rmdir()


def check_sha(path, expected, what):
    """Raises UserError if the file's sha256 is not the expected one."""
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise UserError(f"{what} has sha256 {actual}, but {expected:.64} was expected: the file "
                        "is damaged, or is a different file")


def printable(text):
    """A file name as text that can be written as UTF-8. If the locale is not UTF-8, Python decodes
    the bytes of a name to lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def relative(path):
    """A path relative to the current folder if it is inside it, otherwise unchanged."""
    with suppress(ValueError):
        return Path(path).absolute().relative_to(Path.cwd())
    return path
