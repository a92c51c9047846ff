"""References to remote skills: the forms they may have, and what must not be in one."""

from __future__ import annotations

import pytest

from voidbox_lab.errors import UserError
from voidbox_lab.spec.remote import parse_remote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHA = "ab" * 32


@pytest.mark.parametrize(
    ("text", "form", "source", "path", "revision"),
    [
        ("acme/skills", "git", "https://github.com/acme/skills", "", None),
        ("acme/skills.git/a/b@v1.2", "git", "https://github.com/acme/skills", "a/b", "v1.2"),
        ("acme/skills/a/b@v1.2", "git", "https://github.com/acme/skills", "a/b", "v1.2"),
        ("acme/skills/a/SKILL.md@feature/x", "git", "https://github.com/acme/skills", "a", "feature/x"),
        (f"git+https://h.example/r.git@{COMMIT}#subdirectory=a", "git", "https://h.example/r.git", "a", COMMIT),
        ("git+https://h.example/r", "git", "https://h.example/r", "", None),
        ("https://h.example/r.git", "git", "https://h.example/r.git", "", None),
        ("https://github.com/acme/s/tree/main/a/b", "git", "https://github.com/acme/s", "a/b", "main"),
        ("https://github.com/acme/s/blob/v1/a/SKILL.md", "git", "https://github.com/acme/s", "a", "v1"),
        ("git@github.com:acme/s.git@v1", "git", "ssh://git@github.com/acme/s.git", "", "v1"),
        ("git+ssh://git@h.example/acme/s@v1", "git", "ssh://git@h.example/acme/s", "", "v1"),
        ("git+file:///srv/r@main", "git", "file:///srv/r", "", "main"),
        ("git+http://127.0.0.1:8/r", "git", "http://127.0.0.1:8/r", "", None),
        ("https://h.example/a.tar.gz", "archive", "https://h.example/a.tar.gz", "", None),
        (f"https://h.example/a.zip#subdirectory=x&sha256={SHA}", "archive", "https://h.example/a.zip",
         "x", f"sha256:{SHA}"),
        ("https://github.com/acme/s/archive/refs/tags/v1.tar.gz", "archive",
         "https://github.com/acme/s/archive/refs/tags/v1.tar.gz", "", None),
    ],
)  # fmt: skip
def test_forms(text: str, form: str, source: str, path: str, revision: str | None) -> None:
    """Each form, taken apart."""
    ref = parse_remote(text)
    assert (ref.form, ref.source, ref.path, ref.revision) == (form, source, path, revision)
    assert ref.pinned is (revision in {COMMIT, f"sha256:{SHA}"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("acme", "is not a remote skill"),
        ("../../etc/passwd", "is not a remote skill"),
        ("acme/s@", "is not a remote skill"),
        ("acme/s/a/../../b", "not a path below"),
        ("acme/s@--upload-pack=x", "not a git revision"),
        ("acme/s@a..b", "not a git revision"),
        ("--upload-pack=touch/x", "is not a remote skill"),
        ("ext::sh -c id", "is not a remote skill"),
        ("git+ext://sh", "is not file, https, ssh"),
        ("git+http://h.example/r", "is not file, https, ssh"),
        ("git+git://h.example/r", "is not file, https, ssh"),
        ("http://h.example/r.tar.gz", "is not https"),
        ("https://h.example/page", "is not a remote skill"),
        ("https://me:s3cret@h.example/r.git", "has credentials in it"),
        ("https://s3cret@h.example/r.git", "has credentials in it"),
        ("git+ssh://git:s3cret@h.example/r", "has credentials in it"),
        ("https://h.example/a.zip?token=s3cret", "has a query"),
        ("https://h.example/a.zip#sha256=xyz", "is its digest"),
        ("https://h.example/a.zip#s3cret=1", "after '#' stands"),
        ("https://h.example:x/a.zip", "is not a remote skill"),
        ("https:///a.zip", "names no host"),
        ("acme/s\n", None),
        ("acme/ s", "is not a remote skill"),
    ],
)
def test_what_is_none(text: str, said: str | None) -> None:
    """Refused in one sentence, which does not repeat a secret."""
    if said is None:
        assert parse_remote(text) == parse_remote(text.strip())
        return
    with pytest.raises(UserError, match=said) as caught:
        parse_remote(text)
    assert "s3cret" not in caught.value.message.replace("#s3cret", "")


def test_arguments_win() -> None:
    """`path` and `revision` instead of what the text says."""
    ref = parse_remote("acme/s/a@main", path="/b/c/", revision=COMMIT)
    assert (ref.path, ref.revision, ref.pinned) == ("b/c", COMMIT, True)
