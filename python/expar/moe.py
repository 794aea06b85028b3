"""A mixture-of-experts layer as one nn.Module: router, dispatch, experts, combine.

    layer = MoELayer(MoEArgs(num_experts=128, top_k=8, route_norm=True), dim=2048, hidden_dim=768, max_tokens=16384,
                     process_group=dist.group.WORLD, dtype=torch.bfloat16)
    y = layer(x)                                     # [..., D]

Several layers of a model share one group (its buffers are reserved once): MoELayer(..., group=first.group).

    logits = x gate^T (fp32);  scores = softmax or sigmoid
    a token's experts = the K largest of scores + expert_bias
    weight = their scores (normalised to sum 1 with route_norm), times route_scale
    out[t] = sum over token t's experts e of weight * down_proj[e] (silu(gate_proj[e] x[t]) * (up_proj[e] x[t]))
"""
import dataclasses
import warnings
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

import torch
from torch import Tensor, nn

from expar import _arguments
from expar._experts import experts
from expar._handle import eager
from expar.ep import Group

__all__ = ["MoEArgs", "MoELayer", "Routing", "experts", "prepare_for_ddp", "update_expert_bias"]

SCORES = {"softmax": lambda logits: torch.softmax(logits, -1), "sigmoid": torch.sigmoid}
FORCED = (None, "modulo", "spread")
STEPS_BEFORE_WARNING = 200


@dataclasses.dataclass
class MoEArgs:
    """What describes a layer besides its sizes.

    Attributes:
        num_experts: E, a multiple of the number of ranks.
        top_k: K, experts of a token.
        use_deepep: peer-to-peer dispatch and combine; False: all-to-all of packed rows ("standard"), the same bits.
        score_func: "softmax" (Qwen3-MoE) or "sigmoid".
        route_norm: a token's weights sum to route_scale (norm_topk_prob).
        route_scale: factor on the weights.
        load_balance_coeff: step of expert_bias in update_expert_bias(); None: no bias.
        capacity_factor: rows reserved at a rank over the balanced load; what exceeds them comes in further rounds.
        recompute: keep less for backward: dispatch and the first grouped GEMM run again there.
        force_load_balance: None; "modulo", "spread": ignore the scores, for benchmarks. modulo is assignment number % E, which
            puts a token's experts on one rank; spread puts them on as many ranks as it can, as real routing does.
    """

    num_experts: int
    top_k: int
    use_deepep: bool = True
    score_func: str = "softmax"
    route_norm: bool = False
    route_scale: float = 1.0
    load_balance_coeff: Optional[float] = 1e-3
    capacity_factor: float = 2.0
    recompute: bool = False
    force_load_balance: Optional[str] = None

    def __post_init__(self) -> None:
        self.num_experts = _arguments.whole("num_experts", self.num_experts, least=1)
        self.top_k = _arguments.whole("top_k", self.top_k)
        for name in ("use_deepep", "route_norm", "recompute"):
            _arguments.flag(name, getattr(self, name))
        _arguments.word("score_func", self.score_func, SCORES)
        self.route_scale = _arguments.real("route_scale", self.route_scale)
        self.capacity_factor = _arguments.real("capacity_factor", self.capacity_factor, above=0)
        if self.load_balance_coeff is not None:
            self.load_balance_coeff = _arguments.real("load_balance_coeff", self.load_balance_coeff)
        if self.force_load_balance is not None and (not isinstance(self.force_load_balance, str) or
                                                    self.force_load_balance not in FORCED):
            raise ValueError(f"force_load_balance is {self.force_load_balance!r}, must be None, 'modulo' or 'spread'")
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(f"top_k {self.top_k} must be from 1 to num_experts ({self.num_experts})")


class Routing(NamedTuple):
    """What the router says of T tokens."""

    topk_idx: Tensor  # [T, K] int64
    topk_weight: Tensor  # [T, K] float32, differentiable
    scores: Tensor  # [T, E] float32, differentiable: for extra losses


class MoELayer(nn.Module):
    """Router and experts, the experts spread over the ranks of a group.

    Args:
        args: see MoEArgs.
        dim: D, the model's width.
        hidden_dim: F, the experts' width.
        max_tokens: most tokens of any rank in any call; not needed with `group`.
        process_group: the ranks that share the experts, as in expar.ep.Group; None: one rank.
        group: an expar.ep.Group to share with other layers, in place of the last two.
        dtype: torch.float32 or torch.bfloat16; None: torch.get_default_dtype(), or the group's.
        device: as in expar.ep.Group.

    Parameters: gate.weight [E, D] (the same on every rank), experts.w13 [L, 2F, D] and experts.w2 [L, D, F] (this rank's).
    Sum gate's gradient over the ranks as for any replicated parameter; the experts' gradients hold all ranks' tokens already:
    dense_parameters() and expert_parameters() tell them apart. With a loss that is a mean per rank, divide the experts'
    gradients by the number of ranks.

    state_dict() has Hugging Face's Qwen3-MoE names: gate.weight, experts.E.{gate_proj, up_proj, down_proj}.weight, for this
    rank's experts; load_state_dict() takes a whole layer's and reads its own. A bias that has moved is saved, too, as
    expert_bias, which Qwen3-MoE has none of.

    Making a layer without `group` is collective; group.close() frees the group. copy.deepcopy() of a layer shares its group; a
    layer cannot be pickled: save its state_dict().
    """

    def __init__(self, args: MoEArgs, dim: int, hidden_dim: int, *, max_tokens: Optional[int] = None, process_group: Any = None,
                 group: Optional[Group] = None, dtype: Optional[torch.dtype] = None, device: Any = None):
        super().__init__()
        _arguments.instance("args", args, MoEArgs, "an expar.moe.MoEArgs")
        dim, hidden_dim = _arguments.whole("dim", dim, least=1), _arguments.whole("hidden_dim", hidden_dim, least=1)
        if group is not None:
            _arguments.instance("group", group, Group, "an expar.ep.Group or None")
            group._check_open()
        if dtype is not None:
            _arguments.instance("dtype", dtype, torch.dtype, "torch.float32, torch.bfloat16 or None")
        if group is None:
            if max_tokens is None:
                raise ValueError("give max_tokens (the most tokens of any rank in any call) or a group")
            group = Group(process_group, num_experts=args.num_experts, top_k=args.top_k, dim=dim, max_tokens=max_tokens,
                          dtype=dtype or torch.get_default_dtype(), device=device, capacity_factor=args.capacity_factor,
                          backend="deepep" if args.use_deepep else "standard")
        for name, ours, theirs in (("num_experts", args.num_experts, group.num_experts), ("top_k", args.top_k, group.top_k),
                                   ("dim", dim, group.dim), ("dtype", dtype or group.dtype, group.dtype)):
            if ours != theirs:
                raise ValueError(f"{name} is {ours}, the group was made for {theirs}")
        self.args, self.group, self.dim, self.hidden_dim = args, group, dim, hidden_dim
        self.gate = nn.Linear(dim, args.num_experts, bias=False, dtype=group.dtype, device=group.device)
        self.experts = _Experts(group, dim, hidden_dim)
        self.register_buffer("expert_bias", torch.zeros(args.num_experts, device=group.device), persistent=False)
        self.register_buffer("tokens_per_expert", torch.zeros(args.num_experts, device=group.device), persistent=False)
        self._calls_since_update = 0
        self.reset_parameters()

    def _apply(self, fn: Any, *others: Any) -> "MoELayer":
        """Of to(), bfloat16() and the like. The bias and the counts stay fp32: a step of the bias would be lost in bf16."""
        before = {name: self._buffers[name] for name in ("expert_bias", "tokens_per_expert")}
        super()._apply(fn, *others)
        for name, buffer in before.items():
            now = self._buffers[name]
            if buffer is not None and now is not None and now.dtype != torch.float32:
                self._buffers[name] = buffer.to(now.device)
        return self

    def reset_parameters(self, std: float = 0.02, out_std: float = 0.02) -> None:
        """N(0, std), down_proj N(0, out_std). With the same torch seed on every rank the layer is the same for every number
        of ranks."""
        with torch.no_grad():
            seed = int(torch.randint(2**62, ()))
            generator = torch.Generator(self.group.device)
            self.gate.weight.normal_(0, std, generator=generator.manual_seed(seed))
            for e in range(self.group.num_local_experts):
                generator.manual_seed(seed + 1 + self.experts.first + e)
                self.experts.w13[e].normal_(0, std, generator=generator)
                self.experts.w2[e].normal_(0, out_std, generator=generator)

    def expert_parameters(self) -> Iterator[nn.Parameter]:
        """This rank's experts: reduce their gradients over the ranks that hold the same experts only."""
        return self.experts.parameters()

    def dense_parameters(self) -> Iterator[nn.Parameter]:
        """The router: reduce its gradient over all ranks."""
        return self.gate.parameters()

    def route(self, x: Tensor) -> Routing:
        """The router on x [T, D], in fp32, under torch.autocast, too."""
        _arguments.tensor("x", x)
        if x.dim() != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x has shape {tuple(x.shape)}, must be [T, {self.dim}]")
        with torch.autocast(x.device.type, enabled=False):
            return self._route(x)

    def _route(self, x: Tensor) -> Routing:
        args = self.args
        scores = SCORES[args.score_func](x.float() @ self.gate.weight.float().t())
        if args.force_load_balance is not None:
            topk_idx = self._forced(x.shape[0])
        else:
            topk_idx = torch.topk(scores.detach() + self.expert_bias, args.top_k, dim=-1).indices
        weight = scores.gather(1, topk_idx)
        if args.route_norm:
            weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        return Routing(topk_idx, weight * args.route_scale, scores)

    def _forced(self, n_tokens: int) -> Tensor:
        k, n_ranks, n_local = self.args.top_k, self.group.size, self.group.num_local_experts
        number = torch.arange(n_tokens * k, device=self.group.device).reshape(n_tokens, k)
        if self.args.force_load_balance == "modulo":
            return number % self.args.num_experts
        rank = number % n_ranks
        return rank * n_local + torch.div(number, n_ranks, rounding_mode="floor") % n_local

    def forward(self, x: Tensor) -> Tensor:
        """out of x's shape [..., D]. Collective over the group, in training and evaluation.

        Raises:
            ValueError: x does not fit; on every rank when there are more tokens than max_tokens. TypeError: x is no tensor.
            ExparError: a rank is lost.
        """
        _arguments.tensor("x", x)
        if x.dim() == 0 or x.shape[-1] != self.dim:
            raise ValueError(f"x has shape {tuple(x.shape)}, its last dimension must be {self.dim}")
        tokens = x.reshape(-1, self.dim)
        routing = self.route(tokens)
        if self.training and self.args.load_balance_coeff is not None:
            self._count(routing.topk_idx)
        handle = self.group.plan(routing.topk_idx, routing.topk_weight)
        return experts(tokens, self.experts.w13, self.experts.w2, handle, self.args.recompute).reshape(x.shape)

    @eager  # a number that changes with every call would have torch.compile compile every call
    def _count(self, topk_idx: Tensor) -> None:
        with torch.no_grad():
            ones = torch.ones((), device=topk_idx.device).expand(topk_idx.numel())
            self.tokens_per_expert.index_add_(0, topk_idx.reshape(-1), ones)
        self._calls_since_update += 1
        if self._calls_since_update == STEPS_BEFORE_WARNING:
            warnings.warn(f"{STEPS_BEFORE_WARNING} training calls without expar.moe.update_expert_bias(): the expert bias does "
                          "not move. Call it once a step, or set load_balance_coeff=None", RuntimeWarning)

    @torch.no_grad()
    def update_expert_bias(self, process_group: Any = None) -> None:
        """Balance without a loss, once a step: d = coeff * sign(mean - count), bias += d - mean(d); then the counts are zero.

        Args:
            process_group: all ranks that see different data; their counts are added. None: this rank's alone.

        Activation checkpointing counts every token of a layer twice, which changes no sign.
        """
        if self.args.load_balance_coeff is None:
            return
        counts = self.tokens_per_expert
        if process_group is not None:
            torch.distributed.all_reduce(counts, group=process_group)
        step = self.args.load_balance_coeff * torch.sign(counts.mean() - counts)
        self.expert_bias += step - step.mean()
        counts.zero_()
        self._calls_since_update = 0

    # ---- state dict: the bias only where it has moved

    def _save_to_state_dict(self, destination: Dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if bool((self.expert_bias != 0).any()):
            destination[prefix + "expert_bias"] = self.expert_bias.detach()

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *others: Any) -> None:
        bias = state_dict.get(prefix + "expert_bias")
        with torch.no_grad():
            if bias is None:
                self.expert_bias.zero_()
            else:
                self.expert_bias.copy_(bias)
        rest = {key: value for key, value in state_dict.items() if key != prefix + "expert_bias"}
        super()._load_from_state_dict(rest, prefix, *others)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        return (f"dim={self.dim}, hidden_dim={self.hidden_dim}, num_experts={self.args.num_experts}, top_k={self.args.top_k}, "
                f"rank {self.group.rank} of {self.group.size}, backend={self.group.backend}")


class _Experts(nn.Module):
    """This rank's experts: two tensors for the grouped GEMM, Hugging Face's names in the state dict."""

    def __init__(self, group: Group, dim: int, hidden_dim: int):
        super().__init__()
        n_local = group.num_local_experts
        self.first, self.n_experts, self.hidden_dim = group.rank * n_local, group.num_experts, hidden_dim
        self.w13 = nn.Parameter(torch.empty((n_local, 2 * hidden_dim, dim), dtype=group.dtype, device=group.device))
        self.w2 = nn.Parameter(torch.empty((n_local, dim, hidden_dim), dtype=group.dtype, device=group.device))

    def _views(self, keep_vars: bool) -> Dict[str, Tensor]:
        w13, w2 = (self.w13, self.w2) if keep_vars else (self.w13.detach(), self.w2.detach())
        views: Dict[str, Tensor] = {}
        for i in range(w13.shape[0]):
            name = f"{self.first + i}."
            views[name + "gate_proj.weight"] = w13[i, :self.hidden_dim]
            views[name + "up_proj.weight"] = w13[i, self.hidden_dim:]
            views[name + "down_proj.weight"] = w2[i]
        return views

    def _save_to_state_dict(self, destination: Dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name, view in self._views(keep_vars).items():
            destination[prefix + name] = view

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, local_metadata: Any, strict: bool,
                              missing_keys: List[str], unexpected_keys: List[str], error_msgs: List[str]) -> None:
        for name, view in self._views(keep_vars=False).items():
            value = state_dict.get(prefix + name)
            if value is None:
                missing_keys.append(prefix + name)
            elif value.shape != view.shape:
                error_msgs.append(f"size mismatch for {prefix + name}: {tuple(value.shape)} in the state dict, "
                                  f"{tuple(view.shape)} in the layer")
            else:
                view.copy_(value)
        known = {f"{e}.{part}.weight" for e in range(self.n_experts) for part in ("gate_proj", "up_proj", "down_proj")}
        if strict:
            unexpected_keys += [key for key in state_dict if key.startswith(prefix) and key[len(prefix):] not in known]


def update_expert_bias(model: nn.Module, process_group: Any = None) -> None:
    """MoELayer.update_expert_bias() for every layer of a model, once a step and before or after the optimizer's."""
    _arguments.instance("model", model, nn.Module, "a torch.nn.Module")
    for module in model.modules():
        if isinstance(module, MoELayer):
            module.update_expert_bias(process_group)


def prepare_for_ddp(model: nn.Module) -> nn.Module:
    """Make a model with MoELayers ready for torch.nn.parallel.DistributedDataParallel(model) over the layers' ranks.

    DDP then leaves this rank's experts and the counts alone (each rank has its own) and averages everything else; the experts'
    gradients, which hold all ranks' tokens, are divided by the number of ranks as they come, so that they are averages, too.

    Returns:
        model, changed in place. Call it once, before DDP.
    """
    _arguments.instance("model", model, nn.Module, "a torch.nn.Module")
    ignored = list(getattr(model, "_ddp_params_and_buffers_to_ignore", []))
    for prefix, module in model.named_modules():
        if not isinstance(module, MoELayer):
            continue
        for name in ("experts.w13", "experts.w2", "expert_bias", "tokens_per_expert"):
            ignored.append(f"{prefix}.{name}" if prefix else name)
        for parameter in module.expert_parameters():
            parameter.register_hook(lambda gradient, size=module.group.size: gradient / size)
    model._ddp_params_and_buffers_to_ignore = ignored  # type: ignore[assignment]  # what DDP reads
    return model
