"""References to skills that are elsewhere, in a git repository or an archive, as data. Not for fetching them.

    owner/repo/path@REVISION                             on GitHub
    git+https://host/repo.git@REVISION#subdirectory=path  any git repository (https, ssh, file)
    https://host/skills-1.0.tar.gz#subdirectory=path      an archive, .tar.gz, .tgz or .zip

Who fetches is `voidbox_lab.skills`; it makes itself known here, for `Skill.remote`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal
from urllib.parse import SplitResult, parse_qsl, urlsplit, urlunsplit

from pydantic import Field

from voidbox_lab.errors import UserError
from voidbox_lab.spec.base import Spec
from voidbox_lab.spec.skill import SKILL_FILE, Skill, check_relative

if TYPE_CHECKING:
    Fetch = Callable[["RemoteRef"], Skill]

ARCHIVES = (".tar.gz", ".tgz", ".zip")
GITHUB = "https://github.com"
_GITHUB = re.compile(r"(?P<owner>[A-Za-z0-9][A-Za-z0-9-]{0,38})/(?P<repo>[A-Za-z0-9_.-]{1,100})(/(?P<path>.*))?")
_SCP = re.compile(r"(?P<user>[A-Za-z0-9._-]+)@(?P<host>[A-Za-z0-9.-]+):(?P<path>[^@:]+)(@(?P<revision>.+))?")
_REVISION = re.compile(r"(?!-)(?!.*\.\.)(?!.*//)[A-Za-z0-9._/+-]{1,200}(?<![/.])")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHA256 = re.compile(r"(sha256:)?[0-9a-f]{64}")


class RemoteRef(Spec):
    """Where a skill is; see `parse_remote`."""

    form: Literal["git", "archive"]
    source: str = Field(max_length=1000)
    """A URL without credentials."""
    path: str = ""
    """The skill's directory, or its Markdown file, in it; nothing: its root."""
    revision: str | None = None
    """A commit, tag or branch, or of an archive ``sha256:…``; None: whatever is there now."""

    @property
    def pinned(self) -> bool:
        """Whether it is the same wherever and whenever it is fetched."""
        if self.revision is None:
            return False
        return bool((_SHA256 if self.form == "archive" else _COMMIT).fullmatch(self.revision))

    def __str__(self) -> str:
        return (
            self.source + (f" {self.path}" if self.path else "") + (f" @{self.revision}" if self.revision else "")
        )


def parse_remote(text: str, *, path: str | None = None, revision: str | None = None) -> RemoteRef:
    """The reference that `text` is, in one of the forms of this module's docstring; also ``git@host:repo.git``,
    and a directory's address on GitHub as a browser shows it. `path` and `revision` instead of what the text says.

    Raises:
        UserError: it is none of these, or has a password or a query in it, which must not be stored.
    """
    found = _read(text.strip())
    path = _path(found.path if path is None else path)
    revision = found.revision if revision is None else revision
    if revision is not None:
        revision = _revision(found.form, revision)
    return RemoteRef(form=found.form, source=found.source, path=path, revision=revision)


def _read(text: str) -> RemoteRef:
    if re.search(r"[\x00-\x20]", text) or len(text) > 900:
        raise _refusal(text)
    if scp := _SCP.fullmatch(text.removeprefix("git+")):
        source = f"ssh://{scp['user']}@{scp['host']}/{scp['path'].lstrip('/')}"
        return RemoteRef(form="git", source=source, revision=scp["revision"])
    if "://" not in text:
        place, at, revision = text.partition("@")
        on_github = _GITHUB.fullmatch(place)
        if on_github is None or (at and not revision):
            raise _refusal(text)
        source = f"{GITHUB}/{on_github['owner']}/{on_github['repo'].removesuffix('.git')}"
        return RemoteRef(form="git", source=source, path=on_github["path"] or "", revision=revision or None)
    return _url(text)


def _url(text: str) -> RemoteRef:
    explicit = text.startswith("git+")
    try:
        url = urlsplit(text.removeprefix("git+"))
        _ = url.port
    except ValueError:
        raise _refusal(text) from None
    _check_secrets(url)
    told = dict(parse_qsl(url.fragment))
    if (url.fragment and not told) or told.keys() - {"subdirectory", "sha256"}:
        raise UserError(f"{_shown(url)}: after '#' stands subdirectory=PATH or, for an archive, sha256=HEX.")
    path, at, revision = url.path.rpartition("@")
    if not at:
        path, revision = url.path, ""
    bare = urlunsplit((url.scheme, url.netloc, path, "", ""))
    if not explicit and url.scheme in {"http", "https"} and url.path.endswith(ARCHIVES):
        bare = urlunsplit((url.scheme, url.netloc, url.path, "", ""))
        _check_scheme(url, {"https"})
        return RemoteRef(
            form="archive", source=bare, path=told.get("subdirectory", ""), revision=told.get("sha256")
        )
    if not explicit and (page := re.fullmatch(r"/([^/]+/[^/]+)/(?:tree|blob)/([^/]+)(/.*)?", path)):
        if url.hostname != "github.com":
            raise _refusal(text)
        return RemoteRef(
            form="git", source=f"{GITHUB}/{page[1]}", path=(page[3] or "").strip("/"), revision=page[2]
        )
    if not explicit and url.hostname != "github.com" and not path.endswith(".git") and url.scheme != "ssh":
        raise _refusal(text)
    _check_scheme(url, {"https", "ssh", "file"})
    return RemoteRef(form="git", source=bare, path=told.get("subdirectory", ""), revision=revision or None)


def _check_secrets(url: SplitResult) -> None:
    if url.password is not None or (url.username is not None and url.scheme != "ssh"):
        raise UserError(
            f"The URL {_shown(url)} has credentials in it, which would be stored with the run; leave them out, "
            "and use ssh for what is not public."
        )
    if url.query:
        raise UserError(f"The URL {_shown(url)} has a query, which may be a secret; give a URL without one.")


def _check_scheme(url: SplitResult, usual: set[str]) -> None:
    """Without encryption only from this machine."""
    if url.scheme not in usual and not (url.scheme in {"http", "git"} and is_loopback(url.hostname)):
        raise UserError(f"The URL {_shown(url)} is not {', '.join(sorted(usual))}; skills come over nothing else.")
    if url.scheme != "file" and not url.hostname:
        raise UserError(f"The URL {_shown(url)} names no host.")


def is_loopback(host: str | None) -> bool:
    """Whether `host` is this machine, by its name or address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _path(path: str) -> str:
    path = path.strip("/")
    path = path.removesuffix(SKILL_FILE).rstrip("/") if path.split("/")[-1] == SKILL_FILE else path
    try:
        return check_relative(path) if path else ""
    except ValueError as e:
        raise UserError(f"The remote skill's path: {e}.") from e


def _revision(form: str, revision: str) -> str:
    if form == "archive":
        if not _SHA256.fullmatch(revision.lower()):
            raise UserError(f"An archive's revision is its digest, sha256:HEX; {revision[:80]!r} is not.")
        return f"sha256:{revision.lower().removeprefix('sha256:')}"
    if not _REVISION.fullmatch(revision):
        raise UserError(f"{revision[:80]!r} is not a git revision; give a commit, a tag or a branch.")
    return revision


def _shown(url: SplitResult) -> str:
    host = url.netloc.rpartition("@")[2]
    return f"{url.scheme}://{host}{url.path}"[:200]


def _refusal(text: str) -> UserError:
    shown = re.sub(r"//[^/@]*@", "//", text)[:120]
    return UserError(
        f"{shown!r} is not a remote skill; write owner/repo/path@REVISION, git+https://HOST/REPO.git@REVISION, or "
        "the https URL of a .tar.gz or .zip."
    )


class _Fetcher:
    fetch: Fetch | None = None


def provide(fetch: Fetch) -> None:
    """Have `fetched` use `fetch`."""
    _Fetcher.fetch = staticmethod(fetch)


def fetched(ref: RemoteRef) -> Skill:
    """The skill at `ref`, by whoever was provided.

    Raises:
        UserError: there is none, or it is not a skill.
        ProviderError: it cannot be reached.
    """
    if _Fetcher.fetch is None:
        raise UserError("Nothing here fetches remote skills; import voidbox_lab.skills first.")
    return _Fetcher.fetch(ref)
