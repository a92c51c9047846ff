"""A skill's files from a git repository, by the ``git`` program: one commit's objects, read as they are.

Nothing of the repository is trusted: no working tree is made, so no hooks, filters, symbolic links, submodules or
LFS of it count; and nothing of this user's git configuration, so no helpers or rewritten URLs (ssh's own does
apply). git(1), gitprotocol-v2(5), git-cat-file(1).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from voidbox_lab.errors import LimitExceeded, ProviderError, Unavailable, UserError
from voidbox_lab.skills.deadline import Deadline
from voidbox_lab.skills.tree import MAX_ENTRIES, Listed, chosen
from voidbox_lab.spec.remote import RemoteRef

MAX_FETCH = 512 << 20
"""Bytes that a fetch may leave on disk, about: looked at twice a second."""
MAX_ANSWER = 128 << 20
"""Bytes of a command's standard output."""
UNADVERTISED = "git-unadvertised"
"""The cause where a server gives no commit that none of its branches and tags is at."""
PROTOCOLS = "https:ssh:file"
"""GIT_ALLOW_PROTOCOL; http and git besides where the host is this machine."""
PASSED_ON = (
    *("PATH", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO", "LANG", "TMPDIR"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
)
_MISSING = re.compile(
    r"repository .*not found|not appear to be a git repository|repository not exported|could not read Username",
    re.IGNORECASE,
)
"""How git and its servers say that there is no such repository, or none that is public: some sites ask for a name
instead, so as not to tell which."""
_CONFIG = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.symlinks": "false",
    "fetch.fsckObjects": "true",
    "fetch.recurseSubmodules": "false",
    "transfer.bundleURI": "false",
    "protocol.version": "2",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "30",
}


def commit_of(ref: RemoteRef, deadline: Deadline | None = None) -> str:
    """The commit that a branch, a tag, or nothing (the default branch) stands for now.

    Raises:
        UserError: there is no such revision or repository.
        ProviderError: the repository cannot be reached.
        LimitExceeded: `deadline` is over, or else two minutes.
    """
    if ref.pinned and ref.revision:
        return ref.revision
    name = ref.revision
    patterns = [f"refs/tags/{name}^{{}}", f"refs/tags/{name}", f"refs/heads/{name}"] if name else ["HEAD"]
    with tempfile.TemporaryDirectory(prefix="voidbox-git-") as home:
        git = partial(_git, Path(home), ref, deadline or Deadline(ref.source))
        answer = git(["ls-remote", "--", ref.source, *patterns])
    found: dict[str, str] = {}
    for line in answer.decode(errors="replace").splitlines():
        commit, _, full = line.partition("\t")
        found[full] = commit
    for pattern in patterns:
        if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit := found.get(pattern, "")):
            return commit
    advice = " (a commit is given in full)" if name and re.fullmatch(r"[0-9a-f]{4,39}", name) else ""
    raise UserError(f"{ref.source} has no {f'branch or tag {name!r}' if name else 'commit'}{advice}; check it.")


def files_at(ref: RemoteRef, commit: str, deadline: Deadline) -> dict[str, tuple[bytes, bool]]:
    """The files of the skill at `ref` in `commit`: path in the skill to bytes, and whether executable.

    Raises:
        UserError: there is no such repository or commit, or no skill in it.
        ProviderError: the repository cannot be reached.
        LimitExceeded: it is too large, or `deadline` is over.
    """
    with tempfile.TemporaryDirectory(prefix="voidbox-git-") as home:
        git = partial(_git, Path(home), ref, deadline)
        kind = "sha256" if len(commit) == 64 else "sha1"
        git(["init", "--quiet", "--bare", f"--object-format={kind}", "--template=", "r"])
        _fetch(git, ref, commit)
        where = f"{ref.source} at {commit[:12]}"
        listing = git([*_IN, "ls-tree", "-r", "-l", "-z", "--full-tree", commit])
        found = chosen(_listed(listing), ref.path, where)
        wanted = "".join(f"{entry.key}\n" for entry in found.values()).encode()
        answer = git([*_IN, "cat-file", "--batch"], wanted)
    files, at = {}, 0
    for name, entry in found.items():
        head, _, _ = answer[at : at + 200].partition(b"\n")
        if head != f"{entry.key} blob {entry.size}".encode():
            raise ProviderError(f"git cannot read {name} of {where}; the repository may be damaged.")
        at += len(head) + 1
        files[name] = answer[at : at + entry.size], entry.executable
        at += entry.size + 1
    return files


_IN = ("--git-dir=r",)


def _fetch(git: Callable[[Sequence[str]], bytes], ref: RemoteRef, commit: str) -> None:
    """Get `commit` alone; from a server that does not give away what it does not name, all that it names."""
    fetch = [*_IN, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance"]
    try:
        git([*fetch, "--depth=1", "--", ref.source, commit])
    except ProviderError as e:
        if e.cause != UNADVERTISED:
            raise
        git([*fetch, "--", ref.source, "refs/heads/*:refs/heads/*", "refs/tags/*:refs/tags/*"])
    try:
        git([*_IN, "cat-file", "-e", f"{commit}^{{commit}}"])
    except ProviderError:
        raise UserError(f"{ref.source} has no commit {commit}; check the revision.") from None


def _listed(listing: bytes) -> Iterator[Listed]:
    """What ``ls-tree -rlz`` tells of regular files: symbolic links and submodules are left out."""
    lines = listing.split(b"\0", MAX_ENTRIES + 1)
    if len(lines) > MAX_ENTRIES:
        raise LimitExceeded(f"The repository has more than {MAX_ENTRIES} files.", limit="files")
    for line in lines:
        facts, _, path = line.partition(b"\t")
        if facts.startswith((b"100644 blob", b"100755 blob", b"100664 blob")):
            mode, _, key, size = facts.split()
            yield Listed(os.fsdecode(path), int(size), mode == b"100755", key.decode())


def _git(base: Path, ref: RemoteRef, deadline: Deadline, words: Sequence[str], given: bytes = b"") -> bytes:
    """Standard output of ``git WORDS`` in the empty directory `base`."""
    deadline.check()
    program = shutil.which("git")
    if program is None:
        raise Unavailable("Remote skills need git; install it: apt-get install git.")
    config = [word for name, value in _CONFIG.items() for word in ("-c", f"{name}={value}")]
    local = ref.source.startswith(("http://", "git://"))  # which `parse_remote` allows for loopback alone
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {
        "HOME": str(base),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "/bin/false",
        "GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o ConnectTimeout=20 -o ForwardAgent=no",
        "GIT_ALLOW_PROTOCOL": PROTOCOLS + (":http:git" if local else ""),
        "GIT_NO_LAZY_FETCH": "1",
        "LC_ALL": "C",
    }
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as stdin:
        stdin.write(given)
        stdin.seek(0)
        process = subprocess.Popen(
            [program, *config, *words],
            cwd=base, env=environment, stdin=stdin, stdout=answer, stderr=said, start_new_session=True,
        )  # fmt: skip
        try:
            code = _waited(process, base, ref, deadline, answer.fileno())
        finally:
            # Transports are children of it, and stay where it was killed.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        told = said.read(4000).decode(errors="replace")
        if code != 0:
            raise _refused(ref, told)
        answer.seek(0)
        return answer.read(MAX_ANSWER)


def _waited(process: subprocess.Popen[bytes], base: Path, ref: RemoteRef, deadline: Deadline, answer: int) -> int:
    while True:
        try:
            return process.wait(0.5)
        except subprocess.TimeoutExpired:
            deadline.check()
        if os.fstat(answer).st_size > MAX_ANSWER or _size(base) > MAX_FETCH:
            raise LimitExceeded(
                f"{ref.source} has more than {MAX_FETCH >> 20} MiB; use a smaller repository or an archive.",
                limit="disk",
            )


def _size(base: Path) -> int:
    total = 0
    for directory, _, names in os.walk(base):
        for name in names:
            with suppress(OSError):
                total += Path(directory, name).lstat().st_size
    return total


def _refused(ref: RemoteRef, told: str) -> UserError | ProviderError:
    lines = [line for line in told.splitlines() if line.startswith(("fatal:", "error:", "remote:", "ssh:"))]
    reason = re.sub(r"//[^/@\s]*@", "//", (lines or told.splitlines() or ["no reason given"])[-1])
    reason = "".join(c if c.isprintable() else "?" for c in reason)[:300]
    message = f"git cannot read {ref.source}: {reason.rstrip('.')}; check the address and that it is public."
    if _MISSING.search(told):
        return UserError(message, cause="repository-missing")
    unadvertised = "not our ref" in told or "unadvertised" in told
    return ProviderError(message, cause=UNADVERTISED if unadvertised else "git")
