"""Named volumes: disks that outlive the boxes that use them. Files here; the guest mounts, the host never does.

``<data>/volumes/NAME/`` (mode 0700) holds

- ``disk.raw``: a sparse ext4 file system, whose root directory is the agent's. Once a box has written to it no
  program of the host reads what is in it: a hostile file system meets the guest's kernel and no other;
- ``volume.json``: its facts;
- ``lock``: flock(2) by who uses it: one box that may write, or any number that only read. QEMU's own lock on the
  disk is the second line, for a box whose process was killed and that still runs;
- ``users/``: who that is, for messages; only the lock counts.

Blocking throughout, quick but for `Volumes.create`.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from voidbox_lab.errors import ProviderError, UserError
from voidbox_lab.images import tools
from voidbox_lab.machines.owner import Owner
from voidbox_lab.machines.spec import Disk
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Name
from voidbox_lab.spec.volume import Mount

MIN_MB, MAX_MB = 16, 1 << 20
"""MiB; below the least, a journal leaves no room for files."""
UID = 1000
"""The agent's uid and gid in every guest; the owner of a new volume's root directory."""
MAKE_S = 120.0
FORGOTTEN_S = 600.0
"""Seconds after which a half-made or half-removed volume counts as left behind."""
# Named one by one, since mke2fs has other defaults on each distribution and a guest's kernel may be an older one.
FEATURES = (
    "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,"
    "extra_isize,metadata_csum"
)
_PART, _GONE = ".new-", ".gone-"
_STARTING = "vb-0000000000"
"""The box of a user record until the box has a name."""
_NAME: TypeAdapter[str] = TypeAdapter(Name)


@dataclass(frozen=True)
class Facts:
    """What ``volume.json`` says."""

    name: str
    size_mb: int
    """As the guest sees the disk, in MiB."""
    created: float
    """Seconds since the epoch."""
    version: int = 1


@dataclass(frozen=True)
class User:
    """A box that uses a volume, and the process that box belongs to."""

    owner: Owner
    read_only: bool

    @property
    def box(self) -> str:
        """The box's id; empty while it has none yet."""
        return "" if self.owner.box == _STARTING else self.owner.box

    def __str__(self) -> str:
        box = f"box {self.box}" if self.box else "a box that starts"
        return f"{box} of process {self.owner.pid}{', which reads it' if self.read_only else ''}"


@dataclass(frozen=True)
class Volume:
    """One volume on disk."""

    path: Path
    facts: Facts

    @property
    def disk(self) -> Path:
        """The raw image."""
        return self.path / "disk.raw"

    @property
    def used(self) -> int:
        """Bytes it takes of the host's disk; 0 once it is gone."""
        with suppress(OSError):
            return self.disk.stat().st_blocks * 512
        return 0

    def users(self) -> list[User]:
        """Who uses it now, as far as can be seen from here: records of the dead are removed on the way."""
        found = []
        for path in sorted((self.path / "users").glob("*.json")):
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                user = User(Owner.from_mapping(data["owner"]), bool(data["read_only"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if user.owner.liveness() in {"dead", "other-boot"}:
                path.unlink(missing_ok=True)
            else:
                found.append(user)
        return found


class Held:
    """The right to use some volumes, until `close`. The order is that of the mounts."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = ExitStack()
        self._records: list[tuple[Path, bool]] = []
        self.mounts: list[Mount] = []
        self.disks: list[Disk] = []

    def add(self, mount: Mount, volume: Volume, lock: int) -> None:
        """`lock` is locked, and this object's from now on."""
        self._stack.callback(os.close, lock)
        record = volume.path / "users" / f"{secrets.token_hex(8)}.json"
        self._stack.callback(record.unlink, missing_ok=True)
        self._records.append((record, mount.read_only))
        self.mounts.append(mount)
        serial = f"volume{len(self.disks)}"
        self.disks.append(Disk(volume.disk, mount.read_only, serial, lasting=True))

    def name(self, box: str = _STARTING) -> None:
        """Let who asks know which box has them."""
        owner = Owner.current(self._settings, box).attributes()
        for path, read_only in self._records:
            part = path.with_suffix(".part")
            part.write_text(json.dumps({"owner": owner, "read_only": read_only}), encoding="utf-8")
            part.replace(path)

    def close(self) -> None:
        """Let others have them. Idempotent."""
        self._stack.close()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Volumes:
    """The volumes of one user. Raises UserError for a name that is none, or that no volume has."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._root = settings.data / "volumes"

    def all(self) -> list[Volume]:
        """Every volume, by name."""
        if not self._root.is_dir():
            return []
        return list(self._readable())

    def find(self, name: str) -> Volume:
        """The volume called `name`.

        Raises:
            UserError: there is none (cause ``no-volume``), or its facts are damaged.
        """
        path = self._path(name)
        try:
            facts = Facts(**json.loads((path / "volume.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise _no_volume(name) from None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"The volume {name!r} cannot be used ({path / 'volume.json'}: {error}); restore that file, or "
                f"remove the volume with `voidbox volume rm {name}`.",
                cause="volume-damaged",
            ) from error
        return Volume(path, facts)

    def create(self, name: str, size_mb: int) -> Volume:
        """Make an empty volume of `size_mb` MiB, which takes room on the disk as it fills.

        Raises:
            UserError: the name is taken or none, the size is out of range or more than the disk has free.
            Unavailable: e2fsprogs are missing.
            ProviderError: mke2fs failed.
        """
        path = self._path(name)
        if not MIN_MB <= size_mb <= MAX_MB:
            raise UserError(f"A volume has {MIN_MB} to {MAX_MB} MB; {size_mb} MB were asked for.")
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._tidy()
        if path.exists():
            raise _taken(name)
        free = shutil.disk_usage(self._root).free >> 20
        if size_mb > free:
            raise UserError(
                f"The disk of {self._root} has {free} MB free, less than the volume's {size_mb} MB; make room, or "
                "make a smaller volume."
            )
        part = self._root / f"{_PART}{secrets.token_hex(8)}"
        part.mkdir(mode=0o700)
        try:
            _make_disk(part / "disk.raw", name, size_mb)
            (part / "users").mkdir(mode=0o700)
            _write_new(part / "lock", b"")
            facts = Facts(name, size_mb, time.time())
            _write_new(part / "volume.json", json.dumps(asdict(facts)).encode())
            try:
                part.rename(path)  # only an empty directory would be replaced
            except OSError as error:
                raise _taken(name) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return Volume(path, facts)

    def remove(self, name: str) -> None:
        """Delete a volume with all that is in it.

        Raises:
            UserError: it is in use (cause ``volume-in-use``), or there is none.
        """
        path = self._path(name)
        if not path.is_dir():
            raise _no_volume(name)
        gone = self._root / f"{_GONE}{secrets.token_hex(8)}"
        try:
            lock = self._locked(name, fcntl.LOCK_EX)
        except FileNotFoundError:  # half of it is there: nobody can use that
            path.rename(gone)
        else:
            path.rename(gone)
            os.close(lock)
        shutil.rmtree(gone)

    def hold(self, mounts: Sequence[Mount]) -> Held:
        """Lock the volumes of `mounts` for a box; all of them or none.

        Raises:
            UserError: there is none of that name, or it is in use (cause ``volume-in-use``).
        """
        with ExitStack() as undo:
            held = Held(self._settings)
            undo.callback(held.close)
            for mount in mounts:
                volume = self.find(mount.volume)
                try:
                    lock = self._locked(mount.volume, fcntl.LOCK_SH if mount.read_only else fcntl.LOCK_EX)
                    held.add(mount, volume, lock)
                    volume.disk.open("rb" if mount.read_only else "r+b").close()
                except OSError as error:
                    raise UserError(
                        f"The volume {mount.volume!r} cannot be used ({error.filename}: {error.strerror}); "
                        f"restore it, or remove it with `voidbox volume rm {mount.volume}`.",
                        cause="volume-damaged",
                    ) from error
            try:
                held.name()
            except OSError as error:
                raise ProviderError(
                    f"{error.filename} cannot be written ({error.strerror}); make room on its disk.", cause="disk"
                ) from error
            undo.pop_all()
            return held

    def _locked(self, name: str, how: int) -> int:
        """A descriptor of the lock of `name`, locked. Raises UserError, OSError."""
        path = self._path(name) / "lock"
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
            # Else it was removed, and perhaps made again, since it was opened.
            if not os.path.samestat(os.fstat(lock), path.stat()):
                raise FileNotFoundError(2, "removed meanwhile", str(path))
        except BlockingIOError:
            os.close(lock)
            who = "; ".join(map(str, self.find(name).users())) or "a process that cannot be seen from here"
            raise UserError(
                f"The volume {name!r} is in use by {who}; wait until that has ended.", cause="volume-in-use"
            ) from None
        except BaseException:
            os.close(lock)
            raise
        return lock

    def _path(self, name: str) -> Path:
        try:
            return self._root / _NAME.validate_python(name)
        except ValidationError as error:
            raise UserError(f"{error.errors()[0]['msg'].removeprefix('Value error, ')}.") from None

    def _readable(self) -> Iterator[Volume]:
        for path in sorted(self._root.iterdir()):
            with suppress(UserError):  # half-made ones, whose names are none
                yield self.find(path.name)

    def _tidy(self) -> None:
        for path in self._root.glob(".*-*"):
            with suppress(OSError):
                if path.name.startswith((_PART, _GONE)) and time.time() - path.stat().st_mtime > FORGOTTEN_S:
                    shutil.rmtree(path)


def _make_disk(path: Path, name: str, size_mb: int) -> None:
    """As any user: mke2fs writes to a file that nobody else wrote to."""
    with path.open("xb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(size_mb << 20)
    # A new file reads as zeros: nothing needs to be written to be zero, and its holes stay.
    extended = f"root_owner={UID}:{UID},lazy_journal_init=1"
    tools.run(
        [
            "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-e", "remount-ro",
            "-L", name[:16], "-O", FEATURES, "-E", extended, path,
        ],
        timeout_s=MAKE_S,
        purpose="a volume is made",
    )  # fmt: skip


def _write_new(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)


def _no_volume(name: str) -> UserError:
    return UserError(
        f"There is no volume {name!r}; make it with `voidbox volume create {name} --size 1G`.", cause="no-volume"
    )


def _taken(name: str) -> UserError:
    return UserError(
        f"There is a volume {name!r} already; use it, choose another name, or remove it with `voidbox volume rm "
        f"{name}`."
    )
