"""silu(a) * b * p in PyTorch (eager, torch.compile) and Triton: the lines to compare with
`checkop --device cuda --bench --op 'silu*'`. Median device time, caches flushed before each run."""

import statistics
import sys

import torch
import triton
import triton.language as tl

WARM_UP, RUNS = 5, 60


def eager(x, p):
    a, b = x.chunk(2, dim=1)
    return (torch.nn.functional.silu(a.float()) * b.float() * p[:, None]).to(x.dtype)


compiled = torch.compile(eager, dynamic=False)


@triton.jit
def forward_kernel(x, p, out, n, F: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = at < n
    row, column = at // F, at % F
    a = tl.load(x + row * 2 * F + column, mask=valid, other=0).to(tl.float32)
    b = tl.load(x + row * 2 * F + F + column, mask=valid, other=0).to(tl.float32)
    prob = tl.load(p + row, mask=valid, other=0)
    tl.store(out + at, (a * tl.sigmoid(a) * b * prob).to(out.dtype.element_ty), mask=valid)


def in_triton(x, p):
    rows, width = x.shape[0], x.shape[1] // 2
    out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    block = 2048
    forward_kernel[(triton.cdiv(out.numel(), block),)](x, p, out, out.numel(), width, block)
    return out


def median_ms(call, flush):
    times = []
    for i in range(WARM_UP + RUNS):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if i >= WARM_UP:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def backward_of(function, x, p, dout):
    x = x.detach().requires_grad_()
    p = p.detach().requires_grad_()
    out = function(x, p)
    return lambda: torch.autograd.grad(out, (x, p), dout, retain_graph=True)


def main():
    if not torch.cuda.is_available():
        sys.exit("no GPU")
    torch.manual_seed(1)
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    source = torch.randn(256 << 20, device="cuda").to(torch.bfloat16)
    target = torch.empty_like(source)
    ms = median_ms(lambda: target.copy_(source), flush)
    copy = 2 * source.numel() * source.element_size() / ms * 1e-9
    print(f"copy {copy:.2f} TB/s; torch {torch.__version__}, triton {triton.__version__}")
    del source, target
    for rows in (16384, 262144):
        width = 768
        x = 3 * torch.randn(rows, 2 * width, device="cuda").to(torch.bfloat16)
        p = torch.rand(rows, device="cuda")
        dout = torch.randn(rows, width, device="cuda").to(torch.bfloat16)
        want = eager(x, p).float()
        for name, function in (("eager", eager), ("compile", compiled), ("triton", in_triton)):
            error = (function(x, p).float() - want).norm() / want.norm()
            ms = median_ms(lambda: function(x, p), flush)
            rate = rows * width * 6 / ms * 1e-9
            print(
                f"silu_gate_prob_forward  {rows}x{width} bf16  {name:8} {ms * 1e3:9.1f} us "
                f"{rate:6.2f} TB/s {100 * rate / copy:6.1f} % of copy  error {error:.1e}"
            )
        for name, function in (("eager", eager), ("compile", compiled)):
            ms = median_ms(backward_of(function, x, p, dout), flush)
            rate = rows * width * 10 / ms * 1e-9  # a, b, dout read, da, db written
            print(
                f"silu_gate_prob_backward {rows}x{width} bf16  {name:8} {ms * 1e3:9.1f} us "
                f"{rate:6.2f} TB/s {100 * rate / copy:6.1f} % of copy"
            )


if __name__ == "__main__":
    main()
