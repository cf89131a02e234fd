"""Files: atomic writes, locks, checksums, and names of files."""

import errno
import hashlib
import os
import secrets
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from internals.errors import UserError, reason, shown, warn

DATA = Path(__file__).resolve().parent.parent / "data"
# errors of disks that cannot lock files, as some network disks; 524 is Linux's internal ENOTSUPP
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO, 524)


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
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # the data must reach the disk before the rename does
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder):
    """A context manager that locks a dataset with a hidden file next to its folder, so that
    processes which prepare the same dataset run one after the other."""
    make_data_folder(folder.parent)
    # a singleton: a process that has the lock can take it again
    lock = FileLock(folder.parent / f".{folder.name}.lock", is_singleton=True)
    if not acquired(lock, timeout=0):
        with suppress(OSError):  # stderr may be closed
            print(f"another process is preparing {folder}; waiting until it is done",
                  file=sys.stderr)
        acquired(lock, timeout=-1)
    try:
        yield
    finally:
        lock.release()


def acquired(lock, timeout):
    """Whether a FileLock is acquired within this time in seconds; -1: waits without end. The
    operating system releases it when the process ends, even if it is killed. On a disk without
    locks, the answer is True, with a warning."""
    try:
        lock.acquire(timeout)
    except Timeout:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warn(f"the disk of {lock.lock_file} has no locks ({reason(error)}): make sure that no "
             "other process writes to its folder")
    return True


def make_data_folder(folder):
    """Create a folder for data if it does not exist. Raises UserError if that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be created ({error.strerror}): choose a folder that can "
                        "be written to with --data_dir") from None


def check_sha(path, expected, what):
    """Raises UserError if the file's sha256 is not the expected one."""
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise UserError(f"{what} has sha256 {actual}, but {shown(expected)} was expected: the "
                        "file is damaged, or is a different file")


def printable(text):
    """A file name as text that can be written as UTF-8. If the locale is not UTF-8, Python decodes
    the bytes of a name to lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def relative(path):
    """A path relative to the current folder if it is inside it, otherwise unchanged."""
    with suppress(ValueError):
        return Path(path).absolute().relative_to(Path.cwd())
    return path
