"""What references mean."""

from __future__ import annotations

import re

import pytest

from voidbox_lab.errors import UserError
from voidbox_lab.images.oci.reference import Reference

PIN = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "full", "source"),
    [
        ("python:3.12-slim", "docker.io/library/python:3.12-slim", "docker://docker.io/library/python:3.12-slim"),
        ("a/b", "docker.io/a/b:latest", "docker://docker.io/a/b:latest"),
        ("index.docker.io/a", "docker.io/library/a:latest", "docker://docker.io/library/a:latest"),
        ("localhost/a", "localhost/a:latest", "docker://localhost/a:latest"),
        ("Host/a", "Host/a:latest", "docker://Host/a:latest"),
        ("127.0.0.1:5000/a/b:1", "127.0.0.1:5000/a/b:1", "docker://127.0.0.1:5000/a/b:1"),
        ("ghcr.io/a/b@" + PIN, "ghcr.io/a/b@" + PIN, "docker://ghcr.io/a/b@" + PIN),
        # skopeo takes one of both; the digest decides.
        ("ghcr.io/a/b:1@" + PIN, "ghcr.io/a/b:1@" + PIN, "docker://ghcr.io/a/b@" + PIN),
    ],
)
def test_what_is_left_out_is_filled_in(text: str, full: str, source: str) -> None:
    """As by docker and podman."""
    parsed = Reference.parse(text)
    assert (str(parsed), parsed.source) == (full, source)
    assert Reference.parse(str(parsed)) == parsed


@pytest.mark.parametrize("text", ["", "a/UPPER", "a b", "--option", "a:b:c", "a@sha256:12", "../a", "a//b"])
def test_what_is_no_reference_is_refused(text: str) -> None:
    """Nothing else becomes an argument of skopeo's."""
    with pytest.raises(UserError) as caught:
        Reference.parse(text)
    assert caught.value.cause == "reference"


def test_names_of_images_are_readable_and_apart() -> None:
    """And such as images may have, with room for what is added to them."""
    texts = (
        "python:3.12-slim",
        "a/python:3.12-slim",
        "python:3.12-slim@" + PIN,
        "x/" + "long-name." * 20 + "y:Z_1",
    )
    names = [Reference.parse(t).image_name for t in texts]
    assert names[0].startswith("oci-python-3.12-slim-")
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9+.-]{0,40}", name) for name in names), names
