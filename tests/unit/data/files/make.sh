#!/usr/bin/env bash
# Make the files of this folder again (docs.parquet is made by hand, with DuckDB). Needs gzip, pigz, zstd, python3-numpy.
set -euo pipefail
cd "$(dirname "$0")"
/usr/bin/python3 - <<'PY'
import json
import struct

import numpy as np

rows = [{"id": 2**64 + i, "score": float("nan") if i % 7 == 0 else 1.5 * i, "text": "document %d of \"words\" \u00e9\U0001f600" % i,
         "meta": {"text": "not this one", "tags": ["a", None, True]}} for i in range(40)]
lines = [json.dumps(row) for row in rows]
lines[3] = lines[3].replace('"score": 4.5', '"score": 1e400')
lines[5] = lines[5].replace("\\ud83d\\ude00", "\\ud83d")
open("docs.jsonl", "w").write("\n".join(lines) + "\n")

rng = np.random.default_rng(1)
ids = rng.integers(0, 250, 1200)
ids.astype(np.uint16).tofile("nanogpt.bin")
ids.astype(np.uint32).tofile("ids.u32.bin")
ids.astype(np.int64).tofile("ids.i64.bin")
ids.astype(np.float32).tofile("ids.f32.bin")
ids.astype(">u4").tofile("ids.be.bin")
np.save("ids.npy", ids)
for name, magic, version, kind in (("gpt2", 20240520, 1, np.uint16), ("llama3", 20240801, 7, np.uint32)):
    header = np.zeros(256, dtype=np.int32)
    header[0], header[1], header[2] = magic, version, len(ids)
    with open("llmc_%s.bin" % name, "wb") as f:
        f.write(header.tobytes())
        f.write(ids.astype(kind).tobytes())
lengths = np.array([400, 800], dtype=np.int32)
ids.astype(np.uint16).tofile("megatron.bin")
with open("megatron.idx", "wb") as f:
    f.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 2, 3))
    f.write(lengths.tobytes() + np.array([0, 800], dtype=np.int64).tobytes() + np.array([0, 1, 2], dtype=np.int64).tobytes())
PY
mv ids.npy ids.npy.bin
head -n 20 docs.jsonl > a && tail -n +21 docs.jsonl > b
gzip -nc docs.jsonl > docs.gz.jsonl.gz
{ gzip -nc a; gzip -nc b; } > members.jsonl.gz
pigz -nic -b 128 docs.jsonl > blocks.jsonl.gz
zstd -qf docs.jsonl -o docs.jsonl.zst
pzstd -qc a > frames.jsonl.zst && zstd -qc b >> frames.jsonl.zst
zstd -qf --long=27 docs.jsonl -o long.jsonl.zst
rm a b
