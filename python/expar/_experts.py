"""dispatch -> SwiGLU experts -> combine as one autograd node: no permuted copies, and the rows of later rounds, which are rare,
are computed again in backward instead of being kept."""
import ctypes
from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from expar import _arguments, _capi, _device, _op, ops
from expar._handle import Handle, eager, find


@eager
def experts(x: Tensor, w13: Tensor, w2: Tensor, handle: Handle, recompute: bool = False) -> Tensor:
    """out[t] = sum over token t's experts e of weight * w2[e] (silu(w1[e] x[t]) * (w3[e] x[t])).

    Args:
        x: [T, D] of the group's dtype.
        w13: [L, 2F, D], rows [w1 | w3] of each expert of this rank; w2: [L, D, F]. Contiguous, of the same dtype.
        handle: from group.plan(topk_idx, topk_weight), whose topk_weight gets its gradient here.
        recompute: keep neither the received rows nor the first grouped GEMM's results for backward: dispatch and multiply
            again there.

    Returns:
        [T, D]

    Raises:
        ValueError: an argument does not fit; TypeError: it is not of its kind; nothing is sent. ExparError: the group has failed
            (XP_ECOMM).

    With PyTorch 2.4 or later it is the op torch.ops.expar.moe_experts: a policy of selective activation checkpointing that
    saves its results keeps it from running again.
    """
    _arguments.instance("handle", handle, Handle, "an expar.ep.Handle (from Group.plan())")
    handle.group._check_tokens("x", x, handle)
    _check_weights(handle, w13, w2)
    return _moe_experts(x, handle.topk_weight, w13, w2, handle.number, recompute)[0]


def _check_weights(handle: Handle, w13: Tensor, w2: Tensor) -> None:
    group = handle.group
    for name, weight in (("w13", w13), ("w2", w2)):
        _arguments.tensor(name, weight)
        if weight.dim() != 3:
            raise ValueError(f"{name} has shape {tuple(weight.shape)}, must have three dimensions")
    width = w2.shape[2]
    for name, weight, shape in (("w13", w13, (group.num_local_experts, 2 * width, group.dim)),
                                ("w2", w2, (group.num_local_experts, group.dim, width))):
        if weight.dtype != group.dtype or weight.device != group.device or tuple(weight.shape) != shape:
            raise ValueError(f"{name} is {weight.dtype} {tuple(weight.shape)} on {weight.device}, must be {group.dtype} {shape} "
                             f"on {group.device}")


class _Round:
    """The computations of one round on this rank's experts."""

    def __init__(self, handle: Handle, round: int, w13: Tensor, w2: Tensor):
        self.handle, self.group, self.round = handle, handle.group, round
        self.view = handle.view(round)
        self.w13, self.w2 = w13, w2
        self.width = w2.shape[2]
        self.n_rows = self.group.assignment_capacity

    def empty(self, width: int) -> Tensor:
        return torch.empty((self.n_rows, width), dtype=self.group.dtype, device=self.group.device)

    def grouped(self, name: str, n: int, k: int, **fields: Any) -> None:
        code = _device.DTYPES[self.group.dtype]
        fields = {key: value.data_ptr() if isinstance(value, Tensor) else value for key, value in fields.items()}
        ops.run(name, self.group._device, n_experts=self.group.num_local_experts, max_rows=self.n_rows, n=n, k=k, dtype=code,
                out_dtype=code, offsets=self.view.offsets, **fields)

    def gate_up(self, recv: Tensor) -> Tensor:
        """[P, 2F]: recv[gather] w13^T"""
        result = self.empty(2 * self.width)
        self.grouped("forward", 2 * self.width, self.group.dim, x=_pointer(recv), x_gather=self.view.gather, w=self.w13,
                     out=result)
        return result

    def _activation(self, gate_up: Tensor, out: Optional[Tensor]) -> Any:
        half = self.width * gate_up.element_size()
        return _capi.SiluGateProbCall(
            n_rows=self.n_rows, dim=self.width, dtype=_device.DTYPES[self.group.dtype], x1=gate_up.data_ptr(),
            x2=gate_up.data_ptr() + half, ld=2 * self.width, prob=self.view.weight,
            n_rows_device=self.view.offsets + 4 * self.group.num_local_experts, out=None if out is None else out.data_ptr())

    def activation(self, gate_up: Tensor) -> Tensor:
        """[P, F]: silu(gate) * up * weight"""
        result = self.empty(self.width)
        device = self.group._device
        device.call("xp_silu_gate_prob", ctypes.byref(self._activation(gate_up, result)), device.stream(), None)
        return result

    def down(self, h: Tensor) -> Tensor:
        """[P, D]: h w2^T"""
        result = self.empty(self.group.dim)
        self.grouped("forward", self.group.dim, self.width, x=h, w=self.w2, out=result)
        return result

    def down_backward(self, d_recv: Tensor) -> Tensor:
        """[P, F]: d_recv[gather] w2"""
        result = self.empty(self.width)
        self.grouped("dgrad", self.group.dim, self.width, dy=_pointer(d_recv), dy_gather=self.view.gather, w=self.w2,
                     out=result)
        return result

    def activation_backward(self, gate_up: Tensor, dh: Tensor) -> Tuple[Tensor, Tensor]:
        """[P, 2F] gradient of gate_up, [P] of the routing weights; dh ends as the activation's output."""
        d_gate_up = self.empty(2 * self.width)
        d_weight = torch.empty(self.n_rows, dtype=torch.float32, device=self.group.device)
        half = self.width * gate_up.element_size()
        device = self.group._device
        call = _capi.SiluGateProbBackwardCall(
            forward=self._activation(gate_up, dh), dout=dh.data_ptr(), dx1=d_gate_up.data_ptr(),
            dx2=d_gate_up.data_ptr() + half, ld_grad=2 * self.width, dprob=d_weight.data_ptr())
        device.call("xp_silu_gate_prob_backward", ctypes.byref(call), device.stream(), None)
        return d_gate_up, d_weight

    def input_gradient(self, d_gate_up: Tensor) -> Tensor:
        """[P, D]: d_gate_up w13"""
        result = self.empty(self.group.dim)
        self.grouped("dgrad", 2 * self.width, self.group.dim, dy=d_gate_up, w=self.w13, out=result)
        return result

    def weight_gradients(self, recv: Tensor, d_gate_up: Tensor, h: Tensor, d_recv: Tensor, dw13: Tensor, dw2: Tensor) -> None:
        """dw13 (+)= d_gate_up^T recv[gather]; dw2 (+)= d_recv[gather]^T h"""
        later = self.round > 0
        self.grouped("wgrad", self.group.dim, self.width, x=h, dy=_pointer(d_recv), dy_gather=self.view.gather, out=dw2,
                     accumulate=later)
        self.grouped("wgrad", 2 * self.width, self.group.dim, x=_pointer(recv), x_gather=self.view.gather, dy=d_gate_up,
                     out=dw13, accumulate=later)


def _pointer(rows: Tensor) -> int:
    return _device.some_pointer(rows)


def _forward(x: Tensor, topk_weight: Tensor, w13: Tensor, w2: Tensor, handle: int,
             recompute: bool) -> Tuple[Tensor, Tensor, Tensor]:
    """out, and what backward needs of round 0: the received rows and gate_up; without elements where they are not kept."""
    plan = find(handle)
    group = plan.group
    group._enter()
    x, w13, w2 = _device.dense(x), _device.dense(w13), _device.dense(w2)
    out = group._empty(plan.n_tokens)
    kept_recv, kept_gate_up = x.new_empty(0), x.new_empty(0)
    for r in range(plan.n_rounds):
        at = _Round(plan, r, w13, w2)
        recv = group._received("dispatch", plan, r, x)
        gate_up = at.gate_up(recv)
        group._move("combine", plan, r, at.down(at.activation(gate_up)), out)
        if r == 0 and not recompute:
            kept_recv, kept_gate_up = (kept_recv if recv is x else recv), gate_up
    return out, kept_recv, kept_gate_up


def _fake(x: Tensor, topk_weight: Tensor, w13: Tensor, w2: Tensor, handle: int,
          recompute: bool) -> Tuple[Tensor, Tensor, Tensor]:
    group = find(handle).group
    recv = (0,) if recompute or group.is_local else (group.recv_capacity, group.dim)
    gate_up = (0,) if recompute else (group.assignment_capacity, w13.shape[1])
    return x.new_empty(x.shape), x.new_empty(recv), x.new_empty(gate_up)


def _setup_context(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[Tensor, ...]) -> None:
    x, _, w13, w2, handle, _ = inputs
    ctx.handle = find(handle)  # the plan lives as long as the graph
    ctx.save_for_backward(x, w13, w2, output[1], output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, saved: Tuple[Tensor, ...], d_out: Optional[Tensor], *_: Any) -> Tuple[Optional[Tensor], ...]:
    x, w13, w2, kept_recv, kept_gate_up = saved
    x, w13, w2 = _device.dense(x), _device.dense(w13), _device.dense(w2)
    handle, group = ctx.handle, ctx.handle.group
    group._enter()
    d_out = torch.zeros_like(x) if d_out is None else _device.dense(d_out)
    dx, dw13, dw2 = group._empty(handle.n_tokens), torch.empty_like(w13), torch.empty_like(w2)
    d_topk_weight = torch.empty((handle.n_tokens, group.top_k), dtype=torch.float32, device=group.device)
    for r in range(handle.n_rounds):
        at = _Round(handle, r, w13, w2)
        d_recv = group._received("combine_backward", handle, r, d_out)
        recv = kept_recv if r == 0 and kept_recv.numel() > 0 else group._received("dispatch", handle, r, x)
        gate_up = kept_gate_up if r == 0 and kept_gate_up.numel() > 0 else at.gate_up(recv)
        h = at.down_backward(d_recv)
        d_gate_up, d_weight = at.activation_backward(gate_up, h)
        group._dispatch_backward(handle, r, at.input_gradient(d_gate_up), d_weight, dx, d_topk_weight)
        at.weight_gradients(recv, d_gate_up, h, d_recv, dw13, dw2)
    return dx, d_topk_weight, dw13, dw2, None, None


_moe_experts = _op.define(
    "moe_experts",
    "(Tensor x, Tensor topk_weight, Tensor w13, Tensor w2, int handle, bool recompute) -> (Tensor, Tensor, Tensor)",
    _forward, _fake, _setup_context, _backward)
