"""Reports in a headless Chromium: what is drawn, what a pointer shows, that nothing is asked of anybody, how long a page takes.
usage: report_page.py EXPAR ONE RESTARTED A,B,C LONG [FOLDER for screenshots]"""
import json
import os
import re
import signal
import subprocess
import sys
import time

from chromium import Browser

EXPAR, ONE, RESTARTED, THREE, LONG = sys.argv[1:6]
SHOTS = sys.argv[6] if len(sys.argv) > 6 else None
LONG_S = 3.0


def check(what, holds, *seen):
    if not holds:
        sys.exit(f"FAILED: {what}: {' '.join(str(s) for s in seen)}")


def report(*runs):
    path = os.path.abspath("page.html")
    subprocess.run([EXPAR, "report", *runs, "--out", path], check=True, stdout=subprocess.DEVNULL)
    return "file://" + path


def quiet(browser, url):
    check("requests", browser.requests == [url], browser.requests[:5])
    check("console messages", not browser.complaints, *browser.complaints[:5])


def shoot(browser, name):
    if SHOTS:
        browser.screenshot(os.path.join(SHOTS, name + ".png"))


def titles(browser):
    return browser.js("[...document.querySelectorAll('h2')].map((e) => e.firstChild.textContent)")


def tip(browser, chart):
    return browser.js(f"(document.querySelector('#chart-{chart} .tip:not([hidden])') || {{}}).innerText || ''")


def drawn(browser, chart):
    """How many different colours a chart's canvas has: an empty one has few."""
    return browser.js("(() => { const c = document.querySelector('#chart-%s canvas'); const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
                      " const seen = new Set(); for (let i = 0; i < d.length; i += 4) if (d[i + 3] > 0) seen.add(d[i] << 16 | d[i + 1] << 8 | d[i + 2]); return seen.size; })()" % chart)


def metrics(run):
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_one(browser):
    url = report(ONE)
    browser.open(url)
    quiet(browser, url)
    wanted = ["Loss", "Gradient norm", "Learning rate", "Tokens per second", "Time of a step", "Memory", "Expert-parallel bytes",
              "Waiting for peers", "Time by phase", "Expert load"]
    check("charts", titles(browser) == wanted, titles(browser))
    for chart in ("loss", "grad_norm", "lr", "tps", "time_s", "memory_gib", "ep_bytes", "phases", "load"):
        check("an empty chart", drawn(browser, chart) > 2, chart)
    # The value under the pointer is one of the file's.
    browser.hover("#chart-loss .u-over", 0.5, 0.5)
    shown = re.match(r"step (\d+)\n.*?\s([\d.]+)", tip(browser, "loss"))
    check("the tip of the loss", shown, tip(browser, "loss"))
    row = next(r for r in metrics(ONE) if r["step"] == int(shown[1]))
    check("the loss in the tip", abs(row["loss"] - float(shown[2])) < 1e-3, row["loss"], shown[2])
    browser.hover("#chart-load .u-over", 0.5, 0.25)
    shown = re.search(r"layer (\d+), step (\d+)\n.*\s([\d.]+)", tip(browser, "load"))
    check("the tip of the load", shown, tip(browser, "load"))
    row = next(r for r in metrics(ONE) if r["step"] == int(shown[2]))
    check("the load in the tip", abs(row["moe_load_max_over_mean"][int(shown[1])] - float(shown[3])) < 0.01, row, shown[0])
    browser.hover("#chart-phases .u-over", 0.5, 0.9)
    check("the tip of the phases", "forward and backward" in tip(browser, "phases"), tip(browser, "phases"))
    # Controls.
    for axis in ("tokens", "time", "step"):
        browser.js(f"document.querySelector('input[value={axis}]').click()")
        browser.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
        check("an empty chart", drawn(browser, "loss") > 2, axis)
    browser.js("document.getElementById('log').click(); const s = document.getElementById('smoothing'); s.value = 0.9; s.dispatchEvent(new Event('input'))")
    browser.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
    browser.hover("#chart-loss .u-over", 0.5, 0.5)
    check("smoothing", "unsmoothed" in tip(browser, "loss"), tip(browser, "loss"))
    x, y = browser.hover("#chart-loss .u-over", 0.3, 0.5)
    for kind, dx in (("mousePressed", 0), ("mouseMoved", 150), ("mouseReleased", 150)):
        browser.call("Input.dispatchMouseEvent", {"type": kind, "x": x + dx, "y": y, "button": "left", "buttons": 1, "clickCount": 1})
    check("zoom", browser.js("page.zoomed !== null && !document.getElementById('whole').hidden"))
    browser.js("document.getElementById('whole').click()")
    check("the whole run", browser.js("page.zoomed === null"))
    check("configuration", browser.js("document.querySelector('details').textContent.includes('training.steps')"))
    quiet(browser, url)
    shoot(browser, "one-light")
    browser.look(1280, 900, dark=True)
    browser.wait("getComputedStyle(document.body).backgroundColor === 'rgb(16, 19, 24)'")
    shoot(browser, "one-dark")
    for dark in (False, True):
        browser.look(390, 844, dark=dark, phone=True)
        browser.open(url)
        check("wider than a phone", browser.js("document.documentElement.scrollWidth") <= 390, browser.js("document.documentElement.scrollWidth"))
        shoot(browser, "one-phone-dark" if dark else "one-phone-light")
    browser.look(1280, 900)


def test_restart(browser):
    url = report(RESTARTED)
    browser.open(url)
    quiet(browser, url)
    resumed = [r for r in metrics(RESTARTED) if r.get("resumed_step", 0) > 0]
    check("the run was resumed once", len(resumed) == 1, resumed)
    marks = browser.js("report.runs[0].restarts")
    check("the mark of the restart", len(marks) == 1 and marks[0][0] == resumed[0]["step"] and marks[0][3] == resumed[0]["resumed_step"], marks)
    check("restarts in the table", browser.js("document.querySelector('#runs td[data-label=restarts]').textContent") == "1")
    steps = len(metrics(RESTARTED))
    browser.hover("#chart-loss .u-over", resumed[0]["step"] / steps, 0.5)
    check("the tip of the restart", f"resumed from step {resumed[0]['resumed_step']}" in tip(browser, "loss"), tip(browser, "loss"))
    shoot(browser, "restarted")


def test_three(browser):
    runs = THREE.split(",")
    url = report(*runs)
    browser.open(url)
    quiet(browser, url)
    names = [os.path.basename(r) for r in runs]
    rows = browser.js("[...document.querySelectorAll('#runs tbody label')].map((e) => e.textContent)")
    check("rows of runs", rows == names, rows)
    browser.hover("#chart-loss .u-over", 0.5, 0.5)
    check("all runs in the tip", all(n in tip(browser, "loss") for n in names), tip(browser, "loss"))
    differing = browser.js("[...document.querySelectorAll('#differences tr')].map((r) => [...r.cells].map((c) => c.textContent))")
    lr = [row for row in differing if row[0] == "optimizer.lr"]
    check("the learning rates differ", len(lr) == 1 and len(set(lr[0][1:])) == 3, differing)
    check("what is equal is not a difference", not any(row[0] == "training.seq_len" for row in differing), differing)
    browser.js("document.querySelector('#runs input').click()")
    browser.hover("#chart-loss .u-over", 0.5, 0.5)
    check("a run that is turned off", names[0] not in tip(browser, "loss").split(), tip(browser, "loss"))
    browser.js("document.querySelector('#runs input').click()")
    browser.js("const c = document.querySelector('#loads select[aria-label=run]'); c.value = '2'; c.dispatchEvent(new Event('change'))")
    check("the run of the heat map", browser.js("page.run") == 2)
    check("an empty chart", drawn(browser, "load") > 2)
    quiet(browser, url)
    shoot(browser, "three")


def test_long(browser):
    url = report(LONG)
    size = os.path.getsize(url.removeprefix("file://"))
    check("the size of 100,000 steps", size < 4e6, size)
    took = LONG_S
    for _ in range(5):  # other tests may run at the same time
        took = min(took, browser.open(url))
    quiet(browser, url)
    check("100,000 steps open in time", took < LONG_S, took)
    check("an empty chart", drawn(browser, "loss") > 2)
    shoot(browser, "long")
    print(f"100,000 steps: {took:.2f} s, {size / 1e6:.1f} MB")


def test_following(browser):
    """The page of --serve takes up what the run writes."""
    os.makedirs("live", exist_ok=True)
    lines = open(os.path.join(ONE, "metrics.jsonl"), encoding="utf-8").readlines()
    server = subprocess.Popen([EXPAR, "report", "live", "--serve", "0"], stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().split()[0]
        browser.open(url)
        check("a run without a step", "no step yet" in browser.js("document.getElementById('notes').textContent"))
        with open("live/metrics.jsonl", "w", encoding="utf-8") as file:
            file.writelines(lines[:5])
        browser.wait("document.getElementById('live').textContent.includes('step 5')")
        with open("live/metrics.jsonl", "a", encoding="utf-8") as file:
            file.writelines(lines[5:9])
        browser.wait("document.getElementById('live').textContent.includes('step 9')")
        check("points of a followed run", browser.js("report.runs[0].step.length") == 9)
        check("an empty chart", drawn(browser, "loss") > 2)
        check("requests elsewhere", all(r.startswith(url) for r in browser.requests), browser.requests)
        check("console messages", not browser.complaints, *browser.complaints[:5])
    finally:
        server.send_signal(signal.SIGINT)
    check("the exit code after Ctrl-C", server.wait(10) == 0, server.returncode)
    browser.wait("document.getElementById('live').className === 'lost'")


def main():
    with Browser() as browser:
        for test in (test_one, test_restart, test_three, test_long, test_following):
            began = time.monotonic()
            test(browser)
            print(f"{test.__name__}: {time.monotonic() - began:.1f} s")


main()
