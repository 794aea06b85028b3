"""Expert parallelism: send token rows to the ranks that own their experts, and return the results.

    group = Group(dist.group.WORLD, num_experts=128, top_k=8, dim=2048, max_tokens=16384)
    handle = group.plan(topk_idx, topk_weight)        # who sends what to whom
    rows, = group.dispatch(x, handle)                 # token rows at their experts, expert-major
    y = my_experts(rows.x, rows.offsets) * rows.weight[:, None]
    out = group.combine([y], handle)                  # back at their tokens, summed

All of it is differentiable (once) in x, topk_weight and y. Calls are collective: every rank of the group makes the same
calls in the same order, in forward and (autograd does so by itself) in backward. A token's row crosses to a rank once,
however many of its experts live there; nothing is dropped whatever the routing: what exceeds the reserved rows comes in
further rounds. Sums are in a fixed order; results are deterministic.

Letters: T tokens of this rank (may differ per rank, may be 0), D row width, K assignments of a token, E experts, R ranks,
L = E / R experts of a rank (expert e is on rank e // L), P = group.assignment_capacity rows.
"""
import ctypes
import warnings
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from expar import _arguments, _capi, _device, _library
from expar._comm import Comm, DistributedExchange, Exchange, compare
from expar._device import some_pointer
from expar._ep_autograd import Combine, Dispatch
from expar._handle import Counts, Handle, Rows, eager

__all__ = ["Group", "Handle", "Rows", "Counts", "Stats", "Exchange"]

_library.load()

TRANSPORTS = {"auto": 0, "deepep": 1, "standard": 2, "hierarchical": 3}
LAYOUTS = ("expert", "recv")


class Stats(NamedTuple):
    """Totals of a group since it was made or since reset_stats()."""

    bytes_sent_remote: int
    bytes_kept: int
    n_dispatches: int
    n_combines: int
    n_host_waits: int
    overflow_rows: int
    wait_s: float


class Group:
    """The ranks that share E experts, with all buffers of dispatch and combine.

    Args:
        process_group: a torch.distributed group (dist.group.WORLD, or one from dist.new_group()); it carries a few host
            bytes and may be of any backend. Or an Exchange of your own. None: a group of one rank, whatever
            torch.distributed says.
        num_experts: E, a multiple of the number of ranks.
        top_k: K, 1 to min(E, 64), on GPUs at most 32.
        dim: D.
        max_tokens: the largest T of any rank in any call.
        dtype: torch.bfloat16 or torch.float32, of the rows.
        device: "cpu" or a CUDA device; None: the current CUDA device if there is one, else the CPU.
        capacity_factor: rows reserved at a rank, over the balanced load max_tokens * K. What exceeds them comes in further
            rounds.
        backend: "deepep" (peer-to-peer, straight into the destination's memory), "standard" (all-to-all of packed rows),
            "hierarchical" (over nodes), or "auto". The same bits from deepep and standard.
        static: sizes that no host code has to know: dispatch and combine make max_rounds rounds and never wait for the GPU.
            None: true on GPUs, false on the CPU, where counts cost nothing.
        timeout: seconds that a wait for another rank may take.
        num_sms: thread blocks of dispatch and combine on a GPU; 0: chosen.

    Attributes:
        rank, size, device, dtype, dim, top_k, num_experts, num_local_experts (L), max_tokens, static
        assignment_capacity (P), recv_capacity, max_rounds: see include/expar/ep.h.

    Creation is collective, with the same arguments on every rank. So is close(): call it (or use the group in a `with`)
    before torch.distributed.destroy_process_group().

    Raises:
        ValueError: an argument is wrong, or another rank gives another one; the message names it. TypeError: an argument is
            not of its kind.
        NotImplementedError: the transport cannot work between these ranks, or this build has no code for the device.
        MemoryError; ExparError: another rank failed (code XP_ECOMM). Nothing is kept.
    """

    def __init__(self, process_group: Any = None, *, num_experts: int, top_k: int, dim: int, max_tokens: int,
                 dtype: torch.dtype = torch.bfloat16, device: Any = None, capacity_factor: float = 2.0,
                 backend: str = "auto", static: Optional[bool] = None, timeout: float = 100.0, num_sms: int = 0):
        self._group: Optional[int] = None
        self._comm: Optional[Comm] = None
        self._plans: List[int] = []  # all
        self._free: List[int] = []  # those that no handle has
        self._last_stream: Any = None
        if not isinstance(dtype, torch.dtype) or dtype not in _device.DTYPES:
            raise ValueError(f"dtype is {dtype!r}, must be torch.float32 or torch.bfloat16")
        _arguments.word("backend", backend, TRANSPORTS)
        num_experts, top_k = _arguments.whole("num_experts", num_experts, least=1), _arguments.whole("top_k", top_k)
        dim = _arguments.whole("dim", dim, least=1, most=_arguments.MAX_INT64)
        max_tokens = _arguments.whole("max_tokens", max_tokens, least=1, most=_arguments.MAX_INT64)
        num_sms = _arguments.whole("num_sms", num_sms, least=0)
        capacity_factor, timeout = _arguments.real("capacity_factor", capacity_factor), _arguments.real("timeout", timeout, least=0)
        self.device = _device.choose(device)
        self.dtype, self.dim, self.top_k, self.num_experts, self.max_tokens = dtype, dim, top_k, num_experts, max_tokens
        self.static = self.device.type == "cuda" if static is None else _arguments.flag("static", static)
        exchange = process_group if process_group is None or isinstance(process_group, Exchange) \
            else DistributedExchange(process_group)
        self.rank, self.size = (0, 1) if exchange is None else (exchange.rank, exchange.size)
        self._device = _device.Device(self.device)
        config = _capi.EpConfig(max_tokens=max_tokens, dim=dim, top_k=top_k, n_experts=num_experts, dtype=_device.DTYPES[dtype],
                                capacity_factor=capacity_factor, transport=TRANSPORTS[backend], num_sms=num_sms,
                                timeout_s=timeout)
        created = ctypes.c_void_p()
        try:
            if exchange is not None and exchange.size > 1:
                self._comm = Comm(exchange, timeout)
                compare(exchange, device=self.device.type, backend=backend, static=self.static)
            self._call("xp_ep_group_create", None if self._comm is None else self._comm.pointer, self._device.pointer,
                       ctypes.byref(config), ctypes.byref(created))
        except BaseException:
            self.close()
            raise
        self._group = created.value
        cdll = self._device.lib.cdll
        sizes = cdll.xp_ep_group_sizes(self._group)
        self.num_local_experts = num_experts // self.size
        self.assignment_capacity: int = sizes.assignment_capacity
        self.recv_capacity: int = sizes.recv_capacity
        self.max_rounds: int = sizes.max_rounds
        self.is_local: bool = cdll.xp_ep_group_is_local(self._group)
        transport = cdll.xp_ep_group_transport(self._group)
        self.backend = next(name for name, value in TRANSPORTS.items() if value == transport)

    # ---- life

    def close(self) -> None:
        """Free everything. Collective; after a failure, too, every rank may call it. No handle may be used afterwards."""
        cdll = self._device.lib.cdll if hasattr(self, "_device") else None
        if cdll is None:
            return
        if self._group is not None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            for plan in self._plans:
                cdll.xp_ep_plan_destroy(plan)
            self._plans.clear()
            self._free.clear()
            cdll.xp_ep_group_destroy(self._group)
            self._group = None
        if self._comm is not None:
            self._comm.close()
            self._comm = None
        if self._device.pointer is not None:
            self._device.close()

    def __enter__(self) -> "Group":
        self._check_open()
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_group", None) is None:
            return
        if self.size == 1:
            self.close()
        else:  # collective: not from a garbage collector that runs on this rank alone
            warnings.warn("an expar.ep.Group of several ranks was dropped without close(); its memory stays", ResourceWarning)

    def __copy__(self) -> "Group":
        return self

    def __deepcopy__(self, _memo: Any) -> "Group":
        """A copy of a model has the group of the model itself, as layers share one."""
        return self

    def __reduce__(self) -> Any:
        raise TypeError("an expar.ep.Group cannot be pickled: it holds memory that its ranks share. Save state_dict() of the "
                        "layers, and make the group again")

    def __repr__(self) -> str:
        if self._group is None:
            return "Group(closed)"
        return (f"Group(rank {self.rank} of {self.size}, num_experts={self.num_experts}, top_k={self.top_k}, dim={self.dim}, "
                f"max_tokens={self.max_tokens}, dtype={self.dtype}, device={self.device}, backend={self.backend}, "
                f"static={self.static})")

    # ---- calls

    @eager
    def plan(self, topk_idx: Tensor, topk_weight: Optional[Tensor] = None) -> Handle:
        """Exchange the routing. Collective.

        Args:
            topk_idx: [T, K] int32 or int64 expert ids on the group's device, -1: no assignment.
            topk_weight: [T, K] float32; None: all 1. Its gradient comes back through dispatch's `weight`.

        Raises:
            ValueError: shapes or types are wrong (on this rank, before anything is sent); on every rank when one rank's
                routing has a duplicate expert in a row, an id outside -1 to E - 1, or too many tokens: nothing is sent, the
                group goes on. Over "deepep" on GPUs the device finds the latter out: Handle.counts() and check() raise it.
            ExparError: the group has failed (XP_ECOMM): close it.
        """
        self._check_open()
        _arguments.tensor("topk_idx", topk_idx)
        if topk_weight is not None:
            _arguments.tensor("topk_weight", topk_weight)
        if topk_idx.dim() != 2 or topk_idx.shape[1] != self.top_k or topk_idx.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"topk_idx is {topk_idx.dtype} {tuple(topk_idx.shape)}, must be torch.int32 or torch.int64 "
                             f"[T, {self.top_k}]")
        if topk_weight is None:
            topk_weight = torch.ones(topk_idx.shape, dtype=torch.float32, device=topk_idx.device)
        if topk_weight.dtype != torch.float32 or topk_weight.shape != topk_idx.shape:
            raise ValueError(f"topk_weight is {topk_weight.dtype} {tuple(topk_weight.shape)}, must be torch.float32 "
                             f"{tuple(topk_idx.shape)}")
        self._check_device("topk_idx", topk_idx)
        self._check_device("topk_weight", topk_weight)
        self._enter()
        index = _device.dense(topk_idx.detach().to(torch.int32))
        weight = _device.dense(topk_weight.detach())
        handle = Handle(self, self._take_plan(), topk_weight)
        self._call("xp_ep_plan_build", self._group, some_pointer(index), some_pointer(weight), handle.n_tokens,
                   self._device.stream(), handle._plan)
        return handle

    @eager
    def dispatch(self, x: Tensor, handle: Handle, layout: str = "expert") -> List[Rows]:
        """Send token rows to the ranks that own their experts. Collective.

        Args:
            x: [T, D] of the group's dtype, on its device.
            handle: from plan(), on this step's routing.
            layout: "expert" copies the rows into expert-major order; "recv" leaves them as received for experts that read
                through a gather list (expar.ops.grouped_mm).

        Returns:
            one Rows for each of handle.n_rounds rounds; nearly always one. Their x carries the gradient of x, their weight
            that of topk_weight.

        Raises:
            ValueError: an argument does not fit; nothing is sent. ExparError: the group has failed (XP_ECOMM).
        """
        self._check_tokens("x", x, handle)
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}, must be one of {', '.join(LAYOUTS)}")
        results = Dispatch.apply(x, handle.topk_weight, handle, layout)
        rounds = []
        for r in range(handle.n_rounds):
            offsets, gather, _ = handle.lists(r)
            rounds.append(Rows(results[2 * r], results[2 * r + 1], offsets, gather))
        return rounds

    @eager
    def combine(self, y: Sequence[Tensor], handle: Handle) -> Tensor:
        """Return expert rows to their tokens' ranks, summed over each token's experts. Collective.

        Args:
            y: one [P, D] tensor for each round, expert-major, of the group's dtype; rows from offsets[L] on do not count. A
                tensor alone stands for one round. The routing weights are not applied here: multiply with Rows.weight (or
                use expar.fused_activation) before.
            handle: the dispatch's.

        Returns:
            [T, D]; zeros for tokens without assignments. fp32 sums in ascending expert order on the experts' rank and in
            ascending rank order at the token's, each cast once.
        """
        self._check_handle(handle)
        if not isinstance(y, (Tensor, list, tuple)):
            _arguments.tensor("y", y)
        rounds = [y] if isinstance(y, Tensor) else list(y)
        if len(rounds) != handle.n_rounds:
            raise ValueError(f"y has {len(rounds)} rounds, the handle {handle.n_rounds}")
        for rows in rounds:
            _arguments.tensor("y", rows)
            self._check_device("y", rows)
            if rows.dtype != self.dtype or tuple(rows.shape) != (self.assignment_capacity, self.dim):
                raise ValueError(f"y is {rows.dtype} {tuple(rows.shape)}, must be {self.dtype} "
                                 f"{(self.assignment_capacity, self.dim)}")
        return Combine.apply(handle, *rounds)

    def check(self) -> None:
        """Raise what the GPU has found out since: a refused routing (ValueError) or a failed group (ExparError). Never waits:
        call it after a synchronisation and before a step's results are used. On the CPU calls raise by themselves."""
        self._check_open()
        self._call("xp_ep_async_error", self._group)

    def stats(self) -> Stats:
        """Totals since creation or reset_stats()."""
        self._check_open()
        stats = _capi.EpStats()
        self._device.lib.cdll.xp_ep_get_stats(self._group, ctypes.byref(stats))
        return Stats(*(getattr(stats, name) for name in Stats._fields))

    def reset_stats(self) -> None:
        self._check_open()
        self._device.lib.cdll.xp_ep_reset_stats(self._group)

    # ---- used by this package

    def _call(self, name: str, *arguments: Any) -> None:
        """A call of the library on the group's device; an exception of the process group becomes the cause."""
        if self._comm is None:
            self._device.call(name, *arguments)
            return
        try:
            self._device.call(name, *arguments)
        except RuntimeError as error:
            failure, self._comm.failure = self._comm.failure, None
            if failure is None:
                raise
            raise error from failure

    def _enter(self) -> None:
        """Calls of a group are in one order: a call on another stream than the last one's waits for that."""
        self._check_open()  # backward comes when it comes
        if self.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return  # a graph's capture begins with a synchronisation, and takes in no stream from outside
        current = torch.cuda.current_stream(self.device)
        if self._last_stream is not None and self._last_stream != current:
            current.wait_stream(self._last_stream)
        self._last_stream = current

    def _used_here(self, *tensors: Tensor) -> None:
        """The current stream uses tensors that another may have made."""
        if self.device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            for tensor in tensors:
                tensor.record_stream(torch.cuda.current_stream(self.device))

    def _take_plan(self) -> int:
        if self._free:
            return self._free.pop()
        created = ctypes.c_void_p()
        self._call("xp_ep_plan_create", self._group, ctypes.byref(created))
        self._plans.append(created.value)
        return created.value

    def _give_back(self, plan: int) -> None:
        if self._group is not None:
            self._free.append(plan)

    def _copy(self, source: int, shape: Tuple[int, ...], dtype: torch.dtype) -> Tensor:
        result = torch.empty(shape, dtype=dtype, device=self.device)
        self._call("xp_copy", self._device.stream(), result.data_ptr(), source, result.numel() * result.element_size())
        return result

    def _rows(self, tensor: Tensor) -> Any:
        return ctypes.byref(_capi.Tensor(some_pointer(tensor), _device.DTYPES[self.dtype], 2,
                                         (ctypes.c_int64 * 4)(tensor.shape[0], self.dim, 0, 0)))

    def _move(self, name: str, handle: Handle, round: int, source: Tensor, result: Tensor) -> None:
        """dispatch, combine or combine_backward of one round."""
        self._call("xp_ep_" + name, self._group, handle._plan, round, self._rows(source), self._rows(result),
                   self._device.stream())

    def _dispatch_backward(self, handle: Handle, round: int, d_rows: Tensor, d_weight: Tensor, dx: Tensor,
                           d_topk_weight: Tensor) -> None:
        self._call("xp_ep_dispatch_backward", self._group, handle._plan, round, self._rows(d_rows), d_weight.data_ptr(),
                   self._rows(dx), some_pointer(d_topk_weight), self._device.stream())

    def _received(self, name: str, handle: Handle, round: int, tokens: Tensor) -> Tensor:
        """dispatch or combine_backward into fresh rows; a group of one rank reads the tokens themselves."""
        if self.is_local:
            return tokens
        rows = self._empty(self.recv_capacity)
        self._move(name, handle, round, tokens, rows)
        return rows

    def _empty(self, n_rows: int) -> Tensor:
        return torch.empty((n_rows, self.dim), dtype=self.dtype, device=self.device)

    def _check_device(self, name: str, tensor: Tensor) -> None:
        if tensor.device != self.device:
            raise ValueError(f"{name} is on {tensor.device}, the group on {self.device}")

    def _check_open(self) -> None:
        if self._group is None:
            raise ValueError("the group is closed")

    def _check_handle(self, handle: Handle) -> None:
        self._check_open()
        _arguments.instance("handle", handle, Handle, "an expar.ep.Handle (from Group.plan())")
        if handle.group is not self:
            raise ValueError("the handle belongs to another group")

    def _check_tokens(self, name: str, x: Tensor, handle: Handle) -> None:
        self._check_handle(handle)
        _arguments.tensor(name, x)
        self._check_device(name, x)
        if x.dtype != self.dtype or tuple(x.shape) != (handle.n_tokens, self.dim):
            raise ValueError(f"{name} is {x.dtype} {tuple(x.shape)}, must be {self.dtype} {(handle.n_tokens, self.dim)}")
