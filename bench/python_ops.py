#!/usr/bin/env python3
"""Time the PyTorch package's ops at the shapes of the C benches: the lines to compare with `checkop --bench --op 'silu*'` and
bench_grouped_gemm (one rank), and with `expar bench ep` (several, under torchrun).

    python3 bench/python_ops.py                                          # on the GPU; medians of device time, caches overwritten
    torchrun --nproc-per-node 2 bench/python_ops.py --only exchange
    python3 bench/python_ops.py --device cpu --rows 512 --runs 5
"""
import argparse
import os
import statistics
import time

import torch
import torch.distributed as dist

from expar.ep import Group
from expar.fused_activation import fused_silu_gate_prob_packed
from expar.moe import MoEArgs, MoELayer
from expar.ops import grouped_mm

DIM, HIDDEN, TOKENS = 2048, 768, 32768


class Clock:
    """Times of a call in microseconds: the median of its device time, on the slowest rank, and what the host takes to queue it. On a
    GPU all calls are queued behind a sleeping kernel before the first one starts, as the C benches do it, so that neither the host nor
    ranks that come at different times are measured."""

    SLEEP_CYCLES = 60_000_000  # some 35 ms, longer than the host takes for all calls

    def __init__(self, a):
        self.runs, self.on_gpu = a.runs, a.device == "cuda"
        self.flush = torch.empty((256 << 20) if self.on_gpu else 1, dtype=torch.uint8, device=a.device)

    def on_device(self, call):
        """Device times, and the host's."""
        pairs, hosts = [], []
        for _ in range(2):  # a kernel's first launch loads it, and waits for the GPU
            self.flush.zero_()
            call()
        torch.cuda.synchronize()
        if dist.is_initialized():
            dist.barrier()
        torch.cuda._sleep(self.SLEEP_CYCLES)
        for _ in range(self.runs + 3):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush.zero_()
            start.record()
            begin = time.perf_counter()
            call()
            hosts.append((time.perf_counter() - begin) * 1e6)
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e3 for start, end in pairs], hosts

    def on_host(self, call):
        times = []
        for _ in range(self.runs + 3):
            if dist.is_initialized():
                dist.barrier()
            begin = time.perf_counter()
            call()
            times.append((time.perf_counter() - begin) * 1e6)
        return times, times

    def median(self, call):
        times, hosts = (self.on_device if self.on_gpu else self.on_host)(call)
        mine = (statistics.median(times[3:]), statistics.median(hosts[3:]))
        if not dist.is_initialized():
            return mine
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        return max(times for times, _ in everyone), max(hosts for _, hosts in everyone)


def show(rank, name, times, flops=0.0):
    us, host = times
    if rank == 0:
        print(f"{name:46s} {us:10.1f} us, host {host:7.1f} us" + (f"  {flops / us * 1e-6:7.2f} TFLOP/s" if flops else ""), flush=True)


def backward(out, inputs, gradient):
    return lambda: torch.autograd.grad(out, inputs, gradient, retain_graph=True)


def activation(a, clock, dtype):
    x = torch.randn(a.rows, 2 * HIDDEN, device=a.device).to(dtype).requires_grad_()
    prob = torch.rand(a.rows, 1, device=a.device).requires_grad_()
    out = fused_silu_gate_prob_packed(x, prob)
    show(0, f"silu_gate_prob {a.rows} x {HIDDEN}", clock.median(lambda: fused_silu_gate_prob_packed(x, prob)))
    show(0, f"silu_gate_prob {a.rows} x {HIDDEN} backward", clock.median(backward(out, (x, prob), torch.ones_like(out))))


def gemm(a, clock, dtype):
    """The shapes of bench_grouped_gemm: rows gathered from TOKENS tokens."""
    tokens, shapes = (TOKENS, ((16, 16384), (128, 256))) if a.device == "cuda" else (a.rows, ((a.experts, max(1, a.rows // a.experts)),))
    x = torch.randn(tokens, DIM, device=a.device).to(dtype)
    for experts, each in shapes:
        offsets = torch.arange(experts + 1, device=a.device, dtype=torch.int32) * each
        step = max(1, tokens // each)
        gather = (torch.arange(each, device=a.device).repeat(experts) * step + torch.randint(0, step, (each * experts,), device=a.device)).int()
        weight = torch.randn(experts, 2 * HIDDEN, DIM, device=a.device).to(dtype).requires_grad_()
        flops = 2.0 * each * experts * 2 * HIDDEN * DIM
        out = grouped_mm(x, weight, offsets, gather)
        gradient = torch.randn_like(out)
        name = f"grouped_mm {experts} x {each}, {2 * HIDDEN} x {DIM}"
        show(0, name, clock.median(lambda: grouped_mm(x, weight, offsets, gather)), flops)
        show(0, name + " wgrad", clock.median(backward(out, weight, gradient)), flops)


def exchange(a, clock, dtype, world):
    rank = 0 if world is None else dist.get_rank()
    group = Group(world, num_experts=a.experts, top_k=a.top_k, dim=DIM, max_tokens=a.rows, dtype=dtype, device=a.device,
                  backend=a.backend, num_sms=a.sms)
    topk_idx = torch.rand(a.rows, a.experts, device=a.device).topk(a.top_k).indices
    weight = torch.rand(a.rows, a.top_k, device=a.device)
    x = torch.randn(a.rows, DIM, device=a.device).to(dtype)
    handle = group.plan(topk_idx, weight)
    recv = torch.empty(group.recv_capacity, DIM, device=a.device, dtype=dtype)
    y = torch.randn(group.assignment_capacity, DIM, device=a.device).to(dtype)
    d_weight = torch.rand(group.assignment_capacity, device=a.device)
    out, d_topk_weight = torch.empty_like(x), torch.empty_like(weight)
    show(rank, f"plan {a.rows}, {a.experts} experts, top-{a.top_k}", clock.median(lambda: group.plan(topk_idx, weight)))
    if not group.is_local:
        show(rank, "dispatch", clock.median(lambda: group._move("dispatch", handle, 0, x, recv)))
        show(rank, "combine backward", clock.median(lambda: group._move("combine_backward", handle, 0, x, recv)))
    show(rank, "combine", clock.median(lambda: group._move("combine", handle, 0, y, out)))
    show(rank, "dispatch backward",
         clock.median(lambda: group._dispatch_backward(handle, 0, y, d_weight, out, d_topk_weight)))
    layer = MoELayer(MoEArgs(num_experts=a.experts, top_k=a.top_k, route_norm=True, load_balance_coeff=None), DIM, HIDDEN,
                     group=group)
    leaf = x.detach().requires_grad_()
    show(rank, "MoELayer forward", clock.median(lambda: layer(x)))
    result = layer(leaf)
    show(rank, "MoELayer backward", clock.median(backward(result, (leaf, *layer.parameters()), torch.ones_like(result))))
    group.check()
    del handle, result
    group.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", choices=("activation", "gemm", "exchange"))
    parser.add_argument("--rows", type=int, default=16384, help="rows, and tokens of a rank")
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--sms", type=int, default=0)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--runs", type=int, default=30)
    a = parser.parse_args()
    world, size = None, int(os.environ.get("WORLD_SIZE", 1))
    if a.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if size > 1:
        dist.init_process_group("gloo")
        world = dist.group.WORLD
    torch.manual_seed(int(os.environ.get("RANK", 0)))
    dtype, clock = torch.bfloat16 if a.device == "cuda" else torch.float32, Clock(a)
    if size == 1 and a.only in (None, "activation"):
        activation(a, clock, dtype)
    if size == 1 and a.only in (None, "gemm"):
        gemm(a, clock, dtype)
    if a.only in (None, "exchange"):
        exchange(a, clock, dtype, world)
    if world is not None:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
