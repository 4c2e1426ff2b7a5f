"""The folder that keeps compiled libraries, and what is believed of the files in it.

A library is kept as `NAME.so` beside `NAME.sha256`, the digest of its content. One that does not
pass its self check leaves `NAME.failed` with the reason, so that it is not compiled again.
Loading a library is running it: files and folders that another user can write are refused.
"""

import atexit
import contextlib
import hashlib
import os
import pathlib
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator

from absl import logging

LOCK_SECONDS = 400.0  # longer than compiling may take


def cache_folder() -> pathlib.Path:
    """Returns `$TBPTT_CACHE`, else `$XDG_CACHE_HOME/tbptt`, else `~/.cache/tbptt`.

    Raises:
      OSError: the user has no home folder.
    """
    chosen, caches = os.environ.get("TBPTT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return pathlib.Path(chosen).expanduser().absolute()
    if caches and os.path.isabs(caches):  # as the standard says
        return pathlib.Path(caches) / "tbptt"
    try:
        return pathlib.Path.home() / ".cache" / "tbptt"
    except RuntimeError as error:
        raise OSError(f"there is no cache folder, because the user is unknown: {error}") from None


def check_owner(path: pathlib.Path) -> None:
    """Raises OSError unless `path` belongs to this user or root, and nobody else may write it."""
    status = path.stat()
    if status.st_uid not in (os.getuid(), 0):
        raise OSError(f"{path} belongs to another user ({status.st_uid})")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"other users can write {path}: chmod go-w {path}")


def find_library(folder: pathlib.Path, name: str, *, log: bool) -> pathlib.Path | None:
    """Returns the library `name` in `folder`, or None if there is none or it is refused.

    Args:
      folder: the cache folder; if it is refused, so is all that is in it.
      name: the library's name without its ending.
      log: whether to log why a library is refused.
    """
    file = folder / f"{name}.so"
    try:
        check_owner(folder)
        content = file.read_bytes()
    except OSError:  # `prepare_folder` says what is wrong with a folder
        return None
    try:
        check_owner(file)
        if _digest(content) != file.with_suffix(".sha256").read_text():
            raise OSError(f"{file} is not as it was written")
    except (OSError, UnicodeDecodeError) as error:
        if log:
            logging.warning("A cached library is refused: %s. It is compiled anew.", error)
        return None
    return file


def find_failure(folder: pathlib.Path, name: str) -> str | None:
    """Returns why the library `name` is not in `folder`, if it failed its self check before."""
    file = folder / f"{name}.failed"
    try:
        check_owner(folder)
        return f"{file.read_text()} (found before; to try again, remove {file})"
    except (OSError, UnicodeDecodeError):
        return None


def prepare_folder(folder: pathlib.Path) -> None:
    """Makes `folder` for this user alone; raises OSError if it cannot be used."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    check_owner(folder)


def store_library(made: pathlib.Path, folder: pathlib.Path, name: str) -> pathlib.Path:
    """Moves a library that was made in `folder` to its name there; returns the file."""
    made.chmod(0o700)  # the compiler follows the umask, which may let others write
    _write(folder / f"{name}.sha256", _digest(made.read_bytes()))
    return made.replace(folder / f"{name}.so")


def store_failure(folder: pathlib.Path, name: str, reason: str) -> None:
    """Notes in `folder` that the library `name` fails its self check."""
    _write(folder / f"{name}.failed", reason)


@contextlib.contextmanager
def temporary_file(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a new file in `folder`, and removes it if it still has that name at the end."""
    handle, name = tempfile.mkstemp(prefix=".new-", suffix=".so", dir=folder)
    os.close(handle)
    try:
        yield pathlib.Path(name)
    finally:
        pathlib.Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from the block until it ends, where the file system can lock.

    Without locks two processes may both compile; renaming keeps their files whole all the same.
    """
    import fcntl  # Windows has none, and imports this module too

    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _wait(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # a fork may hold a copy of the handle
        os.close(handle)


def _wait(handle: int, operation: int) -> None:
    """Locks the file, after at most `LOCK_SECONDS`; returns without a lock where there is none."""
    import fcntl

    end, told = time.monotonic() + LOCK_SECONDS, False
    while time.monotonic() < end:
        try:
            return fcntl.flock(handle, operation)
        except BlockingIOError:
            if not told:
                logging.info("Another process compiles the native kernels. Waiting for it ...")
            told = True
            time.sleep(0.05)
        except OSError:
            return None
    return None


def temporary_folder() -> pathlib.Path:
    """Returns a new folder that is removed when this process ends."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tbptt-native-"))
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: pathlib.Path, process: int) -> None:
    if os.getpid() == process:  # not at the end of a fork
        shutil.rmtree(folder, ignore_errors=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: pathlib.Path, text: str) -> None:
    """Writes a small file in one step."""
    with temporary_file(path.parent) as new:
        new.write_text(text)
        new.replace(path)
