"""silu(x1) * x2 * prob in one pass over memory, and its backward with the gradient of prob.

x1 and x2 are the gate and up projections of the rows that an expert reads, prob the routing weight of each row. Scaling
here equals scaling the expert's output (the down projection has no bias). The router gets its gradient only through
dprob[r] = sum over f of dout[r, f] * silu(x1[r, f]) * x2[r, f].
"""
import ctypes
from typing import Any, Callable, Optional, Tuple

import torch
from torch import Tensor

from expar import _arguments, _capi, _device, _library, _op

__all__ = ["fused_silu_gate_prob", "fused_silu_gate_prob_packed", "silu_gate_prob_reference", "get_fused_activation_fn"]

_library.load()


def fused_silu_gate_prob(x1: Tensor, x2: Tensor, prob: Tensor, n_rows: Optional[Tensor] = None) -> Tensor:
    """silu(x1) * x2 * prob, differentiable in x1, x2 and prob (once).

    Args:
        x1: [N, F] float32 or bfloat16, on the CPU or a CUDA GPU; the gate projection.
        x2: [N, F] like x1; the up projection. Halves of one [N, 2F] matrix are read in place.
        prob: [N, 1] or [N] float32; the routing weights.
        n_rows: [1] int32 on the same device: only the first n_rows rows are computed, the rest of the result (and of the
            gradients) is undefined. For static sizes: the count stays on the device. None: all N.

    Returns:
        [N, F], contiguous, of x1's dtype. Arithmetic is fp32 or better with one rounding at the end.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; TypeError: an argument is no tensor. Nothing is computed.
        RuntimeError: in a second backward (through gradients made with create_graph=True), which there is none of.
    """
    _check(x1, x2, prob, n_rows)
    return _silu_gate_prob(x1, x2, prob, n_rows)


def fused_silu_gate_prob_packed(x12: Tensor, prob: Tensor, n_rows: Optional[Tensor] = None) -> Tensor:
    """fused_silu_gate_prob() of the two halves of one matrix; the gradient comes as one matrix, too, without a copy.

    Args:
        x12: [N, 2F] float32 or bfloat16, rows [x1 | x2].
        prob, n_rows: as in fused_silu_gate_prob().

    Returns:
        [N, F] of x12's dtype.
    """
    _arguments.tensor("x12", x12)
    if x12.dim() != 2 or x12.shape[1] % 2 != 0:
        raise ValueError(f"x12 has shape {tuple(x12.shape)}, must be [N, 2F]")
    width = x12.shape[1] // 2
    _check(x12[:, :width], x12[:, width:], prob, n_rows)
    return _silu_gate_prob_packed(x12, prob, n_rows)


def silu_gate_prob_reference(x1: Tensor, x2: Tensor, prob: Tensor) -> Tensor:
    """The same in plain torch operations, fp32 inside: what the fused code is tested against.

    Args and returns as fused_silu_gate_prob(); any device.
    """
    for name, tensor in (("x1", x1), ("x2", x2), ("prob", prob)):
        _arguments.tensor(name, tensor)
    gate = x1.float()
    return (gate * torch.sigmoid(gate) * x2.float() * prob.reshape(-1, 1)).to(x1.dtype)


def get_fused_activation_fn(use_triton: bool = True) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """fused_silu_gate_prob when use_triton is true, else silu_gate_prob_reference.

    The argument's name is the one that callers of TorchTitan's DeepEP module pass; no Triton is involved.
    """
    return fused_silu_gate_prob if use_triton else silu_gate_prob_reference


def _check(x1: Tensor, x2: Tensor, prob: Tensor, n_rows: Optional[Tensor]) -> None:
    for name, tensor in (("x1", x1), ("x2", x2), ("prob", prob), ("n_rows", n_rows)):
        if tensor is not None or name != "n_rows":
            _arguments.tensor(name, tensor)
    _device.dtype_of(x1, "x1")
    if x1.dim() != 2 or x1.shape != x2.shape:
        raise ValueError(f"x1 and x2 have shapes {tuple(x1.shape)} and {tuple(x2.shape)}, must both be [N, F]")
    if x2.dtype != x1.dtype:
        raise ValueError(f"x2 is {x2.dtype}, x1 is {x1.dtype}: they must be equal")
    if prob.dtype != torch.float32 or tuple(prob.shape) not in ((x1.shape[0],), (x1.shape[0], 1)):
        raise ValueError(f"prob is {prob.dtype} {tuple(prob.shape)}, must be torch.float32 [{x1.shape[0]}, 1] or "
                         f"[{x1.shape[0]}]")
    if n_rows is not None and (n_rows.dtype != torch.int32 or n_rows.numel() != 1):
        raise ValueError(f"n_rows is {n_rows.dtype} {tuple(n_rows.shape)}, must be torch.int32 [1]")
    for name, tensor in (("x2", x2), ("prob", prob), ("n_rows", n_rows)):
        if tensor is not None and tensor.device != x1.device:
            raise ValueError(f"{name} is on {tensor.device}, x1 on {x1.device}")


def _same_rows(x1: Tensor, x2: Tensor) -> bool:
    """True when both can be read in place with one distance between rows."""
    return (x1.stride(1) == 1 and x2.stride(1) == 1 and x1.stride(0) == x2.stride(0) and x1.stride(0) >= x1.shape[1]
            and _device.is_aligned(x1) and _device.is_aligned(x2))


def _operands(x1: Tensor, x2: Tensor) -> Tuple[Tensor, Tensor, int]:
    """x1, x2 and the distance between their rows; copies only where they cannot be read in place."""
    if x1.shape[0] <= 1 or x1.shape[1] == 0 or not _same_rows(x1, x2):
        x1, x2 = _device.dense(x1), _device.dense(x2)
        return x1, x2, x1.shape[1]
    return x1, x2, x1.stride(0)


def _call(x1: Tensor, x2: Tensor, ld: int, prob: Tensor, n_rows: Optional[Tensor], out: Optional[Tensor]) -> Any:
    return _capi.SiluGateProbCall(
        n_rows=x1.shape[0], dim=x1.shape[1], dtype=_device.DTYPES[x1.dtype], x1=x1.data_ptr(), x2=x2.data_ptr(), ld=ld,
        prob=prob.data_ptr(), n_rows_device=None if n_rows is None else n_rows.data_ptr(),
        out=None if out is None else out.data_ptr())


def _forward(x1: Tensor, x2: Tensor, prob: Tensor, n_rows: Optional[Tensor]) -> Tensor:
    out = torch.empty(x1.shape, dtype=x1.dtype, device=x1.device)
    if out.numel() > 0:
        x1, x2, ld = _operands(x1, x2)
        prob = _device.dense(prob)
        device = _device.of(x1.device)
        call = _call(x1, x2, ld, prob, n_rows, out)
        device.call("xp_silu_gate_prob", ctypes.byref(call), device.stream(), None)
    return out


def _gradients(x1: Tensor, x2: Tensor, prob: Tensor, n_rows: Optional[Tensor], dout: Tensor, dx1: Tensor, dx2: Tensor,
               dprob: Tensor) -> None:
    """Fill dx1, dx2 (rows equally far apart) and dprob."""
    if x1.numel() == 0:
        dprob.zero_()
        return
    x1, x2, ld = _operands(x1, x2)
    prob, dout = _device.dense(prob), _device.dense(dout)
    device = _device.of(x1.device)
    call = _capi.SiluGateProbBackwardCall(
        forward=_call(x1, x2, ld, prob, n_rows, None), dout=dout.data_ptr(), dx1=dx1.data_ptr(), dx2=dx2.data_ptr(),
        ld_grad=max(dx1.stride(0), x1.shape[1]), dprob=dprob.data_ptr())
    device.call("xp_silu_gate_prob_backward", ctypes.byref(call), device.stream(), None)


def _backward(x1: Tensor, x2: Tensor, prob: Tensor, n_rows: Optional[Tensor], dout: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    dx1, dx2 = (torch.empty(x1.shape, dtype=x1.dtype, device=x1.device) for _ in range(2))
    dprob = torch.empty(prob.shape, dtype=torch.float32, device=prob.device)
    _gradients(x1, x2, prob, n_rows, dout, dx1, dx2, dprob)
    return dx1, dx2, dprob


def _packed_forward(x12: Tensor, prob: Tensor, n_rows: Optional[Tensor]) -> Tensor:
    width = x12.shape[1] // 2
    return _forward(x12[:, :width], x12[:, width:], prob, n_rows)


def _packed_backward(x12: Tensor, prob: Tensor, n_rows: Optional[Tensor], dout: Tensor) -> Tuple[Tensor, Tensor]:
    width = x12.shape[1] // 2
    dx12 = torch.empty(x12.shape, dtype=x12.dtype, device=x12.device)
    dprob = torch.empty(prob.shape, dtype=torch.float32, device=prob.device)
    halves = dx12[:, :width], dx12[:, width:]
    if _device.is_aligned(halves[1]) or x12.numel() == 0:
        _gradients(x12[:, :width], x12[:, width:], prob, n_rows, dout, *halves, dprob)
        return dx12, dprob
    dx1, dx2 = (torch.empty(halves[0].shape, dtype=x12.dtype, device=x12.device) for _ in range(2))
    _gradients(x12[:, :width], x12[:, width:], prob, n_rows, dout, dx1, dx2, dprob)
    halves[0].copy_(dx1)
    halves[1].copy_(dx2)
    return dx12, dprob


def _like(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.shape)


_silu_gate_prob_backward = _op.define(
    "silu_gate_prob_backward", "(Tensor x1, Tensor x2, Tensor prob, Tensor? n_rows, Tensor dout) -> (Tensor, Tensor, Tensor)",
    _backward, lambda x1, x2, prob, n_rows, dout: (_like(x1), _like(x2), _like(prob)))
_silu_gate_prob = _op.define(
    "silu_gate_prob", "(Tensor x1, Tensor x2, Tensor prob, Tensor? n_rows) -> Tensor",
    _forward, lambda x1, x2, prob, n_rows: _like(x1),
    lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    lambda ctx, saved, dout: (*_silu_gate_prob_backward(*saved, dout), None))
_silu_gate_prob_packed_backward = _op.define(
    "silu_gate_prob_packed_backward", "(Tensor x12, Tensor prob, Tensor? n_rows, Tensor dout) -> (Tensor, Tensor)",
    _packed_backward, lambda x12, prob, n_rows, dout: (_like(x12), _like(prob)))
_silu_gate_prob_packed = _op.define(
    "silu_gate_prob_packed", "(Tensor x12, Tensor prob, Tensor? n_rows) -> Tensor",
    _packed_forward, lambda x12, prob, n_rows: x12.new_empty((x12.shape[0], x12.shape[1] // 2)),
    lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    lambda ctx, saved, dout: (*_silu_gate_prob_packed_backward(*saved, dout), None))
