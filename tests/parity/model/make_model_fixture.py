"""Record what an independent PyTorch implementation of Qwen3 and Qwen3-MoE computes, for test_model_parity.c.

Written from the papers' formulas in float64 with autograd, so that it shares nothing with expar: plain softmax attention
with an explicit mask, a loop over experts, losses by their definitions. Weights are not stored: both sides derive them
from the tensor's name. Run it with any PyTorch >= 1.12:

    python3 tests/parity/model/make_model_fixture.py

One file a case, fixtures/<case>.safetensors: "loss", "aux", "z" [1], "logits" [T, V], "grad.<tensor>" (fp32).
"""
import json
import math
import os
import struct

import numpy as np
import torch

BASE = dict(dim=20, layers=2, vocab=23, heads=3, kv_heads=1, head_dim=6, ffn=0, experts=5, top_k=2, moe_dim=7,
            theta=10000.0, eps=1e-6, tied=False, score="softmax", norm=True, scale=1.0, aux=0.0, z=0.0, bias=False,
            documents=False, rows=2, seq=7, masked=3)
CASES = {
    "dense": dict(experts=0, ffn=18, heads=4, kv_heads=2, head_dim=4),
    "dense_tied_documents": dict(experts=0, ffn=9, tied=True, documents=True),
    "moe": dict(),
    "moe_bias": dict(bias=True, top_k=3),
    "moe_sigmoid": dict(score="sigmoid", scale=2.5, bias=True),
    "moe_sigmoid_raw": dict(score="sigmoid", norm=False, heads=2, kv_heads=2, head_dim=8, documents=True),
    "moe_losses": dict(aux=0.3, z=0.05, norm=False),
    "moe_sigmoid_losses": dict(score="sigmoid", aux=0.2, z=0.1, tied=True, rows=3, seq=5),
}


def hash_name(name):
    h = 2166136261
    for byte in name.encode():
        h = ((h ^ byte) * 16777619) & 0xFFFFFFFF
    return h


def uniform(name, n):
    """n values in [-0.5, 0.5) with 24 bits, a function of the name and the index alone."""
    x = (np.uint64(hash_name(name)) + np.arange(n, dtype=np.uint64) * np.uint64(2654435761)) & np.uint64(0xFFFFFFFF)
    x ^= x >> np.uint64(15)
    x = (x * np.uint64(2246822519)) & np.uint64(0xFFFFFFFF)
    x ^= x >> np.uint64(13)
    return ((x >> np.uint64(8)).astype(np.float64) / 2 ** 24 - 0.5).astype(np.float32)


def make_weights(c):
    shapes = {"model.embed_tokens": (c.vocab, c.dim), "model.norm": (c.dim,)}
    if not c.tied:
        shapes["lm_head"] = (c.vocab, c.dim)
    for i in range(c.layers):
        p = f"model.layers.{i}."
        shapes[p + "input_layernorm"] = shapes[p + "post_attention_layernorm"] = (c.dim,)
        shapes[p + "self_attn.q_proj"] = (c.heads * c.head_dim, c.dim)
        shapes[p + "self_attn.k_proj"] = shapes[p + "self_attn.v_proj"] = (c.kv_heads * c.head_dim, c.dim)
        shapes[p + "self_attn.o_proj"] = (c.dim, c.heads * c.head_dim)
        shapes[p + "self_attn.q_norm"] = shapes[p + "self_attn.k_norm"] = (c.head_dim,)
        if c.experts:
            shapes[p + "mlp.gate"] = (c.experts, c.dim)
        mlps = [(f"mlp.experts.{e}.", c.moe_dim) for e in range(c.experts)] or [("mlp.", c.ffn)]
        for mlp, width in mlps:
            shapes[p + mlp + "gate_proj"] = shapes[p + mlp + "up_proj"] = (width, c.dim)
            shapes[p + mlp + "down_proj"] = (c.dim, width)
    weights = {}
    for name, shape in shapes.items():
        name += ".weight"
        u = uniform(name, math.prod(shape))
        value = np.float32(1) + u * np.float32(0.25) if len(shape) == 1 else u * np.float32(0.5)
        weights[name] = torch.tensor(value.reshape(shape), dtype=torch.float64, requires_grad=True)
    return weights


def rms_norm(x, w, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * w


def rope(x, positions, theta):
    """x [S, heads, C]: halves, not pairs."""
    half = x.shape[-1] // 2
    inv = theta ** (-torch.arange(half, dtype=torch.float64) * 2 / x.shape[-1])
    angle = positions.double()[:, None] * inv
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attention(c, w, p, x, positions, doc_start):
    n = x.shape[0]
    q = (x @ w[p + "q_proj.weight"].T).view(n, c.heads, c.head_dim)
    k = (x @ w[p + "k_proj.weight"].T).view(n, c.kv_heads, c.head_dim)
    v = (x @ w[p + "v_proj.weight"].T).view(n, c.kv_heads, c.head_dim)
    q = rope(rms_norm(q, w[p + "q_norm.weight"], c.eps), positions, c.theta)
    k = rope(rms_norm(k, w[p + "k_norm.weight"], c.eps), positions, c.theta)
    seen = (torch.arange(n)[None] <= torch.arange(n)[:, None]) & (torch.arange(n)[None] >= doc_start[:, None])
    out = []
    for h in range(c.heads):
        g = h // (c.heads // c.kv_heads)
        scores = q[:, h] @ k[:, g].T / math.sqrt(c.head_dim)
        out.append(scores.masked_fill(~seen, -math.inf).softmax(-1) @ v[:, g])
    return torch.cat(out, -1) @ w[p + "o_proj.weight"].T


def mlp(w, p, x):
    gate = x @ w[p + "gate_proj.weight"].T
    return (gate * torch.sigmoid(gate) * (x @ w[p + "up_proj.weight"].T)) @ w[p + "down_proj.weight"].T


def moe(c, w, p, x, bias):
    """[S, D] of one sequence -> output, auxiliary loss (without coefficient), squared lse per token."""
    logits = x @ w[p + "gate.weight"].T
    scores = logits.softmax(-1) if c.score == "softmax" else logits.sigmoid()
    assignments = (scores + bias).topk(c.top_k, -1).indices
    weight = scores.gather(-1, assignments)
    if c.norm:
        weight = weight / weight.sum(-1, keepdim=True)
    weight = weight * c.scale
    rows = []
    for t in range(x.shape[0]):
        rows.append(sum(weight[t, k] * mlp(w, f"{p}experts.{int(e)}.", x[t]) for k, e in enumerate(assignments[t])))
    density = torch.bincount(assignments.flatten(), minlength=c.experts).double() / assignments.numel()
    return torch.stack(rows), c.experts * (density * scores.mean(0)).sum(), torch.logsumexp(logits, -1) ** 2


def make_batch(c):
    n = c.rows * c.seq
    tokens = ((uniform("tokens", n) + 0.5) * c.vocab).astype(np.int64).reshape(c.rows, c.seq)
    targets = ((uniform("targets", n) + 0.5) * c.vocab).astype(np.int64).reshape(c.rows, c.seq)
    targets.flat[:: c.masked + 1] = -1
    doc_start = np.zeros((c.rows, c.seq), np.int64)
    if c.documents:
        for r in range(c.rows):
            doc_start[r, 2 + r:] = 2 + r
    positions = np.arange(c.seq)[None] - doc_start
    return [torch.tensor(a) for a in (tokens, targets, positions, doc_start)]


def run(c):
    w = make_weights(c)
    tokens, targets, positions, doc_start = make_batch(c)
    n_valid = int((targets >= 0).sum())
    bias = torch.zeros(c.layers, c.experts, dtype=torch.float64)
    if c.bias:
        bias = torch.tensor(uniform("bias", bias.numel()).reshape(bias.shape), dtype=torch.float64) * 0.5
    loss, aux, z, all_logits = 0.0, torch.zeros(()).double(), torch.zeros(()).double(), []
    for r in range(c.rows):
        valid = targets[r] >= 0
        x = w["model.embed_tokens.weight"][tokens[r]]
        for i in range(c.layers):
            p = f"model.layers.{i}."
            normed = rms_norm(x, w[p + "input_layernorm.weight"], c.eps)
            x = x + attention(c, w, p + "self_attn.", normed, positions[r], doc_start[r])
            normed = rms_norm(x, w[p + "post_attention_layernorm.weight"], c.eps)
            if not c.experts:
                x = x + mlp(w, p + "mlp.", normed)
                continue
            y, balance, lse2 = moe(c, w, p + "mlp.", normed, bias[i])
            x = x + y
            aux = aux + c.aux * balance * int(valid.sum()) / n_valid
            z = z + c.z * lse2[valid].sum() / n_valid
        head = w["model.embed_tokens.weight"] if c.tied else w["lm_head.weight"]
        logits = rms_norm(x, w["model.norm.weight"], c.eps) @ head.T
        all_logits.append(logits)
        loss = loss + torch.nn.functional.cross_entropy(logits[valid], targets[r][valid], reduction="sum") / n_valid
    (loss + aux + z).backward()
    record = {"loss": loss.detach().view(1), "aux": aux.detach().view(1), "z": z.detach().view(1),
              "logits": torch.cat(all_logits).detach()}
    for name, value in w.items():
        record["grad." + name] = value.grad if value.grad is not None else torch.zeros_like(value)
    return record


def save(path, tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.numpy().astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


class Case:
    def __init__(self, values):
        self.__dict__.update(values)


def main():
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures")
    os.makedirs(folder, exist_ok=True)
    for name, changes in CASES.items():
        record = run(Case({**BASE, **changes}))
        save(os.path.join(folder, name + ".safetensors"), record)
        print(f"{name}: loss {float(record['loss']):.7f} aux {float(record['aux']):.7f} z {float(record['z']):.7f}")


if __name__ == "__main__":
    main()
