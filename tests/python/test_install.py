"""Installing offline, the wheel with its libraries, finding the library, and what is said when it is not found."""
import os
import subprocess
import sys
import tempfile
import unittest
import zipfile

TOP = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
BUILD = os.environ.get("EXPAR_BUILD", os.path.join(TOP, "build", "release"))
ONE_LINE = "from expar.ep import Group; print('expar works')"


def python(code, path, folder, **environment):
    """Run a line of Python outside of the checkout."""
    clean = {key: value for key, value in os.environ.items() if key not in ("EXPAR_LIBRARY", "PYTHONPATH")}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env={**clean, "PYTHONPATH": path, **environment},
                          capture_output=True, text=True)


class Install(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def test_wheel(self):
        """One wheel for every Python, with the libraries inside; it works where there is no checkout."""
        made = subprocess.run(["bash", os.path.join(TOP, "python", "build_wheel.sh"), self.folder], capture_output=True,
                              text=True, env={**os.environ, "EXPAR_BUILD": BUILD, "PYTHON": sys.executable})
        self.assertEqual(made.returncode, 0, made.stdout + made.stderr)
        (name,) = [n for n in os.listdir(self.folder) if n.endswith(".whl")]
        self.assertRegex(name, r"^expar-\d+\.\d+\.\d+-py3-none-linux_\w+\.whl$")
        with zipfile.ZipFile(os.path.join(self.folder, name)) as wheel:
            files = wheel.namelist()
        for wanted in ("expar/py.typed", "expar/ep.py", "expar/_version.py", "expar/lib/libexpar.so.0"):
            self.assertIn(wanted, files)
        target = os.path.join(self.folder, "target")
        installed = subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", target,
                                    os.path.join(self.folder, name)], capture_output=True, text=True)
        if "No module named pip" in installed.stderr:
            self.skipTest("no pip")
        self.assertEqual(installed.returncode, 0, installed.stderr)
        ran = python(ONE_LINE + "; import expar; print(expar.library_path(), expar.__version__ == expar.library_version())",
                     target, self.folder)
        self.assertEqual(ran.stdout.split("\n")[:2], ["expar works", f"{target}/expar/lib/libexpar.so.0 True"], ran.stderr)

    @unittest.skipUnless(os.path.realpath(BUILD).startswith(os.path.realpath(os.path.join(TOP, "build"))), "the build is elsewhere")
    def test_from_checkout(self):
        """Without installing: the newest build folder of the checkout."""
        ran = python("import expar; print(expar.library_path())", os.path.join(TOP, "python"), self.folder)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assertTrue(ran.stdout.startswith(os.path.join(TOP, "build")), ran.stdout)

    def test_named_library(self):
        path = os.path.join(TOP, "python")
        for value in (os.path.join(BUILD, "lib"), os.path.join(BUILD, "lib", "libexpar.so")):
            ran = python("import expar; print(expar.library_path())", path, self.folder, EXPAR_LIBRARY=value)
            self.assertTrue(ran.stdout.startswith(os.path.join(BUILD, "lib", "libexpar.so")), ran.stdout + ran.stderr)

    def test_not_found(self):
        path = os.path.join(TOP, "python")
        for value, part in (("/nowhere/libexpar.so", "EXPAR_LIBRARY=/nowhere/libexpar.so: no such file"),
                            (self.folder, "the folder holds no libexpar.so.0"),
                            (os.path.abspath(__file__), "set EXPAR_LIBRARY to libexpar.so")):
            ran = python(ONE_LINE, path, self.folder, EXPAR_LIBRARY=value)
            self.assertEqual(ran.returncode, 1)
            last = ran.stderr.strip().split("\n")[-1]
            self.assertTrue(last.startswith("ImportError: "), ran.stderr)
            self.assertIn(part, last)

    def test_another_version(self):
        ran = python("from expar import _library\n_library.package_version = lambda: '99.0.0'\n_library.load()",
                     os.path.join(TOP, "python"), self.folder, EXPAR_LIBRARY=os.path.join(BUILD, "lib"))
        self.assertIn("this package needs 99.0.0: build both from the same sources", ran.stderr)

    def test_errors(self):
        import pickle

        from expar import ExparError, UnsupportedError
        from expar._errors import exception_of

        self.assertIsInstance(exception_of(-1, "x"), ValueError)
        self.assertIsInstance(exception_of(-2, "x"), MemoryError)
        self.assertIsInstance(exception_of(-8, "x"), NotImplementedError)
        self.assertIsInstance(exception_of(-8, "x"), UnsupportedError)
        error = pickle.loads(pickle.dumps(exception_of(-6, "rank 1 is lost")))
        self.assertIsInstance(error, ExparError)
        self.assertEqual((error.code, error.code_name, str(error)), (-6, "XP_ECOMM", "rank 1 is lost"))


if __name__ == "__main__":
    unittest.main()
