#!/usr/bin/env python3
"""The gap between the bf16 and fp32 loss curves of expar beside PyTorch's own.

usage: peer_gaps.py EXPAR_FP32.jsonl EXPAR_BF16.jsonl PEER_FP32.json PEER_BF16.json

The gap is the mean over steps of |loss in bf16 - loss in fp32|. Exit code 1 when ours is more than twice PyTorch's over
all steps, or when the fp32 curves of both differ in the first ten steps by more than 1e-4 relative (rounding gives about
1e-7 there, other mathematics 1e-3 and more).
"""
import json
import sys

MOST_RATIO = 2.0
FIRST, MOST_FIRST = 10, 1e-4
WINDOW = 50


def expar_losses(path):
    with open(path) as lines:
        return [json.loads(line)["loss"] for line in lines]


def peer_losses(path):
    with open(path) as f:
        return json.load(f)["losses"]


def mean_gap(a, b):
    return sum(abs(x - y) for x, y in zip(a, b)) / len(a)


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    e32, e16 = expar_losses(sys.argv[1]), expar_losses(sys.argv[2])
    p32, p16 = peer_losses(sys.argv[3]), peer_losses(sys.argv[4])
    n = len(e32)
    if n == 0 or any(len(x) != n for x in (e16, p32, p16)):
        sys.exit(f"error: the curves have {len(e32)}, {len(e16)}, {len(p32)} and {len(p16)} steps")
    print(f"{'step':>5} {'expar fp32':>11} {'bf16 -':>10} {'PyTorch fp32':>13} {'bf16 -':>10} {'fp32 expar/PyTorch - 1':>23}")
    shown = sorted({1, 2, 3, 5, 10, 20, *range(WINDOW, n + 1, WINDOW), n} & set(range(1, n + 1)))
    for s in shown:
        i = s - 1
        print(f"{s:5} {e32[i]:11.6f} {e16[i] - e32[i]:10.6f} {p32[i]:13.6f} {p16[i] - p32[i]:10.6f} "
              f"{e32[i] / p32[i] - 1:23.1e}")
    print("mean |bf16 - fp32|:   steps        expar      PyTorch   ratio   |expar - PyTorch| in fp32, in bf16")
    windows = [(a, min(a + WINDOW, n)) for a in range(0, n, WINDOW)] + [(0, n)]
    for a, b in windows:
        ours, theirs = mean_gap(e16[a:b], e32[a:b]), mean_gap(p16[a:b], p32[a:b])
        ratio = ours / theirs if theirs > 0 else float("inf")
        print(f"{'':20} {a + 1:4}-{b:<4} {ours:12.6f} {theirs:12.6f} {ratio:7.2f}   "
              f"{mean_gap(e32[a:b], p32[a:b]):17.6f} {mean_gap(e16[a:b], p16[a:b]):8.6f}")
    first = max(abs(a / b - 1) for a, b in zip(e32[:FIRST], p32[:FIRST]))
    near, same = ratio <= MOST_RATIO, first <= MOST_FIRST
    print(f"fp32 of both, first {min(FIRST, n)} steps: {first:.1e} apart at most, {MOST_FIRST:.0e} allowed: "
          f"{'right' if same else 'WRONG'}")
    print(f"gap in bf16: {ratio:.2f} times PyTorch's, {MOST_RATIO:.0f} allowed: {'right' if near else 'WRONG'}")
    sys.exit(not (near and same))


if __name__ == "__main__":
    main()
