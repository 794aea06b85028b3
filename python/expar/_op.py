"""Defines an op with a backward: a custom op that torch.compile and selective activation checkpointing know where torch
has torch.library.custom_op (2.4), else a torch.autograd.Function."""
from typing import Any, Callable, Optional

import torch

HAS_CUSTOM_OPS = hasattr(torch.library, "custom_op") and hasattr(torch.library, "register_autograd")


def define(name: str, schema: str, run: Callable, fake: Callable, setup_context: Optional[Callable] = None,
           backward: Optional[Callable] = None) -> Callable:
    """The op expar::name.

    Args:
        schema: "(Tensor x, int n) -> Tensor".
        run: computes; its results alias no input.
        fake: shapes and dtypes of the results, for torch.compile.
        setup_context: (ctx, inputs, output) saves what backward needs.
        backward: (ctx, saved tensors, *gradients) -> a gradient or None for each input. A second derivative raises.
    """
    if HAS_CUSTOM_OPS:
        op = torch.library.custom_op(f"expar::{name}", run, mutates_args=(), schema=schema)
        op.register_fake(fake)
        if backward is not None:
            op.register_autograd(_only_once(backward, name), setup_context=setup_context)
        return getattr(torch.ops.expar, name).default
    if backward is None:
        return run
    return _function(name, run, setup_context, backward)


def _only_once(backward: Callable, name: str) -> Callable:
    """backward(ctx, ctx.saved_tensors, *gradients), computed outside of autograd: a derivative of its results raises.

    Autograd sees no path from the results to what they are computed from and would take that part of a second derivative for
    zero. So with create_graph=True the results hang on all of it by a zero, whose gradient raises.
    """

    def refuse(_gradient: Any) -> None:
        raise RuntimeError(f"expar::{name} has no second derivative: leave create_graph=True out, or keep it out of what is "
                           "differentiated twice")

    def once(ctx: Any, *gradients: Any) -> Any:
        saved = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return backward(ctx, saved, *gradients)
        with torch.no_grad():
            results = backward(ctx, saved, *gradients)
        sources = [t for t in (*gradients, *saved) if isinstance(t, torch.Tensor) and t.requires_grad]
        if not sources:
            return results
        zero = torch.stack([t.reshape(-1)[:0].float().sum() for t in sources]).sum()
        zero.register_hook(refuse)
        return tuple(None if result is None else result - zero for result in results)  # x - 0 is x, for -0 and NaN, too

    return once


def _function(name: str, run: Callable, setup_context: Optional[Callable], backward: Callable) -> Callable:
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = run(*inputs)
            setup_context(ctx, inputs, output)
            return output

    Function.backward = staticmethod(_only_once(backward, name))
    Function.__name__ = Function.__qualname__ = f"expar_{name}"

    def apply(*inputs: Any) -> Any:
        return Function.apply(*inputs)

    return apply
