"""Qwen3-MoE in plain PyTorch, as transformers computes it, for peer_train.py.

Written from docs/explanation/numerics.md. It needs no transformers, reads a Hugging Face folder (safetensors) by itself, and runs on
any PyTorch from 1.13. Experts are one product each over sorted rows. In bf16 the router's logits and the norms' outputs
are rounded where transformers rounds them.
"""
import json
import math
import pathlib
import struct

import torch
import torch.nn.functional as F

TYPES = {"F32": torch.float32, "BF16": torch.bfloat16}


def read_safetensors(path):
    data = bytearray(path.read_bytes())
    (n,) = struct.unpack("<Q", data[:8])
    out = {}
    for name, about in json.loads(data[8:8 + n]).items():
        if name == "__metadata__":
            continue
        begin, end = about["data_offsets"]
        dtype = TYPES[about["dtype"]]
        count = (end - begin) // torch.empty(0, dtype=dtype).element_size()
        flat = torch.frombuffer(data, dtype=dtype, count=count, offset=8 + n + begin)
        out[name] = flat.reshape(about["shape"]).float()
    return out


def load(folder):
    """(config, {name: fp32 tensor}); the experts of a layer are stacked into w13 [E, 2F, D] and w2 [E, D, F]."""
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name != "expar_extra.safetensors":
            tensors.update(read_safetensors(path))
    n_experts = config.get("num_experts") or config["num_local_experts"]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}.mlp.experts."

        def take(e, kind):
            return tensors.pop(f"{at}{e}.{kind}.weight")

        tensors[at + "w13"] = torch.stack([torch.cat([take(e, "gate_proj"), take(e, "up_proj")])
                                           for e in range(n_experts)])
        tensors[at + "w2"] = torch.stack([take(e, "down_proj") for e in range(n_experts)])
    return config, tensors


def rmsnorm(x, weight, eps):
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


class Permute(torch.autograd.Function):
    """Rows in another order. Indexing's own backward adds, with atomics or a sort; this one moves."""

    @staticmethod
    def forward(ctx, x, order, inverse):
        ctx.save_for_backward(order, inverse)
        return x[order]

    @staticmethod
    def backward(ctx, grad):
        order, inverse = ctx.saved_tensors
        return grad[inverse], None, None


def products(rows, counts, weights):
    """rows [N, K] sorted by expert, weights [E, M, K] -> [N, M]. Unbound at once: indexing would add whole gradients."""
    return torch.cat([x @ w.t() for x, w in zip(rows.split(counts), weights.unbind(0))])


def expert_rows(rows, counts, w13, w2):
    """rows [N, D] sorted by expert -> [N, D]."""
    a, b = products(rows, counts, w13).chunk(2, dim=-1)
    return products(F.silu(a) * b, counts, w2)


def sdpa(q, k, v):
    """[B, heads, S, C]. In fp32 by hand: a fused kernel may use TF32."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    if q.dtype != torch.float32 and q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
    return torch.softmax(scores.masked_fill(later, -math.inf), -1, dtype=torch.float32).to(q.dtype) @ v


class Model:
    """Functions over a dict of parameters, so that masters and bf16 copies are two dicts."""

    def __init__(self, config):
        self.c = config
        self.theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        self.dim = config["head_dim"]
        self.eps = config["rms_norm_eps"]

    def attention(self, p, at, x, cos, sin):
        n, s, _ = x.shape

        def heads(kind, norm):
            y = F.linear(x, p[f"{at}{kind}_proj.weight"]).view(n, s, -1, self.dim)
            if not norm:
                return y.transpose(1, 2)
            y = rmsnorm(y, p[f"{at}{kind}_norm.weight"], self.eps).transpose(1, 2)
            low, high = y.chunk(2, dim=-1)
            return y * cos + torch.cat([-high, low], -1) * sin

        out = sdpa(heads("q", True), heads("k", True), heads("v", False))
        return F.linear(out.transpose(1, 2).reshape(n, s, -1), p[at + "o_proj.weight"])

    def moe(self, p, at, x):
        n_assignments = self.c["num_experts_per_tok"]
        flat = x.reshape(-1, x.shape[-1])
        scores = torch.softmax(F.linear(flat, p[at + "gate.weight"]), -1, dtype=torch.float32)
        weights, assignments = scores.topk(n_assignments, -1)
        if self.c["norm_topk_prob"]:
            weights = weights / weights.sum(-1, keepdim=True)
        weights = weights.to(x.dtype)
        order = assignments.view(-1).argsort(stable=True)
        inverse = order.argsort()
        counts = torch.bincount(assignments.view(-1), minlength=scores.shape[-1]).tolist()
        rows = flat.unsqueeze(1).expand(-1, n_assignments, -1).reshape(-1, flat.shape[-1])
        y = expert_rows(Permute.apply(rows, order, inverse), counts, p[at + "experts.w13"], p[at + "experts.w2"])
        y = Permute.apply(y, inverse, order).view(flat.shape[0], n_assignments, -1)
        return (y * weights.unsqueeze(-1)).sum(1).view(x.shape)

    def loss(self, p, rows):
        """Mean cross-entropy of rows [B, S + 1]."""
        tokens, targets = rows[:, :-1], rows[:, 1:]
        x = F.embedding(tokens, p["model.embed_tokens.weight"])
        frequencies = self.theta ** (-torch.arange(0, self.dim, 2, device=rows.device).float() / self.dim)
        angles = torch.arange(tokens.shape[1], device=rows.device).float()[:, None] * torch.cat([frequencies] * 2)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in range(self.c["num_hidden_layers"]):
            at = f"model.layers.{layer}."
            x = x + self.attention(p, at + "self_attn.", rmsnorm(x, p[at + "input_layernorm.weight"], self.eps), cos, sin)
            x = x + self.moe(p, at + "mlp.", rmsnorm(x, p[at + "post_attention_layernorm.weight"], self.eps))
        head = p["model.embed_tokens.weight" if self.c.get("tie_word_embeddings") else "lm_head.weight"]
        logits = F.linear(rmsnorm(x, p["model.norm.weight"], self.eps), head).float()
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
