"""The handshake: only two ends with the same secret, protocol and fresh nonces come through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox_lab.wire import frames as f
from voidbox_lab.wire.handshake import GuestSide, HandshakeError, HostSide

SECRET = bytes(range(32))


def only(data: bytes) -> f.Frame:
    """The one frame in `data`."""
    (frame,) = f.Decoder().feed(data)
    return frame


def talk(guest: GuestSide, host: HostSide) -> None:
    """Carry the whole handshake."""
    challenge = host.receive(only(guest.hello()))
    proof = guest.receive(only(challenge))
    welcome = host.receive(only(proof))
    assert guest.receive(only(welcome)) == b""


def test_both_sides_prove_themselves() -> None:
    """The same secret on both sides is enough, and needed twice."""
    guest, host = GuestSide(SECRET), HostSide(SECRET)
    talk(guest, host)
    assert guest.done
    assert host.done


@given(st.integers(0, 31), st.integers(1, 255))
def test_a_wrong_secret_is_rejected(index: int, flip: int) -> None:
    """One wrong byte: the host says so with a typed REJECT, and the guest understands it."""
    wrong = bytearray(SECRET)
    wrong[index] ^= flip
    guest, host = GuestSide(bytes(wrong)), HostSide(SECRET)
    proof = guest.receive(only(host.receive(only(guest.hello()))))
    with pytest.raises(HandshakeError) as caught:
        host.receive(only(proof))
    assert caught.value.code == "bad-proof"
    assert not host.done
    assert caught.value.reject is not None
    with pytest.raises(HandshakeError) as heard:
        guest.receive(only(caught.value.reject))
    assert (heard.value.code, heard.value.by_peer, heard.value.reject) == ("bad-proof", True, None)


def test_a_host_without_the_secret_is_rejected() -> None:
    """A stranger that listens on the host's port cannot command a guest."""
    guest = GuestSide(SECRET)
    guest.receive(only(f.encode(f.CHALLENGE, 0, bytes(32))))
    with pytest.raises(HandshakeError, match="does not know"):
        guest.receive(only(f.encode(f.WELCOME, 0, bytes(32))))
    assert not guest.done


def test_a_replayed_proof_is_rejected() -> None:
    """What was heard once opens nothing later: the host's nonce is fresh."""
    guest, host = GuestSide(SECRET, nonce=bytes(32)), HostSide(SECRET)
    recorded = guest.receive(only(host.receive(only(guest.hello()))))
    again = HostSide(SECRET)
    again.receive(only(GuestSide(bytes(32), nonce=bytes(32)).hello()))
    with pytest.raises(HandshakeError) as caught:
        again.receive(only(recorded))
    assert caught.value.code == "bad-proof"


def test_a_proof_cannot_be_reflected() -> None:
    """The roles' MACs differ even under equal nonces, so a host's words are no guest's proof."""
    nonce = bytes(32)
    guest, host = GuestSide(SECRET, nonce=nonce), HostSide(SECRET, nonce=nonce)
    proof = only(guest.receive(only(host.receive(only(guest.hello())))))
    welcome = only(host.receive(proof))
    assert welcome.payload != proof.payload


def test_another_protocol_is_rejected_by_name() -> None:
    """An old image says what to do: build it again."""
    with pytest.raises(HandshakeError, match="build the image again") as caught:
        HostSide(SECRET).receive(only(GuestSide(SECRET, protocol=7).hello()))
    assert caught.value.code == "bad-protocol"


@pytest.mark.parametrize("kind", [f.PROOF, f.WELCOME])
def test_frames_out_of_turn_are_rejected(kind: int) -> None:
    """No step can be skipped."""
    with pytest.raises(HandshakeError) as caught:
        HostSide(SECRET).receive(f.Frame(kind, 0, 0, bytes(32)))
    assert caught.value.code == "unexpected"


def test_a_short_secret_is_a_bug() -> None:
    """BLAKE2 would take any key; we do not."""
    with pytest.raises(ValueError, match="32"):
        GuestSide(b"short")
