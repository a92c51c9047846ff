"""Skills from real git servers: pinned, cached, and nothing of the repository run or followed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.skills.servers import committed, git, git_daemon, git_over_http
from voidbox_lab import Skill
from voidbox_lab.errors import LimitExceeded, ProviderError, UserError
from voidbox_lab.skills import commit_of, deadline
from voidbox_lab.skills import git as fetching
from voidbox_lab.spec.remote import parse_remote

FILES = {
    "skills/fx/SKILL.md": "---\nname: fx\ndescription: Exchange rates.\n---\nUse rates.csv.\n",
    "skills/fx/rates.csv": "EUR,1.1\n",
    "skills/fx/bin/run.sh": "#!/bin/sh\necho hello\n",
    "skills/fx/.hidden": "no",
    "skills/plain/SKILL.md": "No front matter.\n",
    "notes/Advice.md": "Be brief.\n",
    "README.md": "About.\n",
}


def test_a_skill_over_smart_http_is_pinned_and_needs_no_network_again(tmp_path: Path) -> None:
    """A branch becomes its commit; the commit, given, comes from the cache when the server is gone."""
    commit = committed(tmp_path / "repos/market", FILES)
    git(tmp_path / "repos/market", "tag", "-a", "v1", "-m", "one")
    with git_over_http(tmp_path / "repos") as (url, requests):
        source = f"git+{url}/market"
        skill = Skill.remote(f"{source}@main#subdirectory=skills/fx")
        assert skill.kind == "remote"
        assert skill.name == "fx"
        assert skill.description == "Exchange rates."
        assert skill.origin
        assert skill.origin.revision == commit
        assert skill.origin.path == "skills/fx"
        assert skill.origin.source == f"{url}/market"
        assert set(skill.files) == {"rates.csv", "bin/run.sh"}
        assert skill.files["bin/run.sh"].executable
        assert not skill.files["rates.csv"].executable
        assert skill.contents[skill.files["rates.csv"].digest] == b"EUR,1.1\n"
        by_tag = Skill.remote(source, path="skills/fx/SKILL.md", revision="v1")
        assert by_tag == skill, "an annotated tag is the commit it names"
        before = len(requests)
        later = committed(tmp_path / "repos/market", {"skills/fx/rates.csv": "EUR,1.2\n"})
        assert Skill.remote(source, path="skills/fx", revision=commit) == skill
        assert len(requests) == before, "what is pinned and known needs no request"
        assert commit_of(parse_remote(source)) == later
        # An older commit that no branch names, into an empty cache.
        old = Skill.remote(source, path="notes/Advice.md", revision=commit)
        assert old.name == "advice"
        assert old.body == "Be brief.\n"
    again = Skill.remote(source, path="skills/fx", revision=commit, name="rates", description="Other.")
    assert (again.name, again.description, again.body) == ("rates", "Other.", skill.body)
    assert again.contents == skill.contents
    with pytest.raises(ProviderError, match=r"git cannot read http://127.0.0.1:.* check the address") as caught:
        Skill.remote(f"{source}@main#subdirectory=skills/fx")
    assert type(caught.value) is ProviderError


def test_a_server_that_gives_tips_alone_is_asked_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the older protocol a commit that no branch is at is refused; it is found among what the branches have."""
    commit = committed(tmp_path / "repos/market", FILES)
    committed(tmp_path / "repos/market", {"skills/fx/rates.csv": "EUR,1.2\n"})
    monkeypatch.setitem(fetching._CONFIG, "protocol.version", "0")
    with git_over_http(tmp_path / "repos") as (url, _):
        skill = Skill.remote(f"git+{url}/market@{commit}", path="skills/fx")
        assert skill.contents[skill.files["rates.csv"].digest] == b"EUR,1.1\n"
        with pytest.raises(UserError, match="has no commit"):
            Skill.remote(f"git+{url}/market", path="skills/fx", revision="b" * 40)


def test_a_skill_from_a_daemon_and_from_a_file_url(tmp_path: Path) -> None:
    """git:// of this machine, and git+file://; a skill without a name has its directory's."""
    commit = committed(tmp_path / "repos/market", FILES)
    with git_daemon(tmp_path / "repos") as url:
        skill = Skill.remote(f"git+{url}/market#subdirectory=skills/plain")
    assert skill.name == "plain"
    assert skill.origin
    assert skill.origin.revision == commit
    local = Skill.remote(f"git+file://{tmp_path}/repos/market@{commit}", path="skills/plain")
    assert local.body == skill.body
    assert local.origin
    assert local.origin.source == f"file://{tmp_path}/repos/market"


def test_what_is_not_there_is_said_with_what_is(tmp_path: Path) -> None:
    """No such revision, commit, directory, repository: user errors, and where the skills are."""
    commit = committed(tmp_path / "market", FILES)
    source = f"git+file://{tmp_path}/market"
    with pytest.raises(UserError, match="has no branch or tag 'nope'; check it"):
        Skill.remote(source, revision="nope")
    with pytest.raises(UserError, match="a commit is given in full"):
        Skill.remote(source, revision=commit[:8])
    with pytest.raises(UserError, match=f"has no commit {'a' * 40}"):
        Skill.remote(source, revision="a" * 40)
    with pytest.raises(
        UserError, match=r"no SKILL.md in the root .*; there are skills in skills/fx, skills/plain\."
    ):
        Skill.remote(source)
    with pytest.raises(UserError, match="git cannot read"):
        Skill.remote(f"git+file://{tmp_path}/none")
    with git_over_http(tmp_path) as (url, _), pytest.raises(UserError, match=r"git cannot read .* not found"):
        Skill.remote(f"git+{url}/none", revision="a" * 40)
    with git_daemon(tmp_path) as url, pytest.raises(UserError, match="not exported"):
        commit_of(parse_remote(f"git+{url}/none"))


def test_nothing_of_a_hostile_repository_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Symbolic links, submodules, filters, hooks and this user's configuration have no effect; LFS is refused."""
    ran = tmp_path / "ran"
    user = tmp_path / "home"
    user.mkdir()
    (user / ".gitconfig").write_text(
        f'[filter "evil"]\n\tsmudge = touch {ran}\n\tprocess = touch {ran}\n[core]\n\thooksPath = {user}\n'
        f'[url "ext::sh -c touch% {ran}"]\n\tinsteadOf = file://\n[protocol]\n\tallow = always\n'
    )
    (user / "post-checkout").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (user / "post-checkout").chmod(0o755)
    repository = tmp_path / "evil"
    committed(repository, {
        "SKILL.md": "---\nname: evil\n---\nHello $Id$.\r\n",
        ".gitattributes": "* filter=evil ident text eol=crlf export-subst\n",
        "data.txt": "a\n",
        ".gitmodules": '[submodule "sub"]\n\tpath = sub\n\turl = ext::sh -c touch% x\n',
    })  # fmt: skip
    (repository / "secret").symlink_to("/etc/passwd")
    (repository / "up").symlink_to("..")
    git(repository, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},sub")
    commit = committed(repository, {})
    monkeypatch.setenv("HOME", str(user))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(user / ".gitconfig"))
    monkeypatch.setenv("GIT_SSH_COMMAND", f"touch {ran}")
    skill = Skill.remote(f"git+file://{repository}@{commit}")
    assert set(skill.files) == {"data.txt"}
    assert skill.contents[skill.files["data.txt"].digest] == b"a\n"
    assert "$Id$" in skill.body
    assert not ran.exists()
    committed(repository, {"big.bin": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"})
    with pytest.raises(UserError, match="kept in Git LFS"):
        Skill.remote(f"git+file://{repository}")


def test_a_large_or_slow_repository_ends_at_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the skill's size before it is read, by the bytes that arrive, and by time."""
    committed(tmp_path / "big", {"SKILL.md": "Big.\n", "blob": os.urandom(3 << 20)})
    source = f"git+file://{tmp_path}/big"
    monkeypatch.setattr("voidbox_lab.skills.tree.MAX_FILES_BYTES", 1 << 20)
    with pytest.raises(LimitExceeded, match=r"the limit is 256 files and 1 MiB"):
        Skill.remote(source)
    monkeypatch.setattr(deadline, "TIMEOUT_S", 0.1)
    slow = tmp_path / "bin"
    slow.mkdir()
    (slow / "git").write_text("#!/bin/sh\nsleep 30 & wait\n")
    (slow / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow}:{os.environ['PATH']}")
    with pytest.raises(LimitExceeded, match="has not been fetched after 0 s"):
        Skill.remote(source)
    monkeypatch.setattr(deadline, "TIMEOUT_S", 60.0)
    monkeypatch.setattr(fetching, "MAX_FETCH", 1000)
    (slow / "git").write_text("#!/bin/sh\nhead -c 5000 /dev/zero > flood\nsleep 30\n")
    with pytest.raises(LimitExceeded, match="use a smaller repository"):
        Skill.remote(source)


def test_all_commands_of_a_fetch_have_one_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them alone is as slow as that."""
    committed(tmp_path / "repo", FILES)
    slow = tmp_path / "bin"
    slow.mkdir()
    (slow / "git").write_text(f'#!/bin/sh\nsleep 0.8\nexec {shutil.which("git")} "$@"\n')
    (slow / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow}:{os.environ['PATH']}")
    monkeypatch.setattr(deadline, "TIMEOUT_S", 2.0)
    with pytest.raises(LimitExceeded, match="has not been fetched after 2 s"):
        Skill.remote(f"git+file://{tmp_path}/repo", path="skills/fx")
