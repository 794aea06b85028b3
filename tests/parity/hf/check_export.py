#!/usr/bin/env python3
"""Load an exported folder in Hugging Face transformers and compare its loss with what expar says.

usage: check_export.py FOLDER TOKENS.bin SEQ_LEN EXPECTED_LOSS      (needs torch, transformers; fp32 on the CPU)

To make the arguments:
  expar train ... --moe.load_balance_coeff 0
  expar export --checkpoint RUN --out FOLDER
  expar tokenize --tokenizer FOLDER --out TOKENS.bin TEXT.txt
  expar eval --hf FOLDER --tokens TOKENS.bin --seq SEQ_LEN --json      # "loss"
Exit code 0 when the losses agree to 1e-5 relative and every tensor was used.
"""
import sys

import numpy
import torch
import transformers


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    folder, tokens, seq_len, expected = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, attn_implementation="eager")
    problems = {k: v for k, v in info.items() if v}
    if problems:
        sys.exit(f"transformers reports {problems}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = numpy.fromfile(tokens, dtype="<u4").astype(numpy.int64)
    rows = torch.from_numpy(ids[: len(ids) // (seq_len + 1) * (seq_len + 1)].reshape(-1, seq_len + 1))
    total = 0.0
    with torch.no_grad():
        for row in rows.split(4):
            logits = model(input_ids=row[:, :-1]).logits.float()
            total += torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), row[:, 1:].reshape(-1), reduction="sum").double().item()
    loss = total / (rows.shape[0] * seq_len)
    text = tokenizer.decode(rows[0, :40].tolist())
    print(f"{folder}: {rows.shape[0]} rows, transformers {transformers.__version__} loss {loss:.8f}, "
          f"expar {expected:.8f}, relative difference {abs(loss - expected) / expected:.2e}")
    print("the tokenizer reads:", repr(text))
    if not abs(loss - expected) <= 1e-5 * expected:
        sys.exit("error: the losses differ by more than 1e-5")


if __name__ == "__main__":
    main()
