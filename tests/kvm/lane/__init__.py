"""The KVM lane: real KVM and real vhost-vsock on a machine that has neither.

QEMU's TCG emulates AMD SVM. So an *outer* VM, booted under TCG, has a working ``/dev/kvm`` and
``/dev/vhost-vsock``; inside it the product starts boxes of ``type='kvm'`` with the host kernel's vsock, and
the checks of ``tests/kvm/inside`` judge them. Everything in an inner box is emulated twice and some ten to
twenty times slower than a box under TCG alone.

`root` makes the outer VM's root disk (cached), `closure` and `payload` the disk with product, tests and guest
image (made each time), `outer` boots the VM, `verdict` judges its serial line. ``scripts/test-kvm`` is the way
in. Not for tests that run anywhere: those belong beside the code they test.
"""
