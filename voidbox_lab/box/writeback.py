"""What a box made of a folder of the host, brought back: first beside the folder's files, then into their places.

A guest says what is in the folder now, and it is hostile: nothing that it says leads out of the folder, whatever
links are there, nothing gets a set-uid bit, and nothing is overwritten that somebody else changed meanwhile.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat as st
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from voidbox_lab.box.bundles import Packed
from voidbox_lab.box.hostfolder import OWN, Contents, Found, HostFolder
from voidbox_lab.errors import ProviderError, UserError

MAX_NAMED = 5
"""Conflicts that a message names."""
MAX_LINKS = 40
"""Links on the way to a file; the kernel opens nothing behind more (path_resolution(7))."""


class Staging:
    """A private directory in the folder that holds what came back. Blocking; close it in any case.

    In the folder itself: it is what the user has opened to the box, and a rename within it is atomic.
    """

    def __init__(self, folder: HostFolder, before: Contents) -> None:
        """Make it.

        Args:
            before: what the box was given.

        Raises:
            UserError: the folder cannot be written (cause ``mount``).
        """
        self._folder, self._before = folder, before
        self.after = Contents()
        """What the box has there now; whole once all was taken."""
        self._name = f"{OWN}{secrets.token_hex(6)}"
        try:
            os.mkdir(self._name, 0o700, dir_fd=folder.fd)
            self._fd = os.open(self._name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder.fd)
        except OSError as e:
            raise self._refused(e) from None
        self._staged: dict[str, str] = {}
        self._file: int = -1
        self._sha: Any = None

    def close(self) -> None:
        """Remove it, and what is in it still."""
        if self._file >= 0:
            os.close(self._file)
        os.close(self._fd)
        # By descriptor and without following links, and in any case our own directory.
        shutil.rmtree(self._name, ignore_errors=True, dir_fd=self._folder.fd)

    def take(self, item: Packed) -> None:
        """A piece of what the box has, in order.

        Raises:
            UserError: the disk takes no more (cause ``mount``).
            ProviderError: the guest speaks of a file that it was not given.
        """
        if item.kind == "dir":
            self.after.entries[item.path] = Found("dir")
        elif item.kind == "link":
            self.after.entries[item.path] = Found("link", target=item.data.decode())
        elif item.kind == "same":
            found = self._before.entries.get(item.path)
            if found is None or found.kind != "file":
                raise ProviderError("The guest kept a file that it was not given.", cause="protocol")
            self.after.entries[item.path] = found
        else:
            try:
                self._write(item)
            except OSError as e:
                raise self._refused(e) from None

    def _write(self, item: Packed) -> None:
        if self._file < 0:
            self._staged[item.path] = name = str(len(self._staged))
            # The process's umask applies, as to anything that the user makes.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file, self._sha = os.open(name, flags, 0o666, dir_fd=self._fd), hashlib.sha256()
        self._sha.update(item.data)
        rest = item.data
        while rest:
            rest = rest[os.write(self._file, rest) :]
        if item.last:
            size = os.fstat(self._file).st_size
            os.close(self._file)
            self._file = -1
            found = Found("file", f"sha256:{self._sha.hexdigest()}", size, item.executable)
            self.after.entries[item.path] = found

    def changed(self) -> list[str]:
        """Paths that are new or other than they were, each directory before what is in it."""
        return [path for path, found in self.after.entries.items() if self._before.entries.get(path) != found]

    def apply(self, aside: str) -> None:
        """Put everything into its place, and remove what the box removed.

        If what the box changed does not go together with what is on the host now, nothing is put there: what the
        box made is in the new directory `aside` of the folder then, as is the rest of it if writing fails
        half-way. What only one of them changed is no conflict, so that two boxes may work on one folder.

        Raises:
            UserError: there was such a conflict (cause ``mount-conflict``); or writing failed (cause ``mount``).
        """
        before, after = self._before.entries, self.after.entries
        changed = self.changed()
        removed = [path for path in before if path not in after]
        becoming = {p for p in changed if p in before and before[p].kind != after[p].kind}
        if conflicts := self._conflicts(changed, removed, becoming):
            try:
                raise self._conflict(conflicts, self._aside(changed, aside))
            except OSError as e:
                raise self._refused(e) from None
        left = deque(changed)
        try:
            # What becomes something else is removed first, from the leaves on.
            for path in sorted((*removed, *becoming), reverse=True):
                self._remove(path)
            while left:
                self._place(self._folder, left[0])
                left.popleft()
        except OSError as e:
            raise self._stopped(e, left, aside) from None

    def _conflicts(self, changed: Sequence[str], removed: Sequence[str], becoming: set[str]) -> list[str]:
        """Where something else is on the host now than the box was given, and was to have."""
        before, after, new = self._before.entries, self.after.entries, set(changed)
        found = [path for path in (*changed, *removed) if self._is_other(path, new, becoming)]
        for path in (*becoming, *removed):
            goes = path in becoming or _above(path) & becoming
            if goes and before[path].kind == "dir" and self._holds_more(path):
                found.append(path)
        found += [path for path in changed if after[path].kind == "link" and self._leads_out(path, new)]
        return list(dict.fromkeys(found))

    def _is_other(self, path: str, changed: set[str], becoming: set[str]) -> bool:
        """Whether the host has at `path` neither what it had nor what it is to have, or no place for it."""
        before, after, look = self._before.entries, self.after.entries, self._folder.look
        if path in before:
            return look(path) not in (before[path], after.get(path))
        if _above(path) & becoming:
            return False  # below what was no directory there was nothing; whether it is still none is asked there
        parent = path.rpartition("/")[0]
        if parent and parent not in changed and look(parent) != Found("dir"):
            return True
        return look(path) not in (None, after[path])

    def _holds_more(self, path: str) -> bool:
        """Whether the directory at `path` on the host has something that the box was not given."""
        try:
            with self._folder.directory(path) as fd, os.scandir(fd) as scan:
                return any(f"{path}/{item.name}" not in self._before.entries for item in scan)
        except OSError:
            return False  # it is no directory any more

    def _leads_out(self, path: str, changed: set[str]) -> bool:
        """Whether the link that the box has at `path` leads out of the folder once all is in its place: through a
        link of the host's that the box was not given."""
        at, rest = path.split("/"), deque[str]()
        links = 0
        while True:
            here = "/".join(at)
            found = self.after.entries[here] if here in changed else self._folder.link(here)
            if found is not None and found.kind == "link":
                links += 1
                if links > MAX_LINKS:
                    return False
                if found.target.startswith("/"):
                    return True
                at.pop()
                rest.extendleft(reversed(found.target.split("/")))
            while rest and rest[0] in ("", ".", ".."):
                if rest.popleft() == "..":
                    if not at:
                        return True
                    at.pop()
            if not rest:
                return False
            at.append(rest.popleft())

    def _remove(self, path: str) -> None:
        parent, _, name = path.rpartition("/")
        with suppress(FileNotFoundError), self._folder.directory(parent) as fd:
            if not st.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
                os.unlink(name, dir_fd=fd)
                return
            # One that is not empty holds what the box was not given.
            with suppress(OSError):
                os.rmdir(name, dir_fd=fd)

    def _place(self, root: HostFolder, path: str) -> None:
        found = self.after.entries[path]
        parent, _, name = path.rpartition("/")
        with root.directory(parent) as fd:
            if found.kind == "dir":
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=fd)
                return
            if found.kind == "link":
                with suppress(FileNotFoundError):  # one that found no place
                    os.unlink("link", dir_fd=self._fd)
                os.symlink(found.target, "link", dir_fd=self._fd)
                os.rename("link", name, src_dir_fd=self._fd, dst_dir_fd=fd)
                return
            self._dress(self._staged[path], fd, name, found)
            # Replaces a link, does not follow it (rename(2)).
            os.rename(self._staged[path], name, src_dir_fd=self._fd, dst_dir_fd=fd)

    def _dress(self, staged: str, fd: int, name: str, found: Found) -> None:
        """Rights and owner of the file that is replaced, or of a new one; of the guest's mode only whether it may
        be executed."""
        info = os.stat(staged, dir_fd=self._fd, follow_symlinks=False)
        mode, owner = info.st_mode & 0o777, os.fstat(self._folder.fd)
        with suppress(FileNotFoundError):
            old = os.lstat(name, dir_fd=fd)
            if st.S_ISREG(old.st_mode):
                mode, owner = old.st_mode & 0o777, old
        mode = mode | (mode & 0o444) >> 2 if found.executable else mode & ~0o111
        file = os.open(staged, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._fd)
        try:
            if os.geteuid() == 0:
                os.fchown(file, owner.st_uid, owner.st_gid)
            os.fchmod(file, mode)
        finally:
            os.close(file)

    def _aside(self, changed: Iterable[str], name: str) -> str:
        """What the box changed, in a new directory of the folder; its path. Raises OSError."""
        for n in range(1, 100):
            chosen = name if n == 1 else f"{name}-{n}"
            try:
                os.mkdir(chosen, dir_fd=self._folder.fd)
                break
            except FileExistsError:
                continue
        place = f"{self._folder.path.rstrip('/')}/{chosen}"
        opened = os.open(chosen, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._folder.fd)
        with HostFolder(place, opened) as root:
            for path in changed:
                for directory in sorted(_above(path)):
                    parent, _, name = directory.rpartition("/")
                    with root.directory(parent) as fd, suppress(FileExistsError):
                        os.mkdir(name, dir_fd=fd)
                self._place(root, path)
        return place

    def _conflict(self, paths: list[str], place: str) -> UserError:
        named = ", ".join(paths[:MAX_NAMED]) + (f" and {len(paths) - MAX_NAMED} more" if paths[MAX_NAMED:] else "")
        return UserError(
            f"What the box changed in the folder {self._folder.path} does not go together with what is there now "
            f"({named}), so nothing was written; what the box made is in {place}.",
            cause="mount-conflict",
        )

    def _stopped(self, error: OSError, left: Iterable[str], aside: str) -> UserError:
        """Writing has ended half-way."""
        rest = "is lost"
        with suppress(OSError):
            rest = f"is in {self._aside(left, aside)}"
        return UserError(
            f"Writing to the folder {self._folder.path} ended half-way ({error.strerror}): a part of what the box "
            f"changed is there now, and the rest {rest}.",
            cause="mount",
        )

    def _refused(self, error: OSError) -> UserError:
        return UserError(
            f"The folder {self._folder.path} cannot be written ({error.strerror}); let the daemon's user write "
            "there, or mount it read-only.",
            cause="mount",
        )


def _above(path: str) -> set[str]:
    """The directories that `path` is in."""
    parts = path.split("/")
    return {"/".join(parts[:n]) for n in range(1, len(parts))}
