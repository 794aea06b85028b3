#!/usr/bin/env python3
"""Hugging Face folders both ways, against transformers itself (5.x; torch; fp32 on the CPU).

usage: check_export.py --expar BIN --work DIR        DIR is made, or emptied when it is an earlier one

Makes tiny Qwen3-MoE and Qwen3 folders with transformers (experts one by one, and fused), with a tokenizer, token ids and a
context length; expar evaluates them, trains a step from them and exports them again (one by one, fused, bfloat16);
transformers loads the exports. Compared: losses on both sides, weights bit for bit, context length, token ids, generation
settings, the tokenizer's ids. Prints a line a check and "N passed, M failed"; exit code 1 when one failed.
"""
import argparse
import json
import pathlib
import shutil
import struct
import subprocess
import sys

import numpy
import torch
import transformers

CONTEXT, SEQ_LEN, ROWS = 40960, 32, 8
MARK = "made-by-check-export"


class Checks:
    def __init__(self):
        self.passed = self.failed = 0

    def __call__(self, name, good, detail=""):
        if good:
            self.passed += 1
        else:
            self.failed += 1
        print(f"{'ok     ' if good else 'FAILED '} {name}{'' if good else ': ' + str(detail)}", flush=True)
        return good


def run(*words, cwd=None):
    """Standard output; the reason on failure."""
    done = subprocess.run([str(w) for w in words], cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: {(done.stderr or done.stdout).strip()[-600:]}")
    return done.stdout, done.stderr


def make_tokenizer(expar, work):
    text = work / "text.txt"
    text.write_text("".join(f"the quick brown fox jumps over the lazy dog {i}\n" for i in range(3000)))
    run(expar, "tokenizer-train", text, "--vocab", "300", "--out", work / "tok")
    return work / "tok"


def make_config(kind, ids):
    common = dict(vocab_size=320, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                  head_dim=16, max_position_embeddings=CONTEXT, rope_theta=1e6, **ids)
    if kind == "moe":
        return transformers.Qwen3MoeConfig(intermediate_size=96, moe_intermediate_size=32, num_experts=8,
                                           num_experts_per_tok=2, norm_topk_prob=True, tie_word_embeddings=False, **common)
    return transformers.Qwen3Config(intermediate_size=96, tie_word_embeddings=True, **common)


def make_folder(kind, fused, folder, tokenizer):
    """A model of random weights as its publisher would put it up."""
    torch.manual_seed(7)
    ids = dict(bos_token_id=1, eos_token_id=2, pad_token_id=3)
    config = make_config(kind, ids)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, value in model.named_parameters():  # far from the zeros and ones of a fresh model
            if value.dim() > 1:
                value.mul_(3.0)
            else:
                value.add_(0.1 * torch.randn_like(value))
    model.generation_config = transformers.GenerationConfig(eos_token_id=[2, 5], pad_token_id=3, temperature=0.6, do_sample=True)
    if fused:  # transformers' own parameter names and layout
        model.save_pretrained(folder, save_original_format=False)
    else:
        model.save_pretrained(folder)
    for file in tokenizer.iterdir():
        shutil.copy(file, folder / file.name)
    return model


def names_in(folder):
    names = set()
    for file in folder.glob("model*.safetensors"):
        with open(file, "rb") as f:
            n = struct.unpack("<Q", f.read(8))[0]
            names |= set(json.loads(f.read(n))) - {"__metadata__"}
    return names


def load(folder, dtype=torch.float32):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, attn_implementation="eager")
    return model.float().eval(), {k: v for k, v in info.items() if v}


def loss_of(model, rows):
    with torch.no_grad():
        logits = model(input_ids=rows[:, :-1]).logits.float()
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), rows[:, 1:].reshape(-1)).item()


def expar_loss(expar, folder, tokens):
    out, err = run(expar, "eval", "--hf", folder, "--tokens", tokens, "--seq", SEQ_LEN, "--device", "cpu", "--json")
    return json.loads(out)["loss"], err


def close(a, b, tolerance=1e-5):
    return abs(a - b) <= tolerance * abs(b)


def differences(a, b):
    a, b = a.state_dict(), b.state_dict()
    if a.keys() != b.keys():
        return sorted(a.keys() ^ b.keys())[:4]
    return [name for name in a if not torch.equal(a[name], b[name])][:4]


def train_and_export(expar, folder, work, tokens, name):
    """A run that starts from the folder and does not move (lr 0), and its exports."""
    config = work / f"{name}.toml"
    config.write_text(f"""[model]
flavor = "hf"
hf_assets_path = "{folder}"
[training]
dataset = "tokens"
dataset_path = "{tokens}"
seq_len = {SEQ_LEN}
local_batch_size = 2
steps = 1
backend = "cpu"
[optimizer]
lr = 0.0
[lr_scheduler]
warmup_steps = 0
[moe]
load_balance_coeff = 0.0
[checkpoint]
enable = true
initial_load_in_hf = true
""")
    run(expar, "train", config, "--job.dump_folder", work / f"{name}-run")
    forms = {"plain": [], "fused": ["--fused-experts"], "bf16": ["--dtype", "bfloat16"]}
    if "moe" not in name:
        del forms["fused"]
    for form, words in forms.items():
        run(expar, "export", "--checkpoint", work / f"{name}-run", "--out", work / f"{name}-{form}", *words, cwd="/")
    return {form: work / f"{name}-{form}" for form in forms}


def check_settings(check, what, source, export):
    mine, theirs = transformers.AutoConfig.from_pretrained(export), transformers.AutoConfig.from_pretrained(source)
    check(f"{what}: context length", mine.max_position_embeddings == CONTEXT, mine.max_position_embeddings)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "vocab_size", "architectures"):
        values = getattr(mine, key, None), getattr(theirs, key, None)
        check(f"{what}: {key}", values[0] == values[1], values)
    mine, theirs = (transformers.GenerationConfig.from_pretrained(f) for f in (export, source))
    check(f"{what}: generation settings", mine.to_diff_dict() == theirs.to_diff_dict(), mine.to_diff_dict())
    text = "the quick brown fox 17"
    mine, theirs = (transformers.AutoTokenizer.from_pretrained(f)(text)["input_ids"] for f in (export, source))
    check(f"{what}: the tokenizer's ids", mine == theirs, (mine, theirs))


def check_model(check, expar, work, kind, fused, tokenizer, tokens, rows):
    name = f"{kind}{'-fused' if fused else ''}"
    folder = work / name
    make_folder(kind, fused, folder, tokenizer)
    stored = any(n.endswith("experts.gate_up_proj") for n in names_in(folder))
    if kind == "moe":
        check(f"{name}: transformers wrote experts {'fused' if fused else 'one by one'}", stored == fused, sorted(names_in(folder))[:6])
    model, problems = load(folder)
    check(f"{name}: transformers reads its own folder", not problems, problems)
    theirs = loss_of(model, rows)
    ours, said = expar_loss(expar, folder, tokens)
    check(f"{name}: loss of expar {ours:.8f}, of transformers {theirs:.8f}", close(ours, theirs), abs(ours - theirs))
    check(f"{name}: expar uses every tensor", "not used" not in said, said)
    for form, export in train_and_export(expar, folder, work, tokens, name).items():
        what = f"{name} exported {form}"
        is_fused = any(n.endswith("experts.gate_up_proj") for n in names_in(export))
        check(f"{what}: layout", is_fused == (form == "fused"), sorted(names_in(export))[:6])
        again, problems = load(export)
        check(f"{what}: transformers uses every tensor", not problems, problems)
        tolerance = 2e-2 if form == "bf16" else 1e-5
        loss = loss_of(again, rows)
        check(f"{what}: loss {loss:.8f} instead of {theirs:.8f}", close(loss, theirs, tolerance), abs(loss - theirs))
        if form != "bf16":
            check(f"{what}: the same weights, bit for bit", not differences(again, model), differences(again, model))
        ours, said = expar_loss(expar, export, tokens)
        check(f"{what}: loss of expar {ours:.8f}", close(ours, loss, 1e-5), abs(ours - loss))
        check(f"{what}: expar uses every tensor", "not used" not in said, said)
        check_settings(check, what, folder, export)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--expar", required=True, help="the expar program")
    parser.add_argument("--work", required=True, help="folder to work in")
    args = parser.parse_args()
    expar, work = pathlib.Path(args.expar).resolve(), pathlib.Path(args.work).resolve()
    if work.exists() and any(work.iterdir()) and not (work / MARK).exists():
        sys.exit(f"error: {work} holds something else: choose another folder")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / MARK).touch()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, {run(expar, '--version')[0].strip()}")
    check = Checks()
    generator = numpy.random.default_rng(3)
    ids = generator.integers(8, 290, ROWS * (SEQ_LEN + 1), dtype=numpy.uint32)
    tokens = work / "ids.bin"
    ids.astype("<u4").tofile(tokens)
    rows = torch.from_numpy(ids.astype(numpy.int64).reshape(ROWS, SEQ_LEN + 1))
    tokenizer = make_tokenizer(expar, work)
    for kind, fused in (("moe", False), ("moe", True), ("dense", False)):
        try:
            check_model(check, expar, work, kind, fused, tokenizer, tokens, rows)
        except Exception as problem:  # the other models still have their turn
            check(f"{kind}{' fused' if fused else ''}", False, f"{type(problem).__name__}: {problem}")
    print(f"{check.passed} passed, {check.failed} failed")
    sys.exit(check.failed > 0)


if __name__ == "__main__":
    main()
