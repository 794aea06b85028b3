#!/usr/bin/env python3
"""Record how far PyTorch's bf16 is from its fp32 for the fixtures of make_fixtures.py: bf16.json beside each.

usage: make_bf16.py FIXTURES [--device cuda|cpu] [--out FOLDER]    (needs torch, transformers >= 5, safetensors)

The model is the one of transformers, once in fp32 (no TF32) and once with bf16 parameters: router, norms and softmax in
whatever precision transformers gives them. Always relative to fp32, and as a root mean square
over 96 batches (one batch is one sample of the rounding): the 12 recorded ones, and those with every id moved by 1..7:
  loss        mean cross-entropy at the initial weights
  logits      norm of the difference
  gradients   for each kind of parameter (q_proj, gate, ...), all layers and experts together: norm of the difference
  parameters  the same for every parameter by itself
  training    losses of 12 AdamW steps as in make_fixtures.py, for each of the 8 sets of 12 batches; bf16 with fp32 masters,
              the usual mixed precision
Without --out the files go into FIXTURES/NAME/, with it into FOLDER/NAME/.
"""
import argparse
import concurrent.futures
import copy
import json
import math
import multiprocessing
import pathlib

import torch
import transformers
from safetensors.torch import load_file

from make_fixtures import LR, STEPS, loss_of

SHIFTS = 8


def hf_tensors(named):
    """Tensors by their names in model.safetensors: transformers holds experts fused."""
    out = {}
    for name, t in named.items():
        if name.endswith("experts.gate_up_proj"):
            for e in range(t.shape[0]):
                gate, up = t[e].chunk(2, dim=0)
                out[name.replace("gate_up_proj", f"{e}.gate_proj.weight")] = gate
                out[name.replace("gate_up_proj", f"{e}.up_proj.weight")] = up
        elif name.endswith("experts.down_proj"):
            for e in range(t.shape[0]):
                out[name.replace("down_proj", f"{e}.down_proj.weight")] = t[e]
        else:
            out[name] = t
    return out


def load_model(folder, device):
    config = transformers.AutoConfig.from_pretrained(folder)
    config._experts_implementation = "eager"  # the grouped kernel wants rows of 16 bytes
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager")
    model.config._experts_implementation = "eager"
    stored = load_file(folder / "model.safetensors")
    held = hf_tensors({n: p.detach() for n, p in model.named_parameters()})
    if set(stored) != set(held) or any(not torch.equal(stored[n], held[n]) for n in stored):
        raise SystemExit(f"{folder}: the tensors of this transformers are laid out in a way this script does not know")
    return model.float().train().to(device)


def in_dtype(model, dtype):
    """A copy with parameters of that type. Buffers stay fp32: model.to(bfloat16) would round the frequencies of the
    rotary embedding too, which loading a model in bf16 does not do and which would make the yardstick too long."""
    made = copy.deepcopy(model)
    for p in made.parameters():
        p.data = p.data.to(dtype)
    return made


def gradients(model, rows):
    model.zero_grad()
    loss, logits = loss_of(model, rows)
    loss.backward()
    grads = hf_tensors({n: p.grad.float() for n, p in model.named_parameters()})
    return loss.item(), logits.detach().double(), {n: g.double() for n, g in grads.items()}


def rms(values):
    return math.sqrt(sum(v * v for v in values) / len(values))


def compare_batches(wide, narrow, tokens):
    loss, logits, kinds, parameters, losses = [], [], {}, {}, []
    for rows in tokens:
        lw, zw, gw = gradients(wide, rows)
        lh, zh, gh = gradients(narrow, rows)
        losses.append(lw)
        loss.append((lh - lw) / lw)
        logits.append(((zh - zw).norm() / zw.norm()).item())
        sums = {}
        for name, w in gw.items():
            difference, size = (gh[name] - w).norm().item(), w.norm().item()
            kind = name.split(".")[-2]
            d, s = sums.get(kind, (0.0, 0.0))
            sums[kind] = (d + difference ** 2, s + size ** 2)
            if size > 0:  # an expert that no token of this batch chose
                parameters.setdefault(name, []).append(difference / size)
        for kind, (d, s) in sums.items():
            kinds.setdefault(kind, []).append(math.sqrt(d / s))
    return dict(loss=rms(loss), logits=rms(logits), gradients={k: rms(v) for k, v in kinds.items()},
                losses_fp32=losses, parameters={n: rms(v) for n, v in parameters.items()})


def train(model, tokens, dtype):
    """Losses of AdamW steps; the optimizer always works on fp32 masters."""
    working = in_dtype(model, dtype)
    pairs = list(zip(model.parameters(), working.parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses = []
    for rows in tokens:
        working.zero_grad()
        loss, _ = loss_of(working, rows)
        loss.backward()
        losses.append(loss.item())
        for master, p in pairs:
            master.grad = p.grad.float()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for master, p in pairs:
                p.copy_(master)
    return losses


def record(folder, out, device):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(2)
    recorded = load_file(folder / "record.safetensors")
    tokens = recorded["tokens"].to(device)
    assert tokens.shape[0] == STEPS
    wide = load_model(folder, device)
    sets = [(tokens + shift) % wide.config.vocab_size for shift in range(SHIFTS)]
    figures = compare_batches(wide, in_dtype(wide, torch.bfloat16), torch.cat(sets))
    fp32 = sum([train(copy.deepcopy(wide), s, torch.float32) for s in sets], [])
    bf16 = sum([train(copy.deepcopy(wide), s, torch.bfloat16) for s in sets], [])
    figures["training"] = rms([(h - w) / w for h, w in zip(bf16, fp32)])
    figures.update(training_losses_fp32=fp32, training_losses_bf16=bf16, torch=torch.__version__,
                   transformers=transformers.__version__,
                   device=torch.cuda.get_device_name() if device == "cuda" else "cpu")
    worst = max(abs(a - b) / b for a, b in zip(fp32, recorded["losses"].tolist()))
    if worst > 1e-4:
        raise SystemExit(f"{folder}: the fp32 run here is {worst:.1e} from the one recorded: other mathematics?")
    out.mkdir(parents=True, exist_ok=True)
    (out / "bf16.json").write_text(json.dumps(figures, indent=1) + "\n")
    return (f"{folder.name}: loss {figures['loss']:.2e} logits {figures['logits']:.2e} training {figures['training']:.2e} "
          + " ".join(f"{k} {v:.2e}" for k, v in figures["gradients"].items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixtures", type=pathlib.Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    folders = sorted(f.parent for f in args.fixtures.glob("*/record.safetensors"))
    if not folders:
        raise SystemExit(f"{args.fixtures}: no fixtures")
    # A process a fixture: the models are so small that launching is all the work.
    with concurrent.futures.ProcessPoolExecutor(5, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(record, f, (args.out or args.fixtures) / f.name, args.device) for f in folders]
        for job in concurrent.futures.as_completed(jobs):
            print(job.result(), flush=True)


if __name__ == "__main__":
    main()
