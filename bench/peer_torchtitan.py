#!/usr/bin/env python3
"""Time TorchTitan's own Qwen3-MoE on the GPUs of this machine, to stand beside `expar train`.

    TORCHTITAN=path/to/torchtitan python3 bench/peer_torchtitan.py --layers 8 --experts 16
    TORCHTITAN=... torchrun --nproc-per-node 2 bench/peer_torchtitan.py --layers 8 --experts 32 --backend standard
    TORCHTITAN=... torchrun --nproc-per-node 2 bench/peer_torchtitan.py --layers 8 --experts 32 --backend deepep --routing natural
    TORCHTITAN=... PYTHONPATH=python torchrun --nproc-per-node 2 bench/peer_torchtitan.py --layers 8 --experts 32 --backend expar

TORCHTITAN is a checkout of pytorch/torchtitan at commit a25dd8f88 (the last with models/moe and distributed/deepep as
used here). The model is the rank slice of 30B-A3B that configs/rank_slice_30b_a3b.toml describes: width 2048, 32 query and
4 key/value heads of 128, experts of width 768, top-8. TorchTitan's own functions apply selective activation checkpointing
("op"), torch.compile and FSDP2, as its Qwen3 configuration does. `--experts` counts the experts of the whole EP group.
`--backend`: "standard" and "deepep" (needs deep_ep; on one node without NVSHMEM let TorchTitan's deepep.py take 0 for
num_rdma_bytes) with one EP group over all ranks, "ep1" for data parallelism, "expar" for TorchTitan's model with expar's
dispatch, experts and combine (the Python package) over all ranks; its router, everything around the MoE block, compilation,
checkpointing and FSDP stay TorchTitan's. Gradient clipping and data loading are left out,
which favours TorchTitan. Packages that TorchTitan imports but this script never uses are replaced by empty modules when they
are not installed.

Prints a line a step, then `RESULT tok/s/GPU` (median without the first three steps) and the memory of rank 0.
"""
import argparse
import importlib
import importlib.machinery
import os
import sys
import time
import types
from unittest.mock import MagicMock

OPTIONAL = ("torchao", "torchft", "tyro", "datasets", "torchdata", "rich", "PIL", "wandb")


class Absent(MagicMock):
    """Stands for a package that is not installed; whatever is read from it exists and does nothing."""
    __path__ = []
    __spec__ = importlib.machinery.ModuleSpec("absent", None)


class AbsentFinder:
    """Finds submodules of absent packages."""

    def find_spec(self, name, path=None, target=None):
        if isinstance(sys.modules.get(name.split(".")[0]), Absent):
            return importlib.machinery.ModuleSpec(name, self)
        return None

    def create_module(self, spec):
        return Absent()

    def exec_module(self, module):
        pass


def replace_absent_packages():
    for name in OPTIONAL:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = Absent()
    sys.meta_path.append(AbsentFinder())
    loader = types.ModuleType("torchdata.stateful_dataloader")
    loader.StatefulDataLoader = type("StatefulDataLoader", (), {})  # TorchTitan derives classes from it
    sys.modules.setdefault("torchdata.stateful_dataloader", loader)
    sys.modules["torchtitan.components.quantization"] = Absent()


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--layers", type=int, default=48)
    p.add_argument("--experts", type=int, default=16, help="experts of the whole EP group")
    p.add_argument("--batch", type=int, default=4, help="rows of a rank")
    p.add_argument("--seq-len", type=int, default=4096)
    p.add_argument("--top-k", type=int, default=8)
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--backend", choices=("standard", "deepep", "ep1", "expar"), default="ep1")
    p.add_argument("--routing", choices=("forced", "natural"), default="forced")
    a = p.parse_args()
    if "TORCHTITAN" not in os.environ:
        p.error("set TORCHTITAN to a checkout of pytorch/torchtitan at a25dd8f88")
    if a.steps < 5:
        p.error("--steps: at least 5, the first three are not counted")
    return a


def use_expar(a, layers, model_file, saved, torch, dist):
    """Put expar between TorchTitan's router and its experts' weights; returns the group."""
    from expar.ep import Group
    from expar.moe import experts as run_experts

    local = lambda weight: weight.to_local() if hasattr(weight, "to_local") else weight

    def experts_forward(self, x, topk_idx, topk_weight):
        w13 = torch.cat([local(self.w1), local(self.w3)], dim=1).to(x.dtype)
        handle = group.plan(topk_idx, topk_weight.float())
        return run_experts(x, w13, local(self.w2).to(x.dtype), handle)

    class ExparMoE(layers.MoE):
        def forward(self, x):
            tokens = x.view(-1, x.shape[-1])
            scores, topk_idx, counts = self.router(tokens, self.expert_bias)
            with torch.no_grad():
                self.tokens_per_expert.add_(counts)
            return self.experts(tokens, topk_idx, scores).reshape(x.shape)

    group = Group(dist.group.WORLD, num_experts=a.experts, top_k=a.top_k, dim=2048, max_tokens=a.batch * a.seq_len,
                  dtype=torch.bfloat16, backend="deepep")
    layers.GroupedExperts.forward = experts_forward
    model_file.MoE = ExparMoE
    saved.add(torch.ops.expar.moe_experts.default)
    return group


def shard_experts(model, mesh):
    """Each rank's experts, as TorchTitan's expert parallelism shards them, without its token exchange."""
    titan = importlib.import_module("torchtitan.distributed.expert_parallel")
    from torch.distributed.tensor import distribute_module

    for block in model.layers.values():
        if block.moe_enabled:
            distribute_module(block.moe.experts, mesh, partition_fn=titan.DeepEPExpertParallel._partition_fn)


def build(a, world, torch, dist):
    """TorchTitan's model, parallelised by its own functions, with weights on this rank's GPU."""
    titan = lambda name: importlib.import_module("torchtitan." + name)
    model_args, model_file = titan("models.qwen3.model.args"), titan("models.qwen3.model.model")
    moe, parallelize = titan("models.moe"), titan("models.llama4.infra.parallelize")
    qwen3, job = titan("models.qwen3.infra.parallelize"), titan("config.job_config")
    ep = 1 if a.backend == "ep1" else world
    dims = titan("distributed.parallel_dims").ParallelDims(dp_replicate=1, dp_shard=-1, cp=1, tp=1, pp=1, ep=ep, etp=1,
                                                           world_size=world)
    dims.build_mesh()
    saved = qwen3._op_sac_save_list
    if a.backend == "deepep":
        model_file.MoE = titan("models.moe.moe_deepep").DeepEPMoE
        titan("distributed.deepep")
        saved.update({torch.ops.deepep.dispatch.default, torch.ops.deepep.combine.default})
    group = use_expar(a, titan("models.moe.moe"), model_file, saved, torch, dist) if a.backend == "expar" else None
    moe_args = moe.MoEArgs(num_experts=a.experts, num_shared_experts=0, top_k=a.top_k, score_func="softmax", route_norm=True,
                           route_scale=1.0, score_before_experts=False, _debug_force_load_balance=a.routing == "forced")
    args = model_args.Qwen3ModelArgs(vocab_size=151936, max_seq_len=a.seq_len, head_dim=128, dim=2048, n_layers=a.layers,
                                     n_heads=32, n_kv_heads=4, qk_norm=True, hidden_dim=6144, rope_theta=1000000,
                                     moe_enabled=True, moe_inter_dim=768, moe_args=moe_args)
    with torch.device("meta"):
        model = model_file.Qwen3Model(args)
    if ep > 1 and a.backend == "expar":
        shard_experts(model, dims.get_mesh("ep"))
    elif ep > 1:
        parallelize.apply_moe_ep_tp(model, tp_mesh=None, ep_mesh=dims.get_mesh("ep"), etp_mesh=None, ep_etp_mesh=None,
                                    use_deepep=a.backend == "deepep")
    checkpointing = job.ActivationCheckpoint(mode="selective", selective_ac_option="op")
    titan("distributed.activation_checkpoint").apply_ac(model, checkpointing, model_compile_enabled=True,
                                                        op_sac_save_list=saved, base_folder="/tmp")
    parallelize.apply_compile(model, job.Compile(enable=True, components=["model", "loss"]), ep > 1)
    mesh = dims.get_mesh(["fsdp"]) if world > 1 else dist.device_mesh.init_device_mesh("cuda", (1,))
    experts = dict(ep_degree=ep, edp_mesh=dims.get_mesh(["efsdp"])) if ep > 1 else {}
    parallelize.apply_fsdp(model, mesh, param_dtype=torch.bfloat16, reduce_dtype=torch.float32, pp_enabled=False, **experts)
    model.to_empty(device="cuda")
    with torch.no_grad():
        model.init_weights(buffer_device=torch.device("cuda"))
    return model.train(), group


def main():
    a = parse()
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    for name, value in dict(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0").items():
        os.environ.setdefault(name, value)
    sys.path.insert(0, os.environ["TORCHTITAN"])
    replace_absent_packages()
    import torch
    import torch.distributed as dist
    rank, world, local = (int(os.environ[n]) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    torch.manual_seed(rank)
    torch.cuda.set_device(local)
    dist.init_process_group("nccl", device_id=torch.device(f"cuda:{local}"))
    model, group = build(a, world, torch, dist)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
    loss_fn = torch.compile(importlib.import_module("torchtitan.components.loss").cross_entropy_loss)
    tokens = torch.randint(0, 151936, (a.batch, a.seq_len + 1), device="cuda")
    times = []
    for step in range(a.steps):
        torch.cuda.synchronize()
        dist.barrier()
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = loss_fn(model(tokens[:, :-1]), tokens[:, 1:])
        loss.backward()
        optimizer.step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        if rank == 0:
            print(f"step {step + 1}  loss {loss.item():.4f}  {times[-1]:.3f} s  {a.batch * a.seq_len / times[-1]:,.0f} tok/s/GPU",
                  flush=True)
    if rank == 0:
        counted = sorted(times[3:])
        rate = a.batch * a.seq_len / counted[len(counted) // 2]
        print(f"RESULT torchtitan {a.backend} {a.routing}, {world} GPU, {a.layers} layers, {a.experts} experts, "
              f"{a.batch} x {a.seq_len}: {rate:,.0f} tok/s/GPU, {torch.cuda.max_memory_reserved() / 2**30:.1f} GiB reserved")
    if group is not None:
        group.check()
        group.close()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
