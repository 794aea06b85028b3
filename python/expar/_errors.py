"""The library's status codes as Python exceptions. Every one carries the library's own message (xp_last_error())."""
from typing import Dict

XP_OK = 0
XP_EINVAL = -1
XP_ENOMEM = -2
XP_ENOTSUP = -8

NAMES: Dict[int, str] = {
    0: "XP_OK", -1: "XP_EINVAL", -2: "XP_ENOMEM", -3: "XP_EIO", -4: "XP_EFORMAT", -5: "XP_ECONFIG", -6: "XP_ECOMM",
    -7: "XP_ENUMERIC", -8: "XP_ENOTSUP", -9: "XP_ENOENT", -10: "XP_EINTERRUPTED", -11: "XP_EDEVICE",
    -12: "XP_EINTERNAL", -13: "XP_EBUSY",
}


class ExparError(RuntimeError):
    """libexpar reports an error that is not one of Python's own kinds.

    Attributes:
        code: the xp_status, for example -6 (XP_ECOMM: a rank is lost, late, or made another call).
        code_name: its name.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code
        self.code_name = NAMES.get(code, "XP_?")

    def __reduce__(self):
        return type(self), (self.args[0], self.code)


class UnsupportedError(NotImplementedError):
    """This machine, or this build of libexpar, cannot do what was asked (XP_ENOTSUP)."""

    code = XP_ENOTSUP
    code_name = "XP_ENOTSUP"


def exception_of(code: int, message: str) -> Exception:
    """ValueError, MemoryError, UnsupportedError (a NotImplementedError) or ExparError, by code."""
    text = message or NAMES.get(code, "XP_?")
    if code == XP_EINVAL:
        return ValueError(text)
    if code == XP_ENOMEM:
        return MemoryError(text)
    if code == XP_ENOTSUP:
        return UnsupportedError(text)
    return ExparError(text, code)
