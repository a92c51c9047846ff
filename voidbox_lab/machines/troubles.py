"""libvirt's errors as ours: one sentence, with the fix where it is known."""

from __future__ import annotations

from voidbox_lab.errors import ProviderError, Unavailable
from voidbox_lab.machines.library import libvirt

_ACCOUNT = (
    "run `useradd --system --user-group libvirt-qemu` once (libvirt's driver wants that account to exist when "
    "root uses it, and does not use it here), or work as an ordinary user"
)
_DRIVER = "install libvirt's QEMU driver (Debian, Ubuntu: `apt install libvirt-daemon libvirt-daemon-driver-qemu`)"
_QEMU = "install QEMU (Debian, Ubuntu: `apt install qemu-system-x86`)"
_KVM = "set VOIDBOX_ACCEL=tcg, or give this user access to /dev/kvm"
_MEMORY = "free memory on the host, or ask for a smaller box"
_ACCESS = "give QEMU's user access to that file, or unset VOIDBOX_LIBVIRT_URI"
_DAEMON = "start that libvirt daemon, join the group that may use it, or choose another by VOIDBOX_LIBVIRT_URI"
_HOLDER = "another process of this user runs the boxes: stop it, or use it"
_LOCKED = "a box whose owner was killed may still have that disk: run `voidbox gc`, then try again"

# A fragment of libvirt's or QEMU's message in lower case; the error's type, its cause, and the fix.
_KNOWN: tuple[tuple[str, type[ProviderError], str, str], ...] = (
    ("failed to parse user", Unavailable, "no-account", _ACCOUNT),
    ("driver.pid", Unavailable, "in-use", _HOLDER),
    ("no connection driver", Unavailable, "no-driver", _DRIVER),
    ("cannot find suitable emulator", Unavailable, "no-qemu", _QEMU),
    ("unable to find any emulator", Unavailable, "no-qemu", _QEMU),
    ("could not find capabilities for", Unavailable, "no-qemu", _QEMU),
    ("kvm is not supported", Unavailable, "no-kvm", _KVM),
    ("could not access kvm", Unavailable, "no-kvm", _KVM),
    ("domain type of 'kvm'", Unavailable, "no-kvm", _KVM),
    ("cannot allocate memory", ProviderError, "host-memory", _MEMORY),
    ("cannot set up guest memory", ProviderError, "host-memory", _MEMORY),
    ("failed to connect socket", Unavailable, "no-daemon", _DAEMON),
    ('" lock', ProviderError, "disk-locked", _LOCKED),
    ("permission denied", Unavailable, "permission", _ACCESS),
)
_SHOWN = 300


def provider_error(error: libvirt.libvirtError, what: str) -> ProviderError:
    """`error`, raised while libvirt was to `what`, as `Unavailable` or `ProviderError`."""
    text = " ".join(str(error.get_error_message() or error).split())
    shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN // 3]} … {text[-_SHOWN * 2 // 3 :]}"
    for fragment, kind, cause, fix in _KNOWN:
        if fragment in text.lower():
            return kind(f"libvirt could not {what} ({shown}); {fix}.", cause=cause)
    return ProviderError(f"libvirt could not {what}: {shown}.", cause="libvirt")
