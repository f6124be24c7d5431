"""Write files below a folder and nowhere else. Neither a name nor a symbolic link can lead out of it."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress

from builder.base.errors import WriteError
from builder.store.output import make_folder

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_OPEN = 32  # folders; members of a tar lie in one or a few
_LONGEST = 4095  # bytes of a name: Linux's PATH_MAX. No program can open a longer path
_OF_THE_NAME = {
    errno.ENAMETOOLONG: "a part of it is longer than this file system allows",
    errno.ENOTDIR: "a file or a symbolic link is where it has a folder",
    errno.ELOOP: "a symbolic link is where it has a folder",
    errno.EISDIR: "a folder is in its place",
    errno.EPERM: "what is in its place cannot be replaced",
    errno.EEXIST: "another file is in its place",
    errno.EILSEQ: "this file system does not allow its characters",
    errno.EINVAL: "this file system does not allow it",
}
"""Errors that concern one name only, so other files can still be written. Any other error (a full, failing or read-only
disk) ends the run."""


class NameRefusedError(Exception):
    """A file of this name cannot be written. Args: name, why."""


class Tree:
    """A folder to write into. Not thread-safe.

    Each part of a path is opened from its parent, without following links. So a link that lies there is never followed,
    even if another process has just made it.
    """

    def __init__(self, root: str, *, replace: bool = True) -> None:
        """``root`` is created if missing. It may be a link itself, as the user chose it. ``replace``: replace files
        that exist. Raises WriteError."""
        self.root, self._replace = root, replace
        make_folder(root)
        self._folders: OrderedDict[str, int] = OrderedDict()
        try:
            self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise WriteError(root, error.strerror) from error

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        while self._folders:
            os.close(self._folders.popitem()[1])
        os.close(self._root)

    def write(self, name: str, blocks: Iterable[bytes | memoryview], *, whole: bool = False) -> int:
        """Write a file. Replaces an existing file if this tree may. Returns the size in bytes.

        ``whole``: the file gets its name only when it is whole, and always replaces an existing file. Raises
        NameRefusedError for a name that would lead out of the folder or that the system does not allow, WriteError if
        the system refuses to write at all.
        """
        parts = name.split("/")
        if "\0" in name:
            raise NameRefusedError(name, "it has a NUL in it")
        if name.startswith("/") or ".." in parts:
            raise NameRefusedError(name, "it would lead out of the folder")
        if "" in parts or "." in parts:
            raise NameRefusedError(name, "a part of it is no name")
        if len(name.encode(errors="surrogatepass")) > _LONGEST:
            raise NameRefusedError(name, f"it is longer than the {_LONGEST:,} bytes that a path may have")
        leaf = f"{parts[-1]}.part" if whole else parts[-1]
        try:
            folder = self._folder("/".join(parts[:-1]))
            size = _write(folder, leaf, blocks, replace=self._replace or whole)
            if whole:
                _rename(folder, leaf, parts[-1])
        except OSError as error:
            if error.errno in _OF_THE_NAME:
                raise NameRefusedError(name, _OF_THE_NAME[error.errno]) from error
            raise WriteError(os.path.join(self.root, name), error.strerror) from error
        return size

    def _folder(self, path: str) -> int:
        parts = path.split("/") if path else []
        known = len(parts)
        while known and "/".join(parts[:known]) not in self._folders:
            known -= 1
        handle = self._folders["/".join(parts[:known])] if known else self._root
        for depth in range(known, len(parts)):  # no recursion: a path has up to 2,000 parts
            above, leaf = handle, parts[depth]
            try:
                handle = os.open(leaf, _FOLDER, dir_fd=above)
            except FileNotFoundError:
                with suppress(FileExistsError):  # another process was faster
                    os.mkdir(leaf, dir_fd=above)
                handle = os.open(leaf, _FOLDER, dir_fd=above)
            self._folders["/".join(parts[: depth + 1])] = handle
            if len(self._folders) > _MOST_OPEN:
                os.close(self._folders.popitem(last=False)[1])
        return handle


def _write(folder: int, leaf: str, blocks: Iterable[bytes | memoryview], *, replace: bool) -> int:
    handle = _create(folder, leaf, replace=replace)
    size = 0
    try:
        try:
            for block in blocks:
                done = 0
                while done < len(block):  # a signal or the 2 GiB limit can end a write early
                    done += os.write(handle, memoryview(block)[done:] if done else block)
                size += done
        finally:
            os.close(handle)
    except BaseException:
        with suppress(OSError):  # no file is better than half a file
            os.unlink(leaf, dir_fd=folder)
        raise
    return size


def _rename(folder: int, leaf: str, final: str) -> None:
    try:
        os.replace(leaf, final, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:  # for example, a folder has this name
        with suppress(OSError):
            os.unlink(leaf, dir_fd=folder)
        raise


def _create(folder: int, leaf: str, *, replace: bool) -> int:
    """Open a new file. An existing one is deleted, not written into: it may be a link to a file elsewhere."""
    try:
        return os.open(leaf, _FILE, 0o666, dir_fd=folder)
    except FileExistsError:
        if not replace:
            raise
        with suppress(FileNotFoundError):
            os.unlink(leaf, dir_fd=folder)
    return os.open(leaf, _FILE, 0o666, dir_fd=folder)
