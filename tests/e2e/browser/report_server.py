"""The server of expar report --serve, as a client sees it. usage: report_server.py EXPAR RUN"""
import http.client
import json
import signal
import socket
import subprocess
import sys

EXPAR, RUN = sys.argv[1:3]


def check(what, holds, *seen):
    if not holds:
        sys.exit(f"FAILED: {what}: {' '.join(str(s)[:300] for s in seen)}")


def get(port, path, method="GET", headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers=headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read(), answer


def raw(port, data):
    with socket.create_connection(("127.0.0.1", port), 10) as s:
        s.sendall(data)
        answer = b""
        try:
            while chunk := s.recv(65536):
                answer += chunk
        except ConnectionResetError:
            pass
        return answer


def listeners(port):
    """Local addresses that listen on the port, from /proc/net: hexadecimal."""
    found = []
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = open(path, encoding="ascii").readlines()[1:]
        except OSError:
            continue
        for line in lines:
            address, state = line.split()[1], line.split()[3]
            if state == "0A" and int(address.split(":")[1], 16) == port:
                found.append(address.split(":")[0])
    return found


server = subprocess.Popen([EXPAR, "report", RUN, "--serve", "0"], stdout=subprocess.PIPE, text=True)
try:
    first = server.stdout.readline()
    port = int(first.split("127.0.0.1:")[1].split("/")[0])
    check("it listens on the loopback address alone", listeners(port) == ["0100007F"], listeners(port))
    status, body, answer = get(port, "/")
    check("the page", status == 200 and b"<!doctype html>" in body and answer.getheader("Content-Type").startswith("text/html"), status)
    status, body, _ = get(port, "/data")
    check("the numbers", status == 200 and len(json.loads(body)["runs"]) == 1, status, body)
    version = json.loads(body)["version"]
    check("nothing new", get(port, f"/data?version={version}")[0] == 204)
    check("something new", get(port, f"/data?version={version - 1}")[0] == 200)
    check("another path", get(port, "/etc/passwd")[0] == 404)
    check("another path", get(port, "/../metrics.jsonl")[0] == 404)
    check("another method", get(port, "/", "POST")[0] == 405)
    check("another site's name", get(port, "/", headers={"Host": "example.org"})[0] == 400)
    check("no host", raw(port, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400"))
    check("a request without an end", raw(port, b"GET / HTTP/1.1\r\nX: " + b"x" * 20000).startswith(b"HTTP/1.1 431"))
    check("noise", raw(port, b"\x16\x03\x01\x00\x00\r\n\r\n").startswith(b"HTTP/1.1 405"))
    check("it still answers", get(port, "/data")[0] == 200)
    second = subprocess.run([EXPAR, "report", RUN, "--serve", str(port)], capture_output=True, text=True, timeout=20)
    check("a port that is taken", second.returncode == 1 and second.stderr.count("\n") == 1 and f"port {port} of 127.0.0.1 is taken" in second.stderr, second)
finally:
    server.send_signal(signal.SIGINT)
check("Ctrl-C ends it with 0", server.wait(10) == 0, server.returncode)
