#!/usr/bin/env bash
# Every `$ expar plan ...` that a page shows with its output is run: each line shown is a line of the output, in that order.
# A page may leave lines out, with "..." in their place.
set -eu
command -v python3 > /dev/null || { echo "skipped: no python3"; exit 77; }
cd "$SOURCE"
python3 - "$EXPAR" <<'PY'
import glob, shlex, subprocess, sys

expar = sys.argv[1]
n_examples = 0
wrong = []


def examples(page):
    """(line number, command, lines shown below it) of each in a block of code."""
    command, shown, at = None, [], 0
    for number, line in enumerate(open(page, encoding="utf-8"), 1):
        text = line.strip()
        if text.startswith("$ ") or text.startswith("```"):
            if command and any(s != "..." for s in shown):
                yield at, command, shown
            command, shown, at = None, [], number
            if text.startswith("$ expar plan "):
                command = text[2:]
        elif command and text:
            shown.append(text)


for page in ["README.md", *sorted(glob.glob("docs/*.md") + glob.glob("docs/*/*.md"))]:
    for at, command, shown in examples(page):
        n_examples += 1
        words = shlex.split(command, comments=True)
        run = subprocess.run([expar, *words[1:]], capture_output=True, text=True)
        rest = iter([line.strip() for line in (run.stdout + run.stderr).splitlines()])
        for line in shown:
            if line != "..." and line not in rest:
                wrong.append(f"{page}:{at}: {command}\n  shows: {line}\n  prints:\n{run.stdout}{run.stderr}")
                break
assert n_examples >= 4, f"only {n_examples} examples found"
if wrong:
    sys.exit("FAILED: a page shows what the program does not print\n" + "\n".join(wrong))
print(f"{n_examples} printed plans are true")
PY
