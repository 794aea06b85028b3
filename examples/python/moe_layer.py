#!/usr/bin/env python3
"""A small language model whose MoE block is plain PyTorch (before) or expar's (after); everything else stays.

    python3 examples/python/moe_layer.py --moe dense
    python3 examples/python/moe_layer.py --moe expar
    torchrun --nproc-per-node 2 examples/python/moe_layer.py --moe expar      # experts spread over two ranks

It learns the next token of a periodic text; losses of the three commands agree up to rounding. On GPUs it runs in bf16 with
--dtype bfloat16.
"""
import argparse
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from expar.moe import MoEArgs, MoELayer, update_expert_bias

VOCAB, DIM, HIDDEN, EXPERTS, TOP_K, LAYERS, BATCH, LENGTH = 64, 64, 96, 16, 4, 2, 8, 32


class DenseMoE(nn.Module):
    """Before: every expert in a loop, all of them on every rank."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(DIM, EXPERTS, bias=False)
        linear = lambda i, o: nn.Linear(i, o, bias=False)
        self.experts = nn.ModuleList(nn.ModuleDict({"gate_proj": linear(DIM, HIDDEN), "up_proj": linear(DIM, HIDDEN),
                                                    "down_proj": linear(HIDDEN, DIM)}) for _ in range(EXPERTS))

    def forward(self, x):
        tokens = x.reshape(-1, DIM)
        weight, topk_idx = torch.softmax(tokens.float() @ self.gate.weight.float().t(), -1).topk(TOP_K)
        weight = weight / weight.sum(-1, keepdim=True)
        out = torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            token, k = (topk_idx == e).nonzero(as_tuple=True)
            h = F.silu(expert["gate_proj"](tokens[token])) * expert["up_proj"](tokens[token])
            out = out.index_add(0, token, expert["down_proj"](h * weight[token, k, None].to(h.dtype)))
        return out.reshape(x.shape)


def make_moe(a, world, device, dtype):
    """The line that changes."""
    if a.moe == "dense":
        return DenseMoE().to(device, dtype)
    args = MoEArgs(num_experts=EXPERTS, top_k=TOP_K, route_norm=True, use_deepep=True,
                   load_balance_coeff=1e-3 if a.balance else None)
    return MoELayer(args, DIM, HIDDEN, max_tokens=BATCH * LENGTH, process_group=world, dtype=dtype, device=device)


class Model(nn.Module):
    def __init__(self, a, world, device, dtype):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, DIM)
        self.mix = nn.ModuleList(nn.Conv1d(DIM, DIM, 4) for _ in range(LAYERS))  # stands for attention
        self.head = nn.Linear(DIM, VOCAB)
        self.to(device, dtype)
        self.mlp = nn.ModuleList(make_moe(a, world, device, dtype) for _ in range(LAYERS))

    def forward(self, ids):
        x = self.embed(ids)
        for mix, mlp in zip(self.mix, self.mlp):
            past = F.pad(F.layer_norm(x, (DIM,)).transpose(1, 2), (3, 0))
            x = x + mix(past).transpose(1, 2)
            x = x + mlp(F.layer_norm(x, (DIM,)))
        return self.head(x)


def same_weights(model, device, dtype):
    """The same start for both kinds and every number of ranks."""
    whole = {}
    torch.manual_seed(2)
    for i in range(LAYERS):
        for name, value in DenseMoE().state_dict().items():
            whole[f"mlp.{i}.{name}"] = value.to(device, dtype)
    model.load_state_dict(whole, strict=False)


def batch_of(step, rank, world_size, device):
    """Rows of this rank: ids that repeat with a period of their own."""
    generator = torch.Generator().manual_seed(step)
    start, period = torch.randint(0, VOCAB, (2, BATCH, 1), generator=generator)
    ids = (start + torch.arange(LENGTH + 1) * (1 + period % 5)) % VOCAB
    return ids.chunk(world_size)[rank].to(device)


def average_gradients(model, world_size):
    """What data parallelism does: replicated gradients are summed over the ranks, an expert's holds all tokens already."""
    expert = {p for m in model.modules() if isinstance(m, MoELayer) for p in m.expert_parameters()}
    for parameter in model.parameters():
        if parameter not in expert:
            dist.all_reduce(parameter.grad)
        parameter.grad /= world_size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moe", choices=("dense", "expar"), default="expar")
    parser.add_argument("--balance", action="store_true", help="move the experts' bias, which DenseMoE has none of")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    a = parser.parse_args()
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    world, device = None, torch.device(a.device, int(os.environ.get("LOCAL_RANK", 0)) if a.device == "cuda" else None)
    if a.device == "cuda":
        torch.cuda.set_device(device)
    if world_size > 1:
        dist.init_process_group("gloo" if a.device == "cpu" else "nccl")
        world = dist.group.WORLD
    dtype = getattr(torch, a.dtype)
    torch.manual_seed(1)
    model = Model(a, world, device, dtype)
    same_weights(model, device, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(a.steps):
        ids = batch_of(step, rank, world_size, device)
        loss = F.cross_entropy(model(ids[:, :-1]).float().reshape(-1, VOCAB), ids[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        mean = loss.detach() / world_size
        if world_size > 1:
            average_gradients(model, world_size)
            dist.all_reduce(mean)
        update_expert_bias(model, world)  # does nothing without --balance
        optimizer.step()
        if rank == 0 and (step % 10 == 0 or step == a.steps - 1):
            print(f"step {step:3d}  loss {mean.item():.5f}", flush=True)
    if world_size > 1:
        for layer in model.mlp:
            if isinstance(layer, MoELayer):
                layer.group.close()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
