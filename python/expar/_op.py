"""Defines an op with a backward: a custom op that torch.compile and selective activation checkpointing know where torch
has torch.library.custom_op (2.4), else a torch.autograd.Function."""
from typing import Any, Callable, Optional

import torch
from torch.autograd.function import once_differentiable

HAS_CUSTOM_OPS = hasattr(torch.library, "custom_op") and hasattr(torch.library, "register_autograd")


def define(name: str, schema: str, run: Callable, fake: Callable, setup_context: Optional[Callable] = None,
           backward: Optional[Callable] = None) -> Callable:
    """The op expar::name.

    Args:
        schema: "(Tensor x, int n) -> Tensor".
        run: computes; its results alias no input.
        fake: shapes and dtypes of the results, for torch.compile.
        setup_context: (ctx, inputs, output) saves what backward needs.
        backward: (ctx, *gradients) -> a gradient or None for each input. It cannot be differentiated again.
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
    def checked(ctx: Any, *gradients: Any) -> Any:
        if any(type(g) is torch.Tensor and g.requires_grad for g in gradients):  # not those of a compiler's tracing
            raise RuntimeError(f"expar::{name} has no second derivative: leave create_graph=True out")
        return backward(ctx, *gradients)

    return checked


def _function(name: str, run: Callable, setup_context: Optional[Callable], backward: Callable) -> Callable:
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = run(*inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *gradients: Any) -> Any:
            return backward(ctx, *gradients)

    Function.__name__ = Function.__qualname__ = f"expar_{name}"

    def apply(*inputs: Any) -> Any:
        return Function.apply(*inputs)

    return apply
