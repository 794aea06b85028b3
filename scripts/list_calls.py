#!/usr/bin/env python3
"""Which file of src/ includes which, and which functions it calls across files and folders.

usage: scripts/list_calls.py [--check]        circles only; exit 1 on one that is not allowed
       scripts/list_calls.py --files [GLOB]   each file: what it includes and calls
       scripts/list_calls.py --folders        calls between folders, with counts
       scripts/list_calls.py --unused         functions that nothing refers to, or tests alone
       scripts/list_calls.py --dot            the folders as a graph for Graphviz

No circle may exist between folders (a folder of src/ with all that is below it), by includes and calls together.
Between files only calls count, since headers hold types. A circle between files must be named in CONTRIBUTING.md, in the
list under "Circles between files", with a reason. Names (xp_...) are found by text: a function that is named inside a
table counts as called. With --check, a function that nothing refers to is an error too.
"""
import collections
import fnmatch
import os
import re
import subprocess
import sys

SOURCES = (".c", ".h", ".cu", ".cuh")
# A function definition: type and name begin a line, the body's brace follows the parameters.
DEFINITION = re.compile(r'^(?:extern "" )?(?!static\b)[A-Za-z_][\w \*]*?[ \*](xp_\w+)\([^;{}]*?\)\s*\{', re.M)
INCLUDE = re.compile(r'^#\s*include "([^"]+)"', re.M)
WORD = re.compile(r"\bxp_\w+")


def strip(text):
    """Without comments, strings and preprocessor guards; the number of lines stays."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group(0).count("\n"), text, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    return re.sub(r'"(?:\\.|[^"\\\n])*"', '""', text)


def tracked(*folders):
    names = subprocess.check_output(["git", "ls-files", *folders], text=True).split("\n")
    return [n for n in names if n.endswith(SOURCES) and os.path.exists(n)]


def folder(path):
    return path.split("/")[1] if path.count("/") > 1 else "."


class Tree:
    def __init__(self):
        self.files = tracked("src")
        self.text, self.words, self.includes = {}, {}, collections.defaultdict(set)
        self.defined = {}  # function -> units (several: one per backend)
        for path in self.files:
            raw = open(path, encoding="utf-8").read()
            for name in INCLUDE.findall(raw):
                for base in ("src/", os.path.dirname(path) + "/"):
                    if os.path.exists(base + name):
                        self.includes[path].add(os.path.normpath(base + name))
                        break
            self.text[path] = strip(raw)
            self.words[path] = collections.Counter(WORD.findall(self.text[path]))
            if not path.endswith((".h", ".cuh")):
                for match in DEFINITION.finditer(self.text[path]):
                    self.defined.setdefault(match.group(1), set()).add(path)
        self.defined.pop("main", None)
        self.calls = collections.defaultdict(lambda: collections.defaultdict(set))  # file -> file -> names
        for path in self.files:
            if path.endswith((".h", ".cuh")):
                continue  # a declaration is no call
            for name in self.words[path].keys() & self.defined.keys():
                homes = self.defined[name]
                if path in homes:
                    continue
                for home in homes:
                    self.calls[path][home].add(name)

    def file_graph(self):
        graph = collections.defaultdict(set)
        for path, targets in self.calls.items():
            for target in targets:
                graph[path].add(target)
        return graph

    def folder_graph(self):
        graph = collections.defaultdict(lambda: collections.defaultdict(list))
        for path, targets in self.calls.items():
            for target, names in targets.items():
                if folder(path) != folder(target):
                    graph[folder(path)][folder(target)] += [(path, target, n) for n in sorted(names)]
        for path, targets in self.includes.items():
            for target in targets:
                if folder(path) != folder(target):
                    graph[folder(path)][folder(target)].append((path, target, "#include"))
        return graph


def circles(graph):
    """Strongly connected components of more than one node (Tarjan, without recursion)."""
    index, low, on, stack, found, count = {}, {}, set(), [], [], 0
    for root in sorted(graph):
        if root in index:
            continue
        work = [(root, iter(sorted(graph.get(root, ()))))]
        index[root] = low[root] = count
        count += 1
        stack.append(root)
        on.add(root)
        while work:
            node, edges = work[-1]
            for target in edges:
                if target not in index:
                    index[target] = low[target] = count
                    count += 1
                    stack.append(target)
                    on.add(target)
                    work.append((target, iter(sorted(graph.get(target, ())))))
                    break
                if target in on:
                    low[node] = min(low[node], index[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    part = []
                    while True:
                        part.append(stack.pop())
                        on.discard(part[-1])
                        if part[-1] == node:
                            break
                    if len(part) > 1:
                        found.append(sorted(part))
    return sorted(found)


def allowed_circles():
    """Lists of `src/...` names under "Circles between files" in CONTRIBUTING.md."""
    text = open("CONTRIBUTING.md", encoding="utf-8").read()
    match = re.search(r"^#+ Circles between files\n(.*?)(?=^#|\Z)", text, re.M | re.S)
    items = re.split(r"^\* ", match.group(1), flags=re.M)[1:] if match else []
    return [set(re.findall(r"`(src/[^`]+)`", item)) for item in items]


def check(tree):
    bad = 0
    folders = tree.folder_graph()
    for part in circles({a: set(b) for a, b in folders.items()}):
        bad = 1
        print("circle between folders: " + ", ".join(part))
        for a in part:
            for b in part:
                for path, target, name in folders[a].get(b, [])[:5]:
                    print(f"    {path} > {target}: {name}")
    allowed = allowed_circles()
    for part in circles(tree.file_graph()):
        fine = any(set(part) <= names for names in allowed)
        bad |= not fine
        print(("circle between files (allowed): " if fine else "circle between files: ") + ", ".join(part))
        if not fine:
            for path, targets in sorted(tree.calls.items()):
                for target, names in sorted(targets.items()):
                    if path in part and target in part:
                        print(f"    {path} > {target}: {', '.join(sorted(names))}")
    print("calls: " + ("circles above are not allowed; CONTRIBUTING.md lists those that are" if bad else "ok"))
    return bad


def list_files(tree, glob):
    for path in tree.files:
        if not fnmatch.fnmatch(path, glob):
            continue
        print(path)
        for target in sorted(tree.includes[path]):
            print(f"    includes {target}")
        for target, names in sorted(tree.calls[path].items()):
            print(f"    calls    {target}: {', '.join(sorted(names))}")
    return 0


def list_folders(tree, dot):
    graph = tree.folder_graph()
    if dot:
        print("digraph src {")
    for a in sorted(graph):
        for b in sorted(graph[a]):
            names = {n for _, _, n in graph[a][b] if n != "#include"}
            if dot:
                print(f'    "{a}" -> "{b}" [label="{len(names)}"];')
            else:
                print(f"{a:12} > {b:12} {len(names):4} functions")
    if dot:
        print("}")
    return 0


def list_unused(tree, quiet=False):
    """Counts every mention outside of the definition itself and of declarations in headers."""
    outside = {"product": collections.Counter(), "tests": collections.Counter()}
    for kind, folders in (("product", ["cli", "bench", "examples", "python"]), ("tests", ["tests"])):
        for path in tracked(*folders):
            outside[kind].update(WORD.findall(strip(open(path, encoding="utf-8").read())))
    public = set()
    for path in tracked("include"):
        public |= set(WORD.findall(strip(open(path, encoding="utf-8").read())))
    in_macros = set()
    for path in tree.files:
        for macro in re.findall(r"^#\s*define(?:[^\n]*\\\n)*[^\n]*", tree.text[path], re.M):
            in_macros |= set(WORD.findall(macro))
    bad = 0
    for name, homes in sorted(tree.defined.items()):
        inside = sum(tree.words[p][name] for p in tree.files if not p.endswith((".h", ".cuh"))) - len(homes)
        if inside + outside["product"][name] > 0 or name in public or name in in_macros:
            continue
        bad |= outside["tests"][name] == 0
        if quiet and outside["tests"][name]:
            continue
        print(f"{'tests only' if outside['tests'][name] else 'unused':10} {name}  {', '.join(sorted(homes))}")
    return bad


def main():
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    args = sys.argv[1:]
    if args and args[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    tree = Tree()
    if not args:
        return check(tree)
    if args == ["--check"]:
        return check(tree) | list_unused(tree, quiet=True)
    if args[0] == "--files":
        return list_files(tree, args[1] if len(args) > 1 else "*")
    if args[0] in ("--folders", "--dot"):
        return list_folders(tree, args[0] == "--dot")
    if args[0] == "--unused":
        return list_unused(tree)
    print(__doc__.strip(), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
