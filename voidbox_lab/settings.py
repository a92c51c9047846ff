"""Where things live and what the environment asks for. Not for anything a run's record must hold.

Four roots, each with one job:

- `cache`: images, package downloads, probe verdicts; may be deleted at any time;
- `data`: the store of runs and artifacts; precious;
- `runtime`: sockets and per-box directories; dies with the login session;
- `shm`: guest memory of templates and clones; a tmpfs.

`VOIDBOX_HOME` puts cache and data under one directory (the tests do) and gives the others names of its own:
sockets stay in a short path: a UNIX socket's name holds at most 107 bytes (unix(7)).
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

import platformdirs

from voidbox_lab.errors import UserError

APP = "voidbox-lab"
AccelChoice = Literal["auto", "kvm", "tcg"]
VsockChoice = Literal["auto", "kernel", "user"]
WarmChoice = Literal["auto", "off"]
STORE_URLS = ("valkey://", "valkeys://", "redis://", "rediss://", "unix://")
"""How the URL of a Valkey server begins; with an ``s`` by TLS, with ``unix`` through a socket."""


@dataclass(frozen=True)
class Address:
    """Where a TCP listener is asked to be."""

    host: str
    port: int
    """0: any that is free."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, source: str = "VOIDBOX_TCP") -> Address:
        """``HOST:PORT``, ``[IPv6]:PORT``, or a port alone, which is one of 127.0.0.1.

        Raises:
            UserError: it is none of these; `source` says where it was written.
        """
        found = _ADDRESS.fullmatch(text)
        if not found or int(found["port"]) > 65535:
            raise UserError(f"{source}={text!r} is not HOST:PORT with a port up to 65535; mend or unset it.")
        return cls(found["six"] or found["host"] or "127.0.0.1", int(found["port"]))


_ADDRESS = re.compile(
    r"(?:(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]{1,253}))?:)?(?P<port>[0-9]{1,5})"
)


@dataclass(frozen=True)
class Settings:
    """Resolved settings of this process; build with `Settings.from_env`."""

    cache: Path
    data: Path
    runtime: Path
    shm: Path
    libvirt_uri: str | None = None
    """`VOIDBOX_LIBVIRT_URI`; None means: chosen by situation."""
    accel: AccelChoice = "auto"
    """`VOIDBOX_ACCEL`."""
    vsock: VsockChoice = "auto"
    """`VOIDBOX_VSOCK`."""
    warm: WarmChoice = "auto"
    """`VOIDBOX_WARM`: ``auto`` starts boxes as clones of a saved template where that works, ``off`` boots each."""
    spares: int = 4
    """`VOIDBOX_SPARES`: most clones kept ready for the next stage, per process; 0 keeps none."""
    templates_mb: int = 4096
    """`VOIDBOX_TEMPLATES_MB`: megabytes of templates kept on disk; the least recently used go."""
    fresh: bool = False
    """`VOIDBOX_FRESH`: runs take no earlier results from the stage cache unless they say otherwise."""
    store: str = field(default="sqlite", repr=False)
    """`VOIDBOX_STORE`: ``sqlite``, ``directory`` or a server's URL, whose password is for nobody to see."""
    scheduler: str | None = None
    """`VOIDBOX_EXECUTOR`: the address of the Dask scheduler whose workers run stages; None: this host does."""
    tcp: Address | None = None
    """`VOIDBOX_TCP`: where a daemon that is started listens besides its UNIX socket; None: nowhere."""
    daemon: str | None = None
    """`VOIDBOX_DAEMON`: the URL of a daemon to use over TCP; None: this user's own, on its UNIX socket."""
    token: str | None = field(default=None, repr=False)
    """`VOIDBOX_TOKEN`: what `daemon` asks for."""
    token_from: Path | None = None
    """`VOIDBOX_TOKEN_FILE`: a private file that holds it."""
    otlp: str | None = field(default=None, repr=False)
    """`VOIDBOX_OTLP_ENDPOINT`: the URL of an OTLP/HTTP collector, instead of OpenTelemetry's own variables."""
    insecure_registries: tuple[str, ...] = ()
    """`VOIDBOX_INSECURE_REGISTRIES`: registries, as ``HOST`` or ``HOST:PORT``, that are spoken to without TLS, or
    with certificates that nobody vouches for. Those of this machine always are."""
    boot_log: Path | None = None
    """`VOIDBOX_BOOT_LOG`: every box that boots appends a line of JSON there, so that a test run or an
    administrator can count what really booted."""

    @classmethod
    def from_env(cls, env: dict[str, str] | None = None) -> Settings:
        """Settings from `env` (default: the process environment).

        Raises:
            UserError: a variable has a value that is not one of its choices.
        """
        env = dict(os.environ) if env is None else env
        home = env.get("VOIDBOX_HOME")
        base = _runtime_base(env)
        # Containers and users have one /dev/shm each or share it by name; what else the runtime directory is
        # chosen by must tell apart here as well, since boxes in it are swept by their directory.
        shm = _shm_base(base)
        if home:
            root = Path(home).expanduser().absolute()
            digest = hashlib.sha256(str(root).encode()).hexdigest()[:8]
            cache, data = root / "cache", root / "data"
            runtime, shm = base / digest, shm / digest
        else:
            cache = Path(platformdirs.user_cache_dir(APP))
            data = Path(platformdirs.user_data_dir(APP))
            runtime = base
        # One cache may serve many homes: CI and tests share the built image.
        if env.get("VOIDBOX_CACHE"):
            cache = Path(env["VOIDBOX_CACHE"]).expanduser().absolute()
        return cls(
            cache=cache,
            data=data,
            runtime=runtime,
            shm=shm,
            libvirt_uri=env.get("VOIDBOX_LIBVIRT_URI") or None,
            accel=_choice(env, "VOIDBOX_ACCEL", get_args(AccelChoice)),
            vsock=_choice(env, "VOIDBOX_VSOCK", get_args(VsockChoice)),
            warm=_choice(env, "VOIDBOX_WARM", get_args(WarmChoice)),
            spares=_count(env, "VOIDBOX_SPARES", 4),
            templates_mb=_count(env, "VOIDBOX_TEMPLATES_MB", 4096),
            fresh=_switch(env, "VOIDBOX_FRESH"),
            store=_store(env),
            scheduler=_scheduler(env),
            tcp=Address.parse(env["VOIDBOX_TCP"]) if env.get("VOIDBOX_TCP") else None,
            daemon=_url(env["VOIDBOX_DAEMON"]) if env.get("VOIDBOX_DAEMON") else None,
            token=env.get("VOIDBOX_TOKEN") or None,
            token_from=Path(env["VOIDBOX_TOKEN_FILE"]).expanduser() if env.get("VOIDBOX_TOKEN_FILE") else None,
            otlp=_otlp(env["VOIDBOX_OTLP_ENDPOINT"]) if env.get("VOIDBOX_OTLP_ENDPOINT") else None,
            insecure_registries=_registries(env),
            boot_log=Path(env["VOIDBOX_BOOT_LOG"]) if env.get("VOIDBOX_BOOT_LOG") else None,
        )

    @property
    def socket(self) -> Path:
        """The daemon's UNIX socket."""
        return self.runtime / "daemon.sock"

    @property
    def token_file(self) -> Path:
        """What a TCP client of this user's daemon must know; made at first use."""
        return self.data / "token"

    def prepare(self) -> Settings:
        """Create the roots, private to this user, and return self.

        Raises:
            UserError: a root cannot be made or written, or the runtime directory belongs to somebody else
                or is open to others.
        """
        _make(self.cache, 0o777, "VOIDBOX_HOME")
        _make(self.data, 0o700, "VOIDBOX_HOME")
        for path in (self.runtime.parent, self.runtime, self.shm.parent, self.shm):
            # A system-provided parent such as /run/user/1000 exists already and is checked all the same.
            _make(path, 0o700, "XDG_RUNTIME_DIR")
        # Not the cache: a built one may be shared, and then it is read only.
        for path, variable in ((self.data, "VOIDBOX_HOME"), (self.runtime, "XDG_RUNTIME_DIR")):
            if not os.access(path, os.W_OK | os.X_OK):
                raise _unwritable(path, "it is read-only for this user", variable)
        # Prompts and answers are in there; one that was made open is closed.
        _close(self.data, "VOIDBOX_HOME")
        for path in (self.runtime, self.shm):
            info = path.lstat()
            if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
                raise UserError(
                    f"The directory {path} is not a private directory of this user; "
                    "remove it, or set XDG_RUNTIME_DIR to a directory with mode 0700."
                )
        return self


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, is this machine's own; names but ``localhost`` are not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_token(path: Path) -> str:
    """The token in `path`.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is not a plain file that this user alone may read, or holds no token. A file that was
            open is not closed and used: somebody may have read it.
    """
    try:
        # Not followed, not waited for: a link or a FIFO is somebody's trick.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as e:
        raise UserError(f"The token file {path} cannot be read ({e.strerror}); remove it or mend it.") from e
    with os.fdopen(handle, "rb") as file:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
            raise UserError(
                f"The token file {path} is not a file with mode 0600 of this user, so others may know it; "
                "remove it, restart the daemon, and use the new one."
            )
        text = file.read(1024).decode("ascii", "replace").strip()
    return checked_token(text, f"The token file {path}")


def checked_token(text: str, source: str) -> str:
    """`text` if it can be a token; `UserError` naming `source`, and not the text, if not."""
    if not _TOKEN.fullmatch(text):
        raise UserError(f"{source} holds no token of 32 to 256 letters, digits, '-' and '_'; mend or remove it.")
    return text


_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,256}")


def _url(text: str) -> str:
    """`VOIDBOX_DAEMON` as ``scheme://host[:port]``; the message does not repeat it: it may hold a password."""
    wrong = UserError("VOIDBOX_DAEMON is not http://HOST:PORT or https://HOST[:PORT] alone; mend or unset it.")
    try:
        url = urlsplit(text.strip())
        port = url.port
    except ValueError:
        raise wrong from None
    if url.scheme not in {"http", "https"} or not url.hostname or "@" in url.netloc:
        raise wrong
    if url.path not in {"", "/"} or url.query or url.fragment or port == 0:
        raise wrong
    return f"{url.scheme}://{url.netloc}"


def _otlp(text: str) -> str:
    """`VOIDBOX_OTLP_ENDPOINT` without a final slash; the message does not repeat it: it may hold a password."""
    try:
        url = urlsplit(text.strip())
        good = (
            url.scheme in {"http", "https"} and url.hostname and url.port != 0 and not (url.query or url.fragment)
        )
    except ValueError:
        good = False
    if not good:
        raise UserError(
            "VOIDBOX_OTLP_ENDPOINT is not the http:// or https:// URL of a collector, such as "
            "http://127.0.0.1:4318; mend or unset it."
        )
    return text.strip().rstrip("/")


def _make(path: Path, mode: int, variable: str) -> None:
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as e:
        raise _unwritable(path, e.strerror or str(e), variable) from e


def _close(path: Path, variable: str) -> None:
    try:
        if path.stat().st_mode & 0o077:
            path.chmod(0o700)
    except OSError as e:
        raise _unwritable(path, e.strerror or str(e), variable) from e


def _unwritable(path: Path, why: str, variable: str) -> UserError:
    return UserError(
        f"The directory {path} cannot be written ({why}); make it writable, or set {variable} to one that is.",
        cause="unwritable",
    )


def _runtime_base(env: dict[str, str]) -> Path:
    xdg = env.get("XDG_RUNTIME_DIR")
    if xdg and len(xdg) < 40 and os.access(xdg, os.W_OK):
        return Path(xdg) / "voidbox"
    return Path(tempfile.gettempdir() if len(tempfile.gettempdir()) < 20 else "/tmp") / f"voidbox-{os.getuid()}"  # noqa: S108 - ownership and mode are checked in prepare()


def _shm_base(runtime: Path) -> Path:
    """A directory in /dev/shm that belongs to `runtime`, a runtime directory; below it where there is none."""
    shm = Path("/dev/shm")  # noqa: S108 - ownership and mode are checked in prepare()
    if not os.access(shm, os.W_OK | os.X_OK):
        return runtime / "shm"
    return shm / f"voidbox-{os.getuid()}-{hashlib.sha256(str(runtime).encode()).hexdigest()[:8]}"


def _switch(env: dict[str, str], name: str) -> bool:
    value = env.get(name, "").lower()
    if value not in {"", "0", "1", "false", "true"}:
        raise UserError(f"{name}={value!r} is neither 0 nor 1; set one of them or unset it.")
    return value in {"1", "true"}


def _count(env: dict[str, str], name: str, default: int) -> int:
    text = env.get(name) or str(default)
    if not text.isdecimal() or len(text) > 7:
        raise UserError(f"{name}={text!r} is not a whole number; set one or unset it.")
    return int(text)


def _scheduler(env: dict[str, str]) -> str | None:
    value = env.get("VOIDBOX_EXECUTOR") or "local"
    if value == "local":
        return None
    if not _SCHEDULER.fullmatch(value):
        raise UserError(
            f"VOIDBOX_EXECUTOR={value[:200]!r} is neither local nor dask:tcp://HOST:PORT (or "
            "dask:tls://HOST:PORT); set one of them or unset it."
        )
    return value.removeprefix("dask:")


_SCHEDULER = re.compile(r"dask:(?:tcp|tls)://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253}):[0-9]{1,5}")


def _registries(env: dict[str, str]) -> tuple[str, ...]:
    found = tuple(filter(None, (word.strip() for word in env.get("VOIDBOX_INSECURE_REGISTRIES", "").split(","))))
    for name in found:
        if not _REGISTRY.fullmatch(name):
            raise UserError(
                f"VOIDBOX_INSECURE_REGISTRIES names {name[:100]!r}, which is no HOST or HOST:PORT; mend it."
            )
    return found


_REGISTRY = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}(:[0-9]{1,5})?")


def _store(env: dict[str, str]) -> str:
    value = env.get("VOIDBOX_STORE") or "sqlite"
    if value not in {"sqlite", "directory"} and not value.startswith(STORE_URLS):
        # Not repeated: a URL with a slip in its scheme may hold a password.
        raise UserError(
            "VOIDBOX_STORE is none of sqlite, directory and a URL that begins with "
            f"{', '.join(STORE_URLS)}; set one of them or unset it."
        )
    return value


def _choice(env: dict[str, str], name: str, choices: tuple[str, ...]) -> Literal["auto"]:
    value = env.get(name, "auto")
    if value not in choices:
        raise UserError(f"{name}={value!r} is not one of {', '.join(choices)}; set one of them or unset it.")
    return value  # type: ignore[return-value]  # membership was just checked; each caller has its own Literal
