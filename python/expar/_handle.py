"""A plan as torch sees it: counts, gather lists, and its return to the group."""
import ctypes
import itertools
import weakref
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from expar import _arguments, _capi

if TYPE_CHECKING:
    from expar.ep import Group


class Rows(NamedTuple):
    """One round's rows at the experts of this rank.

    Attributes:
        x: layout "expert": [P, D], expert e's rows at offsets[e] to offsets[e + 1], zeros from offsets[L] on. Layout
            "recv": [recv_capacity, D] (one rank: [T, D]) as received, one for each token; assignment row i is
            x[gather[i]].
        weight: [P] float32 routing weights of the assignment rows, zeros from offsets[L] on; carries the gradient.
        offsets: [L + 1] int32.
        gather: [P] int32 row of the received rows for each assignment row, zeros from offsets[L] on.
    """

    x: Tensor
    weight: Tensor
    offsets: Tensor
    gather: Tensor


class Counts(NamedTuple):
    """What a plan says, on the host."""

    n_rounds: int
    expert_tokens: List[int]  # [L] assignments of each expert of this rank, from all ranks
    n_recv: int
    n_assignments: int


def eager(function: Any) -> Any:
    """torch.compile leaves the function alone: its graph breaks there."""
    disable = getattr(getattr(torch, "compiler", None), "disable", None)
    return disable(function) if disable is not None else function


class Handle:
    """A plan: the routing of one call of a layer, made by Group.plan().

    It may be used any number of times: for dispatch and combine, in their backward, and when activation checkpointing
    recomputes a layer (make the handle outside of the checkpointed function and the routing is not exchanged again). Its
    memory goes back to the group when the last reference is gone.
    """

    def __init__(self, group: "Group", plan: int, topk_weight: Tensor):
        self.group = group
        self.n_tokens = topk_weight.shape[0]
        self.topk_weight = topk_weight
        self.number = next(_numbers)  # what stands for the handle where only tensors and numbers may be passed
        _handles[self.number] = self
        self._plan = plan
        self._counts: Optional[Counts] = None
        self._lists: Dict[int, Tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def n_rounds(self) -> int:
        """How many rounds dispatch and combine make: the same on every rank. With static sizes the group's max_rounds (those
        that the routing does not need are empty), else as many as the routing needs."""
        return self.group.max_rounds if self.group.static else self.counts().n_rounds

    @eager
    def counts(self) -> Counts:
        """The plan's counts; waits for the GPU.

        Raises:
            ValueError: the routing was refused on the device (a duplicate or unknown expert, too many tokens).
            ExparError: the group has failed (XP_ECOMM).
        """
        if self._counts is None:
            self.group._check_open()
            counts = _capi.EpCounts()
            self.group._call("xp_ep_plan_wait", self._plan, ctypes.byref(counts))
            n_local = self.group.num_local_experts
            self._counts = Counts(counts.n_rounds, [counts.expert_tokens[e] for e in range(n_local)], counts.n_recv,
                                  counts.n_assignments)
        return self._counts

    def view(self, round: int) -> _capi.EpView:
        """The lists where the library keeps them; valid as long as the handle."""
        self.group._check_open()
        round = _arguments.whole("round", round, least=0)
        view = _capi.EpView()
        self.group._call("xp_ep_plan_view", self._plan, round, ctypes.byref(view))
        return view

    @eager
    def lists(self, round: int = 0) -> Tuple[Tensor, Tensor, Tensor]:
        """offsets [L + 1] int32, gather [P] int32 and weight [P] float32 of a round, as in Rows, without gradient."""
        round = _arguments.whole("round", round, least=0)
        if round not in self._lists:
            group, view = self.group, self.view(round)
            group._enter()
            offsets = group._copy(view.offsets, (group.num_local_experts + 1,), torch.int32)
            gather = group._copy(view.gather, (group.assignment_capacity,), torch.int32)
            weight = group._copy(view.weight, (group.assignment_capacity,), torch.float32)
            unused = torch.arange(group.assignment_capacity, device=group.device) >= offsets[-1]
            self._lists[round] = offsets, gather.masked_fill_(unused, 0), weight.masked_fill_(unused, 0)
        found = self._lists[round]
        self.group._used_here(*found)
        return found

    def __copy__(self) -> "Handle":
        return self

    def __deepcopy__(self, _memo: Any) -> "Handle":
        return self

    def __reduce__(self) -> Any:
        raise TypeError("an expar.ep.Handle cannot be pickled: it stands for memory of its group. Keep topk_idx and topk_weight, "
                        "and plan again")

    def __repr__(self) -> str:
        return f"Handle(n_tokens={self.n_tokens}, {self.group!r})"

    def __del__(self) -> None:
        self.group._give_back(self._plan)


_numbers = itertools.count(1)
_handles: "weakref.WeakValueDictionary[int, Handle]" = weakref.WeakValueDictionary()


def find(number: int) -> Handle:
    """The living handle of that number."""
    handle = _handles.get(number)
    if handle is None:
        raise ValueError(f"expert-parallel handle {number} is gone: keep the Handle for as long as its number is used")
    return handle
