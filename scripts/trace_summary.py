#!/usr/bin/env python3
"""Sum the events of traces (DUMP/traces/step-N-rank-R.json) by name. usage: scripts/trace_summary.py FILE...

One table for each row of a trace, longest total first. Shares are of the step: from the first event of the trace to the
end of its last. "(idle)" is the part of the step in which the compute stream ran no op.
"""
import argparse
import json
import math
import os
import sys

COMPUTE_ROW = "ops, compute stream"
IDLE = "(idle)"


class BadTrace(Exception):
    """The text says what is wrong with the file."""


def number(event, key):
    value = event.get(key)
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(float(value)):
            return float(value)
    except OverflowError:
        pass
    raise BadTrace(f'an event without a number "{key}": {json.dumps(event)[:120]}')


def is_row(value):
    return isinstance(value, int) and not isinstance(value, bool)


def span_of(event):
    """Row, name, begin and end in microseconds."""
    name, row = event.get("name"), event.get("tid")
    begin, length = number(event, "ts"), number(event, "dur")
    if not isinstance(name, str) or not is_row(row) or length < 0 or not math.isfinite(begin + length):
        raise BadTrace(f"an event without a name, a row or a length: {json.dumps(event)[:120]}")
    return row, name, begin, begin + length


def name_of_row(event):
    row, args = event.get("tid"), event.get("args")
    if not is_row(row) or not isinstance(args, dict) or not isinstance(args.get("name"), str):
        raise BadTrace(f"a row without a name: {json.dumps(event)[:120]}")
    return row, args["name"]


def read_trace(path):
    """What the file says of itself, the names of its rows, and its spans."""
    try:
        with open(path, encoding="utf-8") as file:
            trace = json.load(file)
    except OSError as error:
        raise BadTrace(error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise BadTrace(f"no JSON ({error})") from error
    events = trace.get("traceEvents") if isinstance(trace, dict) else None
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise BadTrace('no trace: it has no list of "traceEvents"')
    about = trace.get("otherData")
    rows = dict(name_of_row(e) for e in events if e.get("ph") == "M" and e.get("name") == "thread_name")
    spans = [span_of(e) for e in events if e.get("ph") == "X"]
    if not spans:
        raise BadTrace("a trace without events")
    return about if isinstance(about, dict) else {}, rows, spans


def covered(spans):
    """Microseconds in which at least one span runs."""
    total, until = 0.0, -math.inf
    for _, _, begin, end in sorted(spans, key=lambda span: span[2]):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def sums_by_name(spans):
    """(name, calls, microseconds), longest first."""
    sums = {}
    for _, name, begin, end in spans:
        calls, total = sums.get(name, (0, 0.0))
        sums[name] = (calls + 1, total + end - begin)
    return sorted(((name, *sum_) for name, sum_ in sums.items()), key=lambda line: (-line[2], line[0]))


def print_row(title, lines, step_us):
    width = max(len(title), *(len(line[0]) for line in lines))
    print(f"\n{title:<{width}} {'calls':>8} {'total ms':>12} {'share':>7} {'mean us':>12}")
    for name, calls, total in lines:
        mean = f"{total / calls:12.1f}" if calls else f"{'':12}"
        share = 100 * total / step_us if step_us > 0 else 0.0
        print(f"{name:<{width}} {calls or '':>8} {total / 1e3:12.3f} {share:6.1f}% {mean}".rstrip())


def print_trace(path):
    about, rows, spans = read_trace(path)
    step_us = max(span[3] for span in spans) - min(span[2] for span in spans)
    print(f"{path}: step {about.get('step', '?')}, rank {about.get('rank', '?')}, {step_us / 1e3:.3f} ms")
    if about.get("events_left_out"):
        print(f"{about['events_left_out']} events had no room: sums are too small")
    for row in sorted({span[0] for span in spans} | set(rows)):
        own = [span for span in spans if span[0] == row]
        lines = sums_by_name(own)
        if rows.get(row) == COMPUTE_ROW:
            lines.append((IDLE, 0, max(0.0, step_us - covered(own))))
        if lines:
            print_row(rows.get(row, f"row {row}"), lines, step_us)


def main():
    parser = argparse.ArgumentParser(description="Sum the events of traces by name, a table for each row.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="DUMP/traces/step-N-rank-R.json")
    for i, path in enumerate(parser.parse_args().files):
        if i > 0:
            print()
        try:
            print_trace(path)
        except BadTrace as error:
            sys.stdout.flush()
            sys.exit(f"trace_summary: {path}: {error}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(f"trace_summary: cannot write: {error.strerror}")
