"""Takes root's powers away from the QEMUs that root starts. Not for the guest's agent: that is the guest's policy.

libvirt's ``clear_emulator_capabilities`` clears the sets that an exec by uid 0 fills again (capabilities(7),
"Capabilities and execution of programs by root"), and not the bounding set, which would keep them empty.
"""

from __future__ import annotations

import ctypes

_PR_CAPBSET_DROP = 24
"""include/uapi/linux/prctl.h."""
_MOST = 64
"""The kernel holds capability sets in 64 bits."""


def renounce_for_children() -> None:
    """Empty the calling thread's bounding set: programs it starts from now on have no capabilities, ever.

    Sets are per thread; what this thread itself may do stays. Only for a thread that ends soon. Without
    CAP_SETPCAP, that is for ordinary users, nothing changes and there was nothing to renounce.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for capability in range(_MOST):
        if prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) != 0:
            return  # EINVAL after the kernel's last one, EPERM at the first
