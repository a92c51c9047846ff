"""The outer VM is what the lane says it is; without this, every later failure would point at the product."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

KVM_GET_API_VERSION = 0xAE00  # linux/kvm.h: _IO(KVMIO, 0x00)
IOCTL_VM_SOCKETS_GET_LOCAL_CID = 0x7B9  # linux/vm_sockets.h: _IO(7, 0xb9)
VMADDR_CID_HOST = 2


def test_the_kernel_has_kvm() -> None:
    """``/dev/kvm`` answers with the stable API version (Linux Documentation/virt/kvm/api.rst, 4.1)."""
    fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    try:
        assert fcntl.ioctl(fd, KVM_GET_API_VERSION) == 12
    finally:
        os.close(fd)


def test_kvm_is_emulated_svm() -> None:
    """The CPU shows AMD's SVM, from QEMU's TCG: nothing here leans on the machine below."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    assert " svm" in flags
    assert "TCG" in flags


def test_the_kernel_has_vhost_vsock() -> None:
    """``/dev/vhost-vsock`` is there and AF_VSOCK works on the host's side."""
    assert os.access("/dev/vhost-vsock", os.R_OK | os.W_OK)
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
        listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        listener.listen(1)
        assert listener.getsockname()[1] > 0
