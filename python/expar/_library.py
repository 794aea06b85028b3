"""Finds libexpar and declares its functions."""
import ctypes
import functools
import os
import re
from typing import Callable, List, Optional, Tuple

from expar import _capi
from expar._errors import exception_of

NAME = "libexpar.so.0"
NOT_FOR_USE = ("asan", "tsan")  # builds that only run under their sanitizer
HERE = os.path.dirname(os.path.abspath(__file__))
CHECKOUT = os.path.dirname(os.path.dirname(HERE))


def package_version() -> str:
    """The version that this package was made from."""
    try:
        from expar._version import VERSION  # type: ignore  # written when the package is built
        return VERSION
    except ImportError:
        with open(os.path.join(CHECKOUT, "include", "expar", "version.h"), encoding="utf-8") as file:
            found = dict(re.findall(r"#define XP_VERSION_(MAJOR|MINOR|PATCH) +(\d+)", file.read()))
        return ".".join(found[part] for part in ("MAJOR", "MINOR", "PATCH"))


def _is_checkout() -> bool:
    return os.path.exists(os.path.join(CHECKOUT, "include", "expar", "version.h"))


def _builds_of_checkout() -> List[str]:
    """Libraries of the checkout's build folders, the newest first."""
    builds = os.path.join(CHECKOUT, "build")
    if not _is_checkout() or not os.path.isdir(builds):
        return []
    found = [os.path.join(builds, name, "lib", NAME) for name in os.listdir(builds) if name not in NOT_FOR_USE]
    return sorted((path for path in found if os.path.exists(path)), key=os.path.getmtime, reverse=True)


def _from_environment() -> Optional[str]:
    chosen = os.environ.get("EXPAR_LIBRARY")
    if not chosen:
        return None
    if os.path.isdir(chosen):
        for name in (NAME, "libexpar.so"):
            if os.path.exists(os.path.join(chosen, name)):
                return os.path.join(chosen, name)
        raise ImportError(f"EXPAR_LIBRARY={chosen}: the folder holds no {NAME}; name the folder or file that "
                          "scripts/build.sh or cmake --install has made")
    if not os.path.exists(chosen):
        raise ImportError(f"EXPAR_LIBRARY={chosen}: no such file; name libexpar.so or the folder that holds it")
    return chosen


def candidates() -> List[str]:
    """Where the library is looked for, in this order: EXPAR_LIBRARY alone when it is set; the package's own folder; the
    build folders of the checkout that the package lies in; what the dynamic linker finds."""
    chosen = _from_environment()
    if chosen is not None:
        return [chosen]
    own = os.path.join(HERE, "lib", NAME)
    return ([own] if os.path.exists(own) else []) + _builds_of_checkout() + [NAME]


def _open() -> Tuple[ctypes.CDLL, str]:
    failures = []
    for path in candidates():
        try:
            return ctypes.CDLL(path), path
        except OSError as error:
            failures.append(str(error))
    raise ImportError(
        "libexpar was not found or cannot be loaded: " + "; ".join(failures) + ". Build it (scripts/build.sh in a checkout of "
        "expar) and install the package again, or set EXPAR_LIBRARY to libexpar.so or to the folder that holds it")


class Library:
    """The loaded library: `check(status)`, `call(name, ...)` and the file it came from."""

    def __init__(self) -> None:
        self.cdll, self.path = _open()
        for name, (result, arguments) in _capi.FUNCTIONS.items():
            try:
                function = getattr(self.cdll, name)
            except AttributeError:
                raise ImportError(f"{self.path} has no {name}(): it is not of version {package_version()}, which this "
                                  "package needs; build the library and the package from the same sources") from None
            function.restype, function.argtypes = result, arguments
        self.version = self.cdll.xp_version().decode()
        wanted = package_version()
        if self.version.split(".")[:2] != wanted.split(".")[:2]:
            raise ImportError(f"{self.path} is libexpar {self.version}, this package needs {wanted}: build both from the "
                              "same sources, or set EXPAR_LIBRARY to the right one")
        if os.sep not in self.path:
            self.path = _path_in_memory(self.path)

    def last_error(self) -> str:
        return self.cdll.xp_last_error().decode(errors="replace")

    def check(self, status: int) -> None:
        """Raise what a failing status stands for, with the library's message."""
        if status != 0:
            raise exception_of(status, self.last_error())

    def call(self, name: str, *arguments) -> None:
        """Call a function that returns a status; raise when it fails."""
        status = getattr(self.cdll, name)(*arguments)
        if status != 0:
            raise exception_of(status, self.last_error())

    def optional(self, name: str) -> Optional[Callable]:
        """A function of a library behind libexpar (OpenBLAS), or None."""
        return getattr(self.cdll, name, None)


def _path_in_memory(name: str) -> str:
    """The file behind a library that the dynamic linker has found by itself."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            path = line.rstrip("\n").partition("/")[2]
            if os.path.basename(path).startswith("libexpar.so"):
                return "/" + path
    return name


@functools.lru_cache(maxsize=None)
def load() -> Library:
    """The library, loaded at the first call.

    Raises:
        ImportError: not found, cannot be loaded, or of another version; says what to do.
    """
    return Library()
