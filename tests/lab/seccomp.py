# SPDX-License-Identifier: Apache-2.0
"""
A container's profile of system calls, loaded as a runtime does it: by libseccomp, from the profile's JSON.

What the profile refuses by default is not refused by the kernel but asked of whoever holds the filter's
descriptor (seccomp_unotify(2)), so that each of those calls can be counted; the answer is the profile's.
"""

import ctypes
import errno
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

LIBRARY: Final = "libseccomp.so.2"
ALLOW, ASK, REFUSE = 0x7FFF0000, 0x7FC00000, 0x00050000
COMPARISONS: Final = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}


# linux/prctl.h, linux/seccomp.h, and the size of struct sock_filter.
PR_SET_NO_NEW_PRIVS: Final = 38
SET_MODE_FILTER, NEW_LISTENER = 1, 1 << 3
INSTRUCTION: Final = 8


class Filter(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("count", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


class Comparison(ctypes.Structure):
    """``struct scmp_arg_cmp``."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


class Call(ctypes.Structure):
    """``struct seccomp_data``."""

    _fields_ = (
        ("number", ctypes.c_int),
        ("arch", ctypes.c_uint32),
        ("instruction", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 6),
    )


class Question(ctypes.Structure):
    """``struct seccomp_notif``."""

    _fields_ = (
        ("id", ctypes.c_uint64),
        ("pid", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("call", Call),
    )


class Answer(ctypes.Structure):
    """``struct seccomp_notif_resp``."""

    _fields_ = (
        ("id", ctypes.c_uint64),
        ("value", ctypes.c_int64),
        ("error", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
    )


def _library() -> Any:
    library = ctypes.CDLL(LIBRARY)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_char_p
    # Looks at what this kernel has; without it the library believes that nobody can be asked.
    library.seccomp_api_get()
    return library


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(-result, f"{what}: {errno.errorcode.get(-result, result)}")
    return result


def _action(rule: dict[str, Any]) -> int:
    if rule["action"] == "SCMP_ACT_ALLOW":
        return ALLOW
    assert rule["action"] == "SCMP_ACT_ERRNO", rule
    return REFUSE | int(rule.get("errnoRet", errno.EPERM))


def _comparisons(arguments: Iterable[dict[str, Any]]) -> list[Comparison]:
    return [
        Comparison(one["index"], COMPARISONS[one["op"]], one["value"], one.get("valueTwo", 0))
        for one in arguments
    ]


def load(profile: Path, *, also: Sequence[str] = ()) -> int:
    """
    Put the calling thread, and all that it starts from now on, under a profile; the filter's descriptor.

    Calls in *also* are allowed beside those of the profile.

    It also gets no new privileges by execve(2), as in a container with allowPrivilegeEscalation=false.
    Raises :class:`OSError`.
    """
    document = json.loads(profile.read_text())
    assert document["defaultAction"] == "SCMP_ACT_ERRNO", document["defaultAction"]
    program = _program(document["syscalls"], also)
    instructions = ctypes.create_string_buffer(program, len(program))
    filter_ = Filter(len(program) // INSTRUCTION, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
    libc.syscall.argtypes = (ctypes.c_long, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no new privileges")
    # Not seccomp_load(3): it makes one descriptor in the life of a process, and says the same ever after.
    number = _library().seccomp_syscall_resolve_name(b"seccomp")
    descriptor: int = libc.syscall(number, SET_MODE_FILTER, NEW_LISTENER, ctypes.addressof(filter_))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "load the filter")
    return descriptor


def _program(rules: Iterable[dict[str, Any]], also: Sequence[str]) -> bytes:
    library = _library()
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ASK)))
    for rule in (*rules, {"names": also, "action": "SCMP_ACT_ALLOW"}):
        comparisons = _comparisons(rule.get("args") or ())
        array = (Comparison * len(comparisons))(*comparisons)
        for name in rule["names"]:
            number = library.seccomp_syscall_resolve_name(name.encode())
            # Below zero: not on this architecture.  A runtime leaves it out too.
            if number >= 0:
                added = library.seccomp_rule_add_array(
                    context, ctypes.c_uint32(_action(rule)), number, len(comparisons), array
                )
                _checked(added, f"the rule of {name}")
    with os.fdopen(os.memfd_create("filter"), "rb") as file:
        _checked(library.seccomp_export_bpf(context, file.fileno()), "compile the filter")
        library.seccomp_release(context)
        file.seek(0)
        return file.read()


class Judge:
    """Who is asked: what each question is about, and the answer, always no."""

    def __init__(self, descriptor: int, error: int = errno.EPERM) -> None:
        self._descriptor = descriptor
        self._error = error
        self._library = _library()

    def next(self) -> tuple[Question, str] | None:
        """A call that waits for an answer, and its name; None when who asked has been killed meanwhile."""
        question = Question()
        found = self._library.seccomp_notify_receive(self._descriptor, ctypes.byref(question))
        if found == -errno.ENOENT:
            return None
        _checked(found, "receive")
        call = question.call
        name = self._library.seccomp_syscall_resolve_num_arch(ctypes.c_uint32(call.arch), call.number)
        return question, name.decode() if name else str(call.number)

    def refuse(self, question: Question) -> None:
        """Fail the call."""
        answer = Answer(question.id, 0, -self._error, 0)
        found = self._library.seccomp_notify_respond(self._descriptor, ctypes.byref(answer))
        if found != -errno.ENOENT:
            _checked(found, "respond")
