"""The autograd nodes of dispatch and combine. Each does all rounds of its call: the rounds of one sum go up from 0."""
from typing import Any, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from expar import _device
from expar._handle import Handle


def _zeroed_past(rows: Tensor, offsets: Tensor) -> Tensor:
    """Zeros from row offsets[L] on."""
    unused = torch.arange(rows.shape[0], device=rows.device) >= offsets[-1]
    return rows.masked_fill_(unused[:, None], 0)


def _gathered(rows: Tensor, handle: Handle, round: int) -> Tensor:
    """[P, D]: received rows in expert-major order."""
    offsets, gather, _ = handle.lists(round)
    if rows.shape[0] == 0:
        return rows.new_zeros((gather.shape[0], rows.shape[1]))
    return _zeroed_past(rows.index_select(0, gather), offsets)


def _scattered(d_recv: Tensor, handle: Handle, round: int) -> Tensor:
    """[P, D]: a received row's gradient at its first assignment row, zeros at the others: their sum has the same bits."""
    offsets, gather, _ = handle.lists(round)
    order = torch.arange(gather.shape[0], device=gather.device)
    row = torch.where(order < offsets[-1], gather.long(), torch.full_like(order, d_recv.shape[0]))
    row, at = row.sort(stable=True)
    first = row < d_recv.shape[0]
    first[1:] &= row[1:] != row[:-1]
    rows = d_recv.index_select(0, row.clamp_(max=d_recv.shape[0] - 1)).masked_fill_(~first[:, None], 0)
    return torch.empty_like(rows).index_copy_(0, at, rows)


class Dispatch(torch.autograd.Function):
    """x, topk_weight -> (rows, weight) of every round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, topk_weight: Tensor, handle: Handle, layout: str) -> Tuple[Tensor, ...]:
        group = handle.group
        group._enter()
        x = _device.dense(x)
        results = []
        for r in range(handle.n_rounds):
            recv = group._received("dispatch", handle, r, x)
            if layout == "expert":
                recv = _gathered(recv, handle, r)
            elif recv.shape[0] == 0:
                recv = recv.new_zeros((1, group.dim))  # for those who index it with the zeros of an empty gather list
            results += [recv.clone() if recv is x else recv, handle.lists(r)[2].clone()]
        ctx.handle, ctx.layout = handle, layout
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Optional[Tensor]) -> Tuple[Optional[Tensor], ...]:
        handle, group = ctx.handle, ctx.handle.group
        group._enter()
        dx = group._empty(handle.n_tokens)
        d_topk_weight = torch.empty((handle.n_tokens, group.top_k), dtype=torch.float32, device=group.device)
        for r in range(handle.n_rounds):
            d_rows, d_weight = gradients[2 * r:2 * r + 2]
            if ctx.layout == "recv":
                d_rows = _scattered(d_rows, handle, r)
            group._dispatch_backward(handle, r, _device.dense(d_rows), _device.dense(d_weight), dx, d_topk_weight)
        return dx, d_topk_weight, None, None


class Combine(torch.autograd.Function):
    """y of every round -> out."""

    @staticmethod
    def forward(ctx: Any, handle: Handle, *rounds: Tensor) -> Tensor:
        group = handle.group
        group._enter()
        out = group._empty(handle.n_tokens)
        for r, y in enumerate(rounds):
            group._move("combine", handle, r, _device.dense(y), out)
        ctx.handle = handle
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Tuple[Optional[Tensor], ...]:
        handle, group = ctx.handle, ctx.handle.group
        group._enter()
        d_out = _device.dense(d_out)
        return (None, *(_gathered(group._received("combine_backward", handle, r, d_out), handle, r)
                        for r in range(handle.n_rounds)))
