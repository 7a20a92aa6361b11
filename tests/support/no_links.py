"""Processes for which the kernel refuses hard links, as on a disk with FAT or exFAT: seccomp(2), without privileges."""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

LINKS = {"x86_64": (86, 265), "aarch64": (37,)}  # numbers of link(2) and linkat(2)
NO_NEW_PRIVS, SECCOMP, FILTER = 38, 22, 2  # of prctl(2)
LOAD_NUMBER, IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # instructions of a filter
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def refuse_links() -> None:
    """Refuse every later hard link of this process and of its children."""
    numbers = LINKS[platform.machine()]
    code = [
        (LOAD_NUMBER, 0, 0, 0),
        *((IF_EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, REFUSE),
    ]
    program = _Program(len(code), b"".join(struct.pack("HBBI", *each) for each in code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(SECCOMP, FILTER, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "no filter of system calls")
