"""Grouped GEMM with gather lists: the GEMMs of a mixture of experts."""
import ctypes
from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from expar import _arguments, _capi, _device, _library, _op

__all__ = ["grouped_mm"]

_library.load()


def grouped_mm(x: Tensor, weight: Tensor, offsets: Tensor, gather: Optional[Tensor] = None) -> Tensor:
    """out[r] = x[gather[r]] @ weight[e].T for every expert e and its rows r in [offsets[e], offsets[e + 1]).

    Differentiable in x and weight (once). Rows are read in place: no permuted copy of x is made.

    Args:
        x: [rows, K] float32 or bfloat16, on the CPU or a CUDA GPU.
        weight: [L, N, K] of the same dtype; nn.Linear's layout for every expert.
        offsets: [L + 1] int32, ascending from 0. offsets[L] rows are in use; on a GPU the count stays there.
        gather: [P] int32, the row of x for each assignment row; None: x's rows in order, P = rows.

    Returns:
        [P, N] of x's dtype. Rows from offsets[L] on are undefined. An expert without rows gets a zero gradient.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; on the CPU also offsets that do not ascend and gather entries that
            are no rows (on a GPU these are not checked: that would wait for it). TypeError: an argument is no tensor.

    Note:
        With gather the gradient of x adds rows that were read several times. On a GPU torch adds them in no fixed order;
        expar.ep and expar.moe do not use it.
    """
    _check(x, weight, offsets, gather)
    return _grouped_mm(x, weight, offsets, gather)


def _check(x: Tensor, weight: Tensor, offsets: Tensor, gather: Optional[Tensor]) -> None:
    for name, tensor in (("x", x), ("weight", weight), ("offsets", offsets), ("gather", gather)):
        if tensor is not None or name != "gather":
            _arguments.tensor(name, tensor)
    _device.dtype_of(x, "x")
    if x.dim() != 2 or weight.dim() != 3 or weight.shape[2] != x.shape[1]:
        raise ValueError(f"x {tuple(x.shape)} and weight {tuple(weight.shape)} must be [rows, K] and [L, N, K]")
    if weight.dtype != x.dtype:
        raise ValueError(f"weight is {weight.dtype}, x is {x.dtype}: they must be equal")
    if offsets.dtype != torch.int32 or tuple(offsets.shape) != (weight.shape[0] + 1,):
        raise ValueError(f"offsets is {offsets.dtype} {tuple(offsets.shape)}, must be torch.int32 [{weight.shape[0] + 1}]")
    if gather is not None and (gather.dtype != torch.int32 or gather.dim() != 1):
        raise ValueError(f"gather is {gather.dtype} {tuple(gather.shape)}, must be torch.int32 [P]")
    for name, tensor in (("weight", weight), ("offsets", offsets), ("gather", gather)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}")


def _check_rows(x: Tensor, offsets: Tensor, gather: Optional[Tensor]) -> None:
    """On the CPU a wrong row would be read from someone else's memory."""
    if x.device.type != "cpu":
        return
    used, n_rows = int(offsets[-1]), x.shape[0] if gather is None else gather.shape[0]
    if int(offsets[0]) != 0 or used > n_rows or bool((offsets[1:] < offsets[:-1]).any()):
        raise ValueError(f"offsets must ascend from 0 to at most {n_rows}, not {offsets.tolist()}")
    if gather is not None and used > 0:
        low, high = int(gather[:used].min()), int(gather[:used].max())
        if low < 0 or high >= x.shape[0]:
            raise ValueError(f"gather leads to rows {low} to {high}, x has {x.shape[0]}")


def run(name: str, device: Any, **fields: Any) -> None:
    """One call of the library: forward, dgrad or wgrad, on torch's current stream."""
    device.call("xp_grouped_gemm_" + name, ctypes.byref(_capi.GroupedGemmCall(**fields)), device.stream())


def _pointer(tensor: Optional[Tensor]) -> Optional[int]:
    return None if tensor is None else tensor.data_ptr()


def _forward(x: Tensor, weight: Tensor, offsets: Tensor, gather: Optional[Tensor]) -> Tensor:
    _check_rows(x, offsets, gather)
    n_experts, n, k = weight.shape
    max_rows = x.shape[0] if gather is None else gather.shape[0]
    out = torch.empty((max_rows, n), dtype=x.dtype, device=x.device)
    x, weight, offsets = _device.dense(x), _device.dense(weight), _device.dense(offsets)
    gather = None if gather is None else _device.dense(gather)
    run("forward", _device.of(x.device), n_experts=n_experts, max_rows=max_rows, n=n, k=k, dtype=_device.DTYPES[x.dtype],
        offsets=_pointer(offsets), x=_pointer(x), x_gather=_pointer(gather), w=_pointer(weight), out=_pointer(out))
    return out


def _dgrad(dy: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    n_experts, n, k = weight.shape
    out = torch.empty((dy.shape[0], k), dtype=dy.dtype, device=dy.device)
    dy, weight, offsets = _device.dense(dy), _device.dense(weight), _device.dense(offsets)
    run("dgrad", _device.of(dy.device), n_experts=n_experts, max_rows=dy.shape[0], n=n, k=k,
        dtype=_device.DTYPES[dy.dtype], offsets=_pointer(offsets), w=_pointer(weight), dy=_pointer(dy), out=_pointer(out))
    return out


def _wgrad(dy: Tensor, x: Tensor, offsets: Tensor, gather: Optional[Tensor]) -> Tensor:
    n_experts, n, k = offsets.shape[0] - 1, dy.shape[1], x.shape[1]
    out = torch.empty((n_experts, n, k), dtype=x.dtype, device=x.device)
    dy, x, offsets = _device.dense(dy), _device.dense(x), _device.dense(offsets)
    gather = None if gather is None else _device.dense(gather)
    code = _device.DTYPES[x.dtype]
    run("wgrad", _device.of(x.device), n_experts=n_experts, max_rows=dy.shape[0], n=n, k=k, dtype=code, out_dtype=code,
        offsets=_pointer(offsets), x=_pointer(x), x_gather=_pointer(gather), dy=_pointer(dy), out=_pointer(out))
    return out


def _add_rows(rows: Tensor, offsets: Tensor, gather: Tensor, n_rows: int) -> Tensor:
    """[n_rows, K]: rows[r] added at gather[r] in fp32, for the rows in use."""
    used = torch.arange(rows.shape[0], device=rows.device) < offsets[-1]
    index = torch.where(used, gather, torch.full_like(gather, n_rows)).long()
    total = torch.zeros((n_rows + 1, rows.shape[1]), dtype=torch.float32, device=rows.device)
    return total.index_add_(0, index, rows.float().masked_fill_(~used[:, None], 0))[:n_rows].to(rows.dtype)


def _backward(ctx: Any, saved: Tuple[Any, ...], dy: Tensor) -> Tuple[Optional[Tensor], Optional[Tensor], None, None]:
    x, weight, offsets, gather = saved
    dx = dw = None
    if ctx.needs_input_grad[0]:
        dx = _grouped_mm_dgrad(dy, weight, offsets)
        if gather is not None:
            dx = _add_rows(dx, offsets, gather, x.shape[0])
    if ctx.needs_input_grad[1]:
        dw = _grouped_mm_wgrad(dy, x, offsets, gather)
    return dx, dw, None, None


_grouped_mm_dgrad = _op.define(
    "grouped_mm_dgrad", "(Tensor dy, Tensor weight, Tensor offsets) -> Tensor",
    _dgrad, lambda dy, weight, offsets: dy.new_empty((dy.shape[0], weight.shape[2])))
_grouped_mm_wgrad = _op.define(
    "grouped_mm_wgrad", "(Tensor dy, Tensor x, Tensor offsets, Tensor? gather) -> Tensor",
    _wgrad, lambda dy, x, offsets, gather: x.new_empty((offsets.shape[0] - 1, dy.shape[1], x.shape[1])))
_grouped_mm = _op.define(
    "grouped_mm", "(Tensor x, Tensor weight, Tensor offsets, Tensor? gather) -> Tensor",
    _forward, lambda x, weight, offsets, gather: x.new_empty(
        ((x if gather is None else gather).shape[0], weight.shape[1])),
    lambda ctx, inputs, output: ctx.save_for_backward(*inputs), _backward)
