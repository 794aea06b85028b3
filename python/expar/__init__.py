"""Expert parallelism for mixture-of-experts layers in PyTorch, over the C library libexpar.

Modules
    expar.fused_activation  silu(gate) * up * prob in one kernel, with the gradient of prob
    expar.ops               grouped GEMM with gather lists
    expar.ep                Group: dispatch of token rows to their experts' ranks, combine of the results
    expar.moe               MoELayer: router, dispatch, experts, combine as one nn.Module

Importing the package loads no library yet; the first import of one of the modules does.
"""
from expar._errors import ExparError, UnsupportedError

__all__ = ["ExparError", "UnsupportedError", "library_path", "library_version", "__version__"]


def library_path() -> str:
    """The file of libexpar that this process uses."""
    from expar import _library

    return _library.load().path


def library_version() -> str:
    """The version of the loaded libexpar, "0.1.0"."""
    from expar import _library

    return _library.load().version


def __getattr__(name: str) -> str:
    if name == "__version__":
        from expar import _library

        return _library.package_version()
    raise AttributeError(f"module 'expar' has no attribute {name!r}")
