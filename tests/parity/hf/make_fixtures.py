#!/usr/bin/env python3
"""Record what Hugging Face transformers computes for tiny random Qwen3 and Qwen3-MoE models.

usage: make_fixtures.py OUT_FOLDER        (needs torch, transformers >= 4.51, safetensors; runs on the CPU in fp32)

One folder a model:
  config.json, model.safetensors   the weights, as save_pretrained() writes them
  grads.safetensors                gradient of every parameter for the first batch, under the same names
  record.safetensors               tokens [12, B, S + 1] int64, logits [B, S, V] of the first batch,
                                   losses [12] of 12 AdamW steps (one batch each), grad_norms [12] before clipping
  record.json                      versions, optimizer settings
(bf16.json comes from make_bf16.py.)

The loss is the mean cross-entropy of tokens 1..S given tokens 0..S-1. AdamW: lr 1e-3, betas 0.9/0.95, eps 1e-8,
weight decay 0.1 on every parameter, clip 1.0 by the global norm.
"""
import copy
import json
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file

STEPS = 12
LR = 1e-3

MOE = dict(kind="moe", vocab=89, B=2, S=23)
MODELS = {
    # name: sizes. head_dim != D / heads, GQA, odd sizes and both tie settings appear.
    "moe_gqa": dict(MOE, D=40, layers=2, heads=4, kv=2, head_dim=16, F=20, E=8, K=2, norm=True, tie=False),
    "moe_odd": dict(MOE, D=37, layers=2, heads=3, kv=1, head_dim=10, F=19, E=5, K=3, norm=True, tie=False),
    "moe_nonorm_tied": dict(MOE, D=24, layers=3, heads=2, kv=2, head_dim=18, F=12, E=16, K=4, norm=False, tie=True),
    "dense_gqa": dict(kind="dense", vocab=89, B=2, S=23, D=40, layers=2, heads=6, kv=3, head_dim=12, H=72, tie=True),
    "dense_odd": dict(kind="dense", vocab=97, B=3, S=17, D=33, layers=3, heads=5, kv=1, head_dim=14, H=51, tie=False),
}


def make_model(m):
    common = dict(
        vocab_size=m["vocab"], hidden_size=m["D"], num_hidden_layers=m["layers"], num_attention_heads=m["heads"],
        num_key_value_heads=m["kv"], head_dim=m["head_dim"], max_position_embeddings=64, rope_theta=1e6,
        rms_norm_eps=1e-6, tie_word_embeddings=m["tie"], attention_bias=False, use_cache=False,
        attn_implementation="eager",
    )
    if m["kind"] == "moe":
        config = transformers.Qwen3MoeConfig(
            **common, intermediate_size=m["F"], moe_intermediate_size=m["F"], num_experts=m["E"],
            num_experts_per_tok=m["K"], norm_topk_prob=m["norm"], decoder_sparse_step=1, mlp_only_layers=[],
            output_router_logits=False, router_aux_loss_coef=0.0)
        config._experts_implementation = "eager"  # the grouped kernel wants rows of 16 bytes
        model = transformers.Qwen3MoeForCausalLM(config)
    else:
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**common, intermediate_size=m["H"]))
    generator = torch.Generator().manual_seed(1234)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            # wide enough that every part of the model matters to the loss
            p.copy_(1 + 0.2 * noise if p.dim() == 1 else 0.12 * noise)
    return model.float().train()


def loss_of(model, rows):
    logits = model(input_ids=rows[:, :-1]).logits.float()
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), rows[:, 1:].reshape(-1))
    return loss, logits


def record(name, m, out):
    torch.manual_seed(0)
    model = make_model(m)
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "generation_config.json").unlink(missing_ok=True)
    generator = torch.Generator().manual_seed(99)
    tokens = torch.randint(0, m["vocab"], (STEPS, m["B"], m["S"] + 1), generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses, norms = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss, logits = loss_of(model, tokens[step])
        loss.backward()
        if step == 0:
            first_logits = logits.detach().clone()
            grads = {n: p.grad.detach().clone() for n, p in model.named_parameters()}
            carrier = copy.deepcopy(model)
            with torch.no_grad():
                for n, p in carrier.named_parameters():
                    p.copy_(grads[n])
            carrier.save_pretrained(folder / "grads", safe_serialization=True)
            save_file(load_file(folder / "grads" / "model.safetensors"), folder / "grads.safetensors")
            shutil.rmtree(folder / "grads")
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
    save_file({
        "tokens": tokens.contiguous(), "logits": first_logits.contiguous(),
        "losses": torch.tensor(losses, dtype=torch.float64), "grad_norms": torch.tensor(norms, dtype=torch.float64),
    }, folder / "record.safetensors")
    about = dict(torch=torch.__version__, transformers=transformers.__version__, lr=LR, betas=[0.9, 0.95], eps=1e-8,
                 weight_decay=0.1, max_norm=1.0, sizes=m)
    (folder / "record.json").write_text(json.dumps(about, indent=1) + "\n")
    print(name, "losses", " ".join(f"{x:.6f}" for x in losses), "tensors", len(load_file(folder / "model.safetensors")))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.use_deterministic_algorithms(True)
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for name, m in MODELS.items():
        record(name, m, out)


if __name__ == "__main__":
    main()
