#!/usr/bin/env python3
"""Train the same Qwen3-MoE as an expar run, from the same weights on the same rows, in PyTorch; losses to a JSON file.

usage: peer_train.py --weights HF_FOLDER --tokens FILE.bin --out FILE.json [--dtype bfloat16] [options]

Rows, schedule and AdamW are those of one expar rank without accumulation: step s reads rows s*B .. s*B + B - 1 of
seq_len + 1 tokens in the file's order; betas 0.9/0.95, eps 1e-8, weight decay 0.1 on everything, clip 1.0 by the global
norm, linear warm-up (s + 1) / warmup, then constant. fp32 has no TF32. bf16 is the usual mixed precision: fp32 masters, a
bf16 copy that forward and backward see, bf16 gradients widened for the update. (bench/gpu_curves.sh runs it.)
"""
import argparse
import json
import time

import numpy
import torch

from peer_model import Model, load


def rows_of(tokens, seq_len, first, n):
    width = seq_len + 1
    n_rows = len(tokens) // width
    return numpy.stack([tokens[r % n_rows * width:(r % n_rows + 1) * width] for r in range(first, first + n)])


def train(args):
    device = torch.device(args.device)
    dtype = getattr(torch, args.dtype)
    config, tensors = load(args.weights)
    masters = {n: t.to(device).requires_grad_() for n, t in tensors.items()}
    working = masters
    if dtype != torch.float32:
        working = {n: t.detach().to(dtype).requires_grad_() for n, t in masters.items()}
    model = Model(config)
    optimizer = torch.optim.AdamW(masters.values(), lr=args.lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    tokens = numpy.fromfile(args.tokens, dtype="<u4").astype(numpy.int64)
    losses, norms, seconds = [], [], []
    for step in range(args.steps):
        start = time.perf_counter()
        batch = torch.from_numpy(rows_of(tokens, args.seq_len, step * args.batch, args.batch)).to(device)
        for p in working.values():
            p.grad = None
        loss = model.loss(working, batch)
        loss.backward()
        with torch.no_grad():
            if working is not masters:
                for name, p in working.items():
                    masters[name].grad = p.grad.float()
            norm = torch.nn.utils.clip_grad_norm_(masters.values(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = args.lr * min(1.0, (step + 1) / args.warmup)
            optimizer.step()
            if working is not masters:
                for name, p in working.items():
                    p.copy_(masters[name])
        losses.append(loss.item())
        norms.append(norm.item())
        seconds.append(time.perf_counter() - start)
        if args.log and (step < 3 or (step + 1) % args.log == 0):
            print(f"step {step + 1} loss {losses[-1]:.8f} grad_norm {norms[-1]:.6f} {seconds[-1]:.3f} s", flush=True)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return dict(losses=losses, grad_norms=norms, seconds=seconds, dtype=args.dtype, torch=torch.__version__, device=name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--log", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    result = train(args)
    with open(args.out, "w") as out:
        json.dump(result, out)


if __name__ == "__main__":
    main()
