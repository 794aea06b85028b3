"""xp_comm over a torch.distributed process group, or over any object that can gather bytes.

The process group carries host bytes only: the routing's first exchange of addresses, counts where the transport needs them,
and barriers. Rows travel through shared memory on the CPU and over NVLink between GPUs.
"""
import ctypes
import sys
import traceback
from typing import Any, Callable, List, Optional

import torch

from expar import _capi, _library
from expar._errors import XP_EINVAL, XP_ENOMEM, XP_ENOTSUP


class Exchange:
    """What a communicator is made of. Subclass it to bring ranks that are not torch.distributed's.

    Attributes:
        rank, size: of this process in the group.
    """

    rank: int
    size: int

    def all_gather(self, send: torch.Tensor, recv: List[torch.Tensor]) -> None:
        """Fill recv[r] with rank r's send. Blocking; uint8 tensors of equal size on the CPU, borrowed."""
        raise NotImplementedError


class DistributedExchange(Exchange):
    """A torch.distributed process group of any backend."""

    def __init__(self, process_group: Any):
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized():
            raise ValueError("torch.distributed is not initialised: call torch.distributed.init_process_group() first, or give "
                             "process_group=None for a group of one rank")
        self._dist, self._group = dist, process_group
        self.rank, self.size = dist.get_rank(process_group), dist.get_world_size(process_group)
        if self.rank < 0:
            raise ValueError("this process is not in process_group")
        self._staging: Optional[torch.device] = None
        try:
            self.all_gather(torch.zeros(1, dtype=torch.uint8), [torch.zeros(1, dtype=torch.uint8) for _ in range(self.size)])
        except (RuntimeError, ValueError):
            if not torch.cuda.is_available():
                raise
            self._staging = torch.device("cuda", torch.cuda.current_device())  # NCCL alone: through GPU memory

    def all_gather(self, send: torch.Tensor, recv: List[torch.Tensor]) -> None:
        if self._staging is None:
            self._dist.all_gather(recv, send, group=self._group)
            return
        on_gpu = [torch.empty(part.shape, dtype=part.dtype, device=self._staging) for part in recv]
        self._dist.all_gather(on_gpu, send.to(self._staging), group=self._group)
        for part, result in zip(recv, on_gpu):
            part.copy_(result)


def bytes_at(address: int, n_bytes: int) -> torch.Tensor:
    """A uint8 tensor over memory that the library has lent."""
    return torch.frombuffer((ctypes.c_ubyte * n_bytes).from_address(address), dtype=torch.uint8)


def compare(exchange: Exchange, **arguments: Any) -> None:
    """Refuse, on every rank, arguments of a group that differ from rank 0's, of those that the library does not compare: it has
    other names for them, or none."""
    lines = [f"{name} is {value}" for name, value in arguments.items()]
    send = torch.frombuffer(bytearray("\n".join(lines).encode()[:512].ljust(512)), dtype=torch.uint8)
    recv = [torch.empty_like(send) for _ in range(exchange.size)]
    exchange.all_gather(send, recv)
    all_lines = [bytes(part.tolist()).decode(errors="replace").rstrip().split("\n") for part in recv]
    for rank, theirs in enumerate(all_lines):
        for ours, other in zip(all_lines[0], theirs):
            if ours != other:
                raise ValueError(f"{ours} on rank 0, {other} on rank {rank}: all ranks of a group give the same arguments")


class Comm:
    """One xp_comm. Calls of it are collective; close() it after all groups over it."""

    def __init__(self, exchange: Exchange, timeout_s: float):
        self.lib = _library.load()
        self.exchange = exchange
        self.rank, self.size = exchange.rank, exchange.size
        self.failure: Optional[BaseException] = None
        # the C side keeps these for as long as the communicator lives
        self._callbacks = _capi.CommCallbacks(
            rank=self.rank, size=self.size, context=None, all_gather=_capi.ALL_GATHER(self._caught(self._all_gather)),
            barrier=_capi.BARRIER(), all_to_allv=_capi.ALL_TO_ALLV(), timeout_s=timeout_s)
        created = ctypes.c_void_p()
        self.check(self.lib.cdll.xp_comm_from_callbacks(ctypes.byref(self._callbacks), ctypes.byref(created)))
        self.pointer = created.value

    def _caught(self, call: Callable[..., None]) -> Callable[..., int]:
        """No exception may leave a callback: it is kept, the library ends its call, and check() raises it."""

        def callback(_context: Any, *arguments: Any) -> int:
            try:
                call(*arguments)
                return 0
            except BaseException as error:  # noqa: B902  (KeyboardInterrupt, too, must not cross C)
                self.failure = error
                return -1

        return callback

    def _all_gather(self, send: int, recv: int, n_bytes: int) -> None:
        if n_bytes == 0:
            return
        parts = list(bytes_at(recv, self.size * n_bytes).split(n_bytes))
        self.exchange.all_gather(bytes_at(send, n_bytes), parts)

    def check(self, status: int) -> None:
        """Raise for a failing status; with the callback's own exception as the cause where there was one."""
        if status == 0:
            return
        failure, self.failure = self.failure, None
        if failure is not None and status not in (XP_EINVAL, XP_ENOMEM, XP_ENOTSUP):
            if isinstance(failure, KeyboardInterrupt):
                raise failure
            message = self.lib.last_error() or "a collective of the process group failed"
            from expar._errors import ExparError
            raise ExparError(f"{message}: {traceback.format_exception_only(type(failure), failure)[-1].strip()}",
                             status) from failure
        self.lib.check(status)

    def close(self) -> None:
        """Collective where the communicator is healthy."""
        if self.pointer is not None and not sys.is_finalizing():
            self.lib.cdll.xp_comm_destroy(self.pointer)
        self.pointer = None
