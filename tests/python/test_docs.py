"""What the pages and examples show works: the Python of the how-to, the example both ways, the checks of the comparison."""
import contextlib
import io
import os
import re
import runpy
import socket
import subprocess
import sys
import unittest

TOP = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))


def run(*arguments, ranks=1):
    """Standard output of rank 0. Ranks are started with torchrun's variables: Debian's torchrun does not work with its Python."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [subprocess.Popen([sys.executable, *arguments], cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  env={**os.environ, **world, "OMP_NUM_THREADS": "1", "RANK": str(r), "LOCAL_RANK": str(r)})
                 for r in range(ranks)]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    if any(process.returncode != 0 for process in processes):
        raise AssertionError(f"{arguments}: " + "\n".join(outputs))
    return outputs[0]


def losses(text):
    return [float(value) for value in re.findall(r"loss ([\d.]+)", text)]


class Pages(unittest.TestCase):
    def test_how_to(self):
        """The page's Python, block after block, as somebody who pastes it."""
        with open(os.path.join(TOP, "docs", "howto", "use-from-pytorch.md"), encoding="utf-8") as page:
            blocks = re.findall(r"^```python\n(.*?)^```", page.read(), re.S | re.M)
        self.assertGreaterEqual(len(blocks), 4)
        names = {}
        for block in blocks:
            exec(compile(block, "use-from-pytorch.md", "exec"), names)
        self.assertIsNotNone(names["prob"].grad)
        self.assertIsNotNone(names["tokens"].grad)

    def test_example(self):
        """Before, after, and after on two ranks: the same losses up to rounding."""
        example = os.path.join("examples", "python", "moe_layer.py")
        dense = losses(run(example, "--moe", "dense", "--steps", "12", "--device", "cpu"))
        self.assertLess(dense[-1], 0.6 * dense[0])
        for ranks in (1, 2):
            got = losses(run(example, "--moe", "expar", "--steps", "12", "--device", "cpu", ranks=ranks))
            self.assertEqual(len(got), len(dense))
            for a, b in zip(got, dense):
                self.assertLess(abs(a - b), 1e-3, (got, dense))

    def test_recipe_checks(self):
        def shown(check):
            text, checks = io.StringIO(), runpy.run_path(os.path.join(TOP, "examples", "python", "recipe_checks.py"))
            with contextlib.redirect_stdout(text):
                checks[check]()
            return text.getvalue()

        dropped, plain, ours = ((float(g), float(l)) for g, l in
                                re.findall(r"\|d gate\| ([\d.]+) +loss ([\d.]+)", shown("router")))
        self.assertEqual(dropped[0], 0)
        self.assertGreater(ours[0], 0.01)
        self.assertLess(ours[1], 0.05 * dropped[1])
        self.assertAlmostEqual(ours[1], plain[1], places=3)
        bias = re.findall(r"([\d.]+) -> ([\d.]+) +\|bias\| ([\d.]+)", shown("bias"))
        self.assertEqual((bias[0][0], float(bias[0][2])), (bias[0][1], 0))
        self.assertLess(float(bias[1][1]), float(bias[1][0]))
        ranks = [float(value) for value in re.findall(r"^  \S.*? {2,}([\d.]+)   [\d.]+$", shown("balance"), re.M)]
        self.assertEqual(ranks[:2], [1.0, 8.0])
        self.assertAlmostEqual(ranks[2], 5.34, delta=0.05)  # R (1 - C(E - E/R, K) / C(E, K))
        self.assertIn("sequence   4096:   23.1    27.9  1.21", shown("flops"))


if __name__ == "__main__":
    unittest.main()
