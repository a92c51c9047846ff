"""The language between host and guest: frames, handshake, protocol constants.

Standard library only, relative imports only, and few of them: the package is packed into the guest as it
is (top-level ``wire``), where under emulation each import costs milliseconds of boot. Not for I/O: nothing
here touches a socket.
"""
