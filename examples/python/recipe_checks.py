#!/usr/bin/env python3
"""What recipes for DeepEP-style MoE training get wrong without a word, each shown in a few seconds on a CPU.

    python3 examples/python/recipe_checks.py router     an activation that drops the gradient of prob: the router learns nothing
    python3 examples/python/recipe_checks.py bias       an expert bias that nobody updates, and one that is updated
    python3 examples/python/recipe_checks.py balance    forced balance by `arange % E`: the ranks that a token's rows go to
    python3 examples/python/recipe_checks.py flops      TFLOPS that count the full attention square
"""
import sys
import warnings

import torch
import torch.nn.functional as F

from expar.fused_activation import fused_silu_gate_prob, silu_gate_prob_reference
from expar.moe import MoEArgs, MoELayer

EXPERTS, TOP_K, DIM, HIDDEN, TOKENS = 8, 4, 16, 32, 256


class WithoutDprob(torch.autograd.Function):
    """silu(x1) * x2 * prob whose backward returns None for prob ("typically detached")."""

    @staticmethod
    def forward(ctx, x1, x2, prob):
        ctx.save_for_backward(x1, x2, prob)
        return silu_gate_prob_reference(x1, x2, prob)

    @staticmethod
    def backward(ctx, dout):
        with torch.enable_grad():
            x1, x2, prob = (t.detach().requires_grad_() for t in ctx.saved_tensors)
            dx1, dx2 = torch.autograd.grad(silu_gate_prob_reference(x1, x2, prob), (x1, x2), dout)
        return dx1, dx2, None


def train_router(activation, steps=200):
    """The experts are right already, and each kind of token has one of its own: only the router has to learn. Returns the
    router's gradient in the first step, the last loss, and how many tokens find their expert."""
    torch.manual_seed(0)
    centers = torch.randn(EXPERTS, DIM)
    w13, w2 = torch.randn(EXPERTS, 2 * HIDDEN, DIM) / DIM**0.5, torch.randn(EXPERTS, DIM, HIDDEN) / HIDDEN**0.5
    gate = (torch.randn(EXPERTS, DIM) * 0.02).requires_grad_()
    optimizer = torch.optim.Adam([gate], lr=1e-2)
    first = None
    for _ in range(steps):
        kind = torch.randint(0, EXPERTS, (TOKENS,))
        x = centers[kind] + 0.3 * torch.randn(TOKENS, DIM)
        outputs = lambda e, rows, prob: activation(*(rows @ w13[e].t()).chunk(2, 1), prob) @ w2[e].t()
        target, out = torch.zeros(TOKENS, DIM), torch.zeros(TOKENS, DIM)
        prob, topk_idx = torch.softmax(x @ gate.t(), -1).topk(TOP_K)
        for e in range(EXPERTS):
            own = (kind == e).nonzero()[:, 0]
            target[own] = outputs(e, x[own], torch.ones(len(own), 1))
            token, k = (topk_idx == e).nonzero(as_tuple=True)
            out = out.index_add(0, token, outputs(e, x[token], prob[token, k, None]))
        loss = F.mse_loss(out, target)
        if loss.requires_grad:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if first is None:
            first = 0.0 if gate.grad is None else float(gate.grad.norm())
    return first, float(loss), float((topk_idx[:, 0] == kind).float().mean())


def router():
    print("the router's gradient in step 1; loss and share of tokens at their expert after 200 steps")
    for name, activation in (("prob's gradient dropped", WithoutDprob.apply), ("plain autograd", silu_gate_prob_reference),
                             ("expar.fused_activation", fused_silu_gate_prob)):
        gradient, loss, found = train_router(activation)
        print(f"  {name:24s} |d gate| {gradient:.6f}   loss {loss:.4f}   {100 * found:.0f} %")


def layer_with_skewed_tokens():
    torch.manual_seed(0)
    layer = MoELayer(MoEArgs(num_experts=EXPERTS, top_k=2), DIM, HIDDEN, max_tokens=TOKENS, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        layer.gate.weight.mul_(0.2)
        layer.gate.weight[0] += 0.02
    return layer, torch.randn(TOKENS, DIM) + 0.5


def busiest(layer, x):
    """Tokens of the busiest expert over the mean."""
    counts = layer.route(x).topk_idx.flatten().bincount(minlength=EXPERTS).float()
    return float(counts.max() / counts.mean())


def bias():
    print("busiest expert over the mean, before and after 300 training steps of a fixed router")
    for updates in (False, True):
        layer, x = layer_with_skewed_tokens()
        before = busiest(layer, x)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(300):
                layer(x)
                if updates:
                    layer.update_expert_bias()
        moved = float(layer.expert_bias.abs().max())
        what = "update_expert_bias() once a step" if updates else "counted, never updated"
        print(f"  {what:34s} {before:.2f} -> {busiest(layer, x):.2f}   |bias| {moved:.4f}")
        for warning in caught:
            print(f"    warning: {warning.message}")


def balance():
    n_experts, top_k, n_ranks, n_tokens = 128, 8, 8, 4096
    number = torch.arange(n_tokens * top_k).reshape(n_tokens, top_k)
    n_local = n_experts // n_ranks
    generator = torch.Generator().manual_seed(0)
    routings = {
        "arange % E (modulo)": number % n_experts,
        "spread": number % n_ranks * n_local + torch.div(number, n_ranks, rounding_mode="floor") % n_local,
        "random": torch.rand(n_tokens, n_experts, generator=generator).topk(top_k).indices,
    }
    print(f"E = {n_experts}, top-{top_k}, {n_ranks} ranks: ranks that a token's rows go to, tokens of the busiest expert over the mean")
    for name, topk_idx in routings.items():
        ranks = torch.zeros(n_tokens, n_ranks).scatter_(1, torch.div(topk_idx, n_local, rounding_mode="floor"), 1.0)
        counts = topk_idx.flatten().bincount(minlength=n_experts).float()
        print(f"  {name:20s} {float(ranks.sum(1).mean()):5.2f}   {float(counts.max() / counts.mean()):.2f}")


def flops():
    layers, heads, head_dim, dim, vocab, experts, top_k, hidden, kv = 48, 32, 128, 2048, 151936, 128, 8, 768, 4
    attention = dim * head_dim * (heads + 2 * kv) + heads * head_dim * dim
    active = layers * (attention + dim * experts + top_k * 3 * dim * hidden + 2 * dim + 2 * head_dim) + dim + vocab * dim
    print("Qwen3-30B-A3B, GFLOP a token: causal attention once, the full square, and how much larger a TFLOPS figure it gives")
    for length in (2048, 4096, 8192, 32768):
        once = 6 * active + 6 * layers * heads * head_dim * length
        full = 6 * active + 12 * layers * heads * head_dim * length
        print(f"  sequence {length:6d}: {once / 1e9:6.1f}  {full / 1e9:6.1f}  {full / once:.2f}")


def main():
    checks = {"router": router, "bias": bias, "balance": balance, "flops": flops}
    if len(sys.argv) != 2 or sys.argv[1] not in checks:
        print(__doc__.strip())
        return 2
    checks[sys.argv[1]]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
