"""Builds the package with the libraries of a build folder inside.

EXPAR_BUILD names the build folder (the one that holds lib/libexpar.so); without it the newest of build/*/ is taken.
Where there is none the package comes without libraries and looks for them when it is imported.
"""
import os
import re
import shutil

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(HERE)
LIBRARIES = re.compile(r"^lib.*\.so(\.\d+)*$")
NOT_SHIPPED = ("asan", "tsan", "debug")


def version():
    with open(os.path.join(TOP, "include", "expar", "version.h"), encoding="utf-8") as file:
        found = dict(re.findall(r"#define XP_VERSION_(MAJOR|MINOR|PATCH) +(\d+)", file.read()))
    return ".".join(found[part] for part in ("MAJOR", "MINOR", "PATCH"))


def library_folder():
    """The lib/ of the build to ship, or None."""
    chosen = os.environ.get("EXPAR_BUILD")
    if chosen:
        folder = os.path.join(chosen, "lib")
        if not os.path.exists(os.path.join(folder, "libexpar.so")):
            raise SystemExit(f"EXPAR_BUILD={chosen}: no lib/libexpar.so there; build it with scripts/build.sh")
        return folder
    builds = os.path.join(TOP, "build")
    names = os.listdir(builds) if os.path.isdir(builds) else []
    found = [os.path.join(builds, name, "lib") for name in names if name not in NOT_SHIPPED]
    found = [folder for folder in found if os.path.exists(os.path.join(folder, "libexpar.so"))]
    return max(found, key=lambda folder: os.path.getmtime(os.path.join(folder, "libexpar.so")), default=None)


class BuildWithLibraries(build_py):
    def run(self):
        super().run()
        package = os.path.join(self.build_lib, "expar")
        with open(os.path.join(package, "_version.py"), "w", encoding="utf-8") as file:
            file.write(f'VERSION = "{version()}"\n')
        folder = library_folder()
        if folder is None:
            return
        shipped = os.path.join(package, "lib")
        shutil.rmtree(shipped, ignore_errors=True)
        os.makedirs(shipped)
        for name in sorted(os.listdir(folder)):
            # a link and its file would come twice: the file goes under the name that programs load
            path = os.path.join(folder, name)
            if not LIBRARIES.match(name) or name == "libexpar.so" or name.startswith("libexpar.so.0."):
                continue
            shutil.copy2(os.path.realpath(path), os.path.join(shipped, name))


class DistributionWithLibraries(Distribution):
    def has_ext_modules(self):
        return library_folder() is not None


commands = {"build_py": BuildWithLibraries}
try:
    from wheel.bdist_wheel import bdist_wheel
except ImportError:  # setuptools 70 has its own; an older one without wheel makes no wheels
    try:
        from setuptools.command.bdist_wheel import bdist_wheel
    except ImportError:
        bdist_wheel = None
if bdist_wheel is not None:

    class WheelForEveryPython(bdist_wheel):
        """The libraries know nothing of Python: one wheel for every version."""

        def get_tag(self):
            python, abi, platform = super().get_tag()
            return ("py3", "none", platform) if library_folder() is not None else (python, abi, platform)

    commands["bdist_wheel"] = WheelForEveryPython

setup(version=version(), cmdclass=commands, distclass=DistributionWithLibraries)
