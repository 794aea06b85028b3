"""A headless Chromium driven over its DevTools pipe: no library needed. It sees every request, console message and exception."""
import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time


def find():
    """Chromium's path, or None."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if shutil.which(name):
            return shutil.which(name)
    return None


class Browser:
    """One page of one browser; a context manager."""

    def __init__(self, width=1280, height=900, dark=False, phone=False):
        self.profile = tempfile.mkdtemp(prefix="expar_chromium.")
        to_browser, self.write_fd = os.pipe()
        self.read_fd, from_browser = os.pipe()

        def give_pipe():  # its descriptors 3 and 4
            os.dup2(to_browser, 30), os.dup2(from_browser, 31)
            os.dup2(30, 3), os.dup2(31, 4)

        self.process = subprocess.Popen(
            [find(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--remote-debugging-pipe",
             "--user-data-dir=" + self.profile, "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=give_pipe, close_fds=False)
        os.close(to_browser), os.close(from_browser)
        self.buffer, self.next_id, self.events, self.requests, self.complaints = b"", 0, [], [], []
        targets = self.call("Target.getTargets", session=None)["targetInfos"]
        target = next(t for t in targets if t["type"] == "page")["targetId"]
        self.session = None
        self.session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(domain + ".enable")
        self.look(width, height, dark, phone)

    def look(self, width, height, dark=False, phone=False):
        self.call("Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone})
        self.call("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.send("Browser.close", {}, None)
        except OSError:
            pass
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        os.close(self.write_fd), os.close(self.read_fd)
        shutil.rmtree(self.profile, ignore_errors=True)

    def send(self, method, parameters, session):
        self.next_id += 1
        message = {"id": self.next_id, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.write_fd, data):]
        return self.next_id

    def receive(self, timeout):
        """The next message; None when none comes in time."""
        until = time.monotonic() + timeout
        while b"\0" not in self.buffer:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.read_fd], [], [], left)[0]:
                return None
            data = os.read(self.read_fd, 1 << 20)
            if not data:
                raise RuntimeError("Chromium has ended")
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(message)
        self.note(message)
        return message

    def note(self, message):
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(parameters["exceptionDetails"])[:600])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append("console." + parameters["type"] + " " + json.dumps(parameters["args"])[:400])
        elif method == "Log.entryAdded":
            self.complaints.append(parameters["entry"]["text"][:400])
        if method:
            self.events.append(method)

    def call(self, method, parameters=None, session="", timeout=60):
        number = self.send(method, parameters or {}, getattr(self, "session", None) if session == "" else session)
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            message = self.receive(until - time.monotonic())
            if message and message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(method + ": " + json.dumps(message["error"]))
                return message["result"]
        raise RuntimeError(method + ": no answer in time")

    def js(self, expression):
        result = self.call("Runtime.evaluate", {"expression": expression, "returnByValue": True, "awaitPromise": True})
        if "exceptionDetails" in result:
            raise RuntimeError(expression + ": " + json.dumps(result["exceptionDetails"])[:600])
        return result["result"].get("value")

    def wait(self, expression, timeout=20):
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if self.js(expression):
                return
            time.sleep(0.05)
        raise RuntimeError("not in time: " + expression)

    def open(self, url):
        """Seconds until the page is drawn."""
        self.requests.clear(), self.complaints.clear()
        began = time.monotonic()
        self.call("Page.navigate", {"url": url})
        self.wait("document.documentElement?.dataset?.ready === 'yes'")
        self.js("new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(1), 0)))")
        return time.monotonic() - began

    def hover(self, selector, across=0.5, down=0.5):
        """The pointer over a part of an element."""
        box = self.js("(() => { const e = document.querySelector(%s); e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()" % json.dumps(selector))
        x, y = box[0] + across * box[2], box[1] + down * box[3]
        for dx in (-3, 0):
            self.call("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x + dx, "y": y})
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
        return x, y

    def screenshot(self, path, whole=True):
        parameters = {"format": "png"}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            parameters.update(captureBeyondViewport=True, clip={"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1})
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.call("Page.captureScreenshot", parameters)["data"]))
