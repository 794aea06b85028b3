"""What the tests share: devices, a dense mixture of experts in plain torch, and ranks as processes."""
import contextlib
import os
import tempfile
import traceback
import unittest

import torch
import torch.nn.functional as F
from torch import nn

torch.set_num_threads(1)  # the tests' ranks share few cores


def devices():
    """The devices that expar can use here."""
    from expar import _device

    found = ["cpu"]
    if torch.cuda.is_available():
        try:
            _device.of(torch.device("cuda"))
            found.append("cuda")
        except NotImplementedError as reason:
            print(f"no CUDA cases: {reason}")
    return found


class TestCase(unittest.TestCase):
    def assert_close(self, got, want, relative=1e-5, what=""):
        """The largest difference, relative to the largest value."""
        self.assertEqual(got.shape, want.shape, what)
        self.assertFalse(bool(torch.isnan(got).any()), f"{what}: NaN")
        if want.numel() == 0:
            return
        scale = max(float(want.detach().abs().max()), 1e-30)
        error = float((got.detach().float() - want.detach().float()).abs().max())
        self.assertLessEqual(error, relative * scale, what)


class DenseMoE(nn.Module):
    """Every expert in a loop, with Hugging Face's names: what expar.moe.MoELayer must equal."""

    def __init__(self, num_experts, top_k, dim, hidden_dim, route_norm=False, score_func="softmax", dtype=torch.float32,
                 device="cpu"):
        super().__init__()
        make = lambda i, o: nn.Linear(i, o, bias=False, dtype=dtype, device=device)
        self.top_k, self.route_norm, self.score_func = top_k, route_norm, score_func
        self.gate = make(dim, num_experts)
        self.experts = nn.ModuleList(nn.ModuleDict({"gate_proj": make(dim, hidden_dim), "up_proj": make(dim, hidden_dim),
                                                    "down_proj": make(hidden_dim, dim)}) for _ in range(num_experts))

    def forward(self, x):
        logits = x.float() @ self.gate.weight.float().t()
        scores = torch.softmax(logits, -1) if self.score_func == "softmax" else torch.sigmoid(logits)
        weight, topk_idx = torch.topk(scores, self.top_k, dim=-1)
        if self.route_norm:
            weight = weight / weight.sum(-1, keepdim=True)
        return self.run_experts(x, topk_idx, weight)

    def run_experts(self, x, topk_idx, weight):
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for e, expert in enumerate(self.experts):
            token, k = (topk_idx == e).nonzero(as_tuple=True)
            rows = x[token]
            h = F.silu(expert["gate_proj"](rows)) * expert["up_proj"](rows)
            h = (h.float() * weight[token, k][:, None]).to(x.dtype)
            out = out.index_add(0, token, expert["down_proj"](h).float())
        return out.to(x.dtype)

    def stacked_gradients(self):
        """Of w13 [E, 2F, D] and w2 [E, D, F]; zeros for experts that no token reached."""
        grad = lambda linear: torch.zeros_like(linear.weight) if linear.weight.grad is None else linear.weight.grad
        w13 = [torch.cat([grad(e["gate_proj"]), grad(e["up_proj"])]) for e in self.experts]
        return torch.stack(w13), torch.stack([grad(e["down_proj"]) for e in self.experts])


def routing(n_tokens, top_k, num_experts, kind, seed):
    """topk_idx [T, K] int64 and weights [T, K] float32. kind: "natural", "skewed" (one rank's experts get nearly all),
    "one" (all tokens select the same experts), "holes" (some entries are -1)."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(n_tokens, num_experts, generator=generator)
    if kind == "skewed":
        scores[:, :max(top_k, num_experts // 4)] += 0.8
    if kind == "one":
        scores += torch.arange(num_experts)
    topk_idx = torch.topk(scores, top_k, dim=-1).indices
    weight = torch.rand(n_tokens, top_k, generator=generator) + 0.1
    if kind == "holes" and n_tokens > 0:
        topk_idx[torch.rand(n_tokens, top_k, generator=generator) < 0.3] = -1
        topk_idx[0] = -1
    return topk_idx, weight


def _rank(rank, size, folder, function, arguments):
    """One process: the group of all ranks over a file, then the test's function."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        on_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= size
        if on_gpu:
            torch.cuda.set_device(rank)
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
        function(rank, size, *arguments)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        with open(os.path.join(folder, f"failure.{rank}"), "w", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        os._exit(1)  # the others must not wait for this rank's destructors
    os._exit(0)


def run_ranks(test, size, function, *arguments, timeout=240):
    """Call function(rank, size, *arguments) in `size` processes; a rank that fails fails the test."""
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("spawn")
        processes = [context.Process(target=_rank, args=(r, size, folder, function, arguments)) for r in range(size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout)
        late = [r for r, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            with contextlib.suppress(Exception):
                process.kill()
        texts = [open(os.path.join(folder, name), encoding="utf-8").read() for name in sorted(os.listdir(folder))
                 if name.startswith("failure.")]
        codes = [process.exitcode for process in processes]
        test.assertFalse(late, f"ranks {late} did not end in {timeout} s\n" + "\n".join(texts))
        test.assertEqual(codes, [0] * size, "\n".join(texts))
