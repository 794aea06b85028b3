"""Dispatch and combine: what the experts compute comes back, with all gradients, whatever the routing and the number of ranks."""
import copy
import gc
import os
import pickle
import unittest
import warnings

import torch
from common import TestCase, devices, routing, run_ranks

from expar.ep import Exchange, Group
from expar.ops import grouped_mm

EXPERTS, TOP_K, DIM = 12, 3, 20  # a row is no multiple of 16 bytes in bf16


def expert_weights(seed=5):
    return torch.randn(EXPERTS, DIM, DIM, generator=torch.Generator().manual_seed(seed)) / DIM**0.5


def reference(x, topk_idx, topk_weight, weights):
    """sum over k of weight * tanh(x W_e^T), in fp32."""
    out = torch.zeros(x.shape, dtype=torch.float32)
    for k in range(topk_idx.shape[1]):
        chosen = weights[topk_idx[:, k].clamp(min=0)]
        rows = torch.tanh(torch.einsum("td,tnd->tn", x.float(), chosen)) * topk_weight[:, k, None]
        out = out + rows.masked_fill(topk_idx[:, k, None] < 0, 0)
    return out


def through_experts(group, x, handle, weights, layout):
    """The same through dispatch and combine. weights: this rank's [L, D, D], of the rows' type."""
    ys = []
    for rows in group.dispatch(x, handle, layout):
        y = grouped_mm(rows.x, weights, rows.offsets, rows.gather if layout == "recv" else None)
        used = torch.arange(y.shape[0], device=y.device)[:, None] < rows.offsets[-1]
        ys.append((torch.tanh(y.masked_fill(~used, 0)).float() * rows.weight[:, None]).to(x.dtype))
    return group.combine(ys, handle)


def check_layer(test, group, kind, n_tokens, seed, layout="expert", relative=1e-5):
    """Forward and the gradients of x, weights of the routing and experts, against the reference on every rank's tokens."""
    rank, size, n_local = group.rank, group.size, group.num_local_experts
    everyone = []  # this rank's own tokens are those of its number
    for r in range(size):
        n = n_tokens[r]
        generator = torch.Generator().manual_seed(100 * seed + r)
        everyone.append((torch.randn(n, DIM, generator=generator), *routing(n, TOP_K, EXPERTS, kind, 100 * seed + r),
                         torch.randn(n, DIM, generator=generator)))
    full = expert_weights().requires_grad_()
    leaves, wanted = [], []
    for x, topk_idx, topk_weight, d_out in everyone:
        x = x.to(group.dtype).float().clone().requires_grad_()  # a tensor of its own: gradients of both sides are compared
        topk_weight = topk_weight.clone().requires_grad_()
        out = reference(x, topk_idx, topk_weight, full.to(group.dtype).float())
        leaves.append((x, topk_weight))
        wanted.append(out)
        out.backward(d_out.to(group.dtype).float())
    mine = slice(rank * n_local, (rank + 1) * n_local)
    weights = full.detach()[mine].to(group.device, group.dtype).requires_grad_()
    x0, topk_idx, topk_weight0, d_out = everyone[rank]
    x = x0.to(group.device, group.dtype).clone().requires_grad_()
    topk_weight = topk_weight0.to(group.device).clone().requires_grad_()
    handle = group.plan(topk_idx.to(group.device), topk_weight)
    out = through_experts(group, x, handle, weights, layout)
    out.backward(d_out.to(group.device, group.dtype))
    group.check()
    what = f"{kind} {n_tokens} {layout} rank {rank} of {size}"
    test.assert_close(out.cpu(), wanted[rank], relative, "out " + what)
    test.assert_close(x.grad.cpu(), leaves[rank][0].grad, relative, "dx " + what)
    test.assert_close(topk_weight.grad.cpu(), leaves[rank][1].grad, relative, "d_topk_weight " + what)
    test.assert_close(weights.grad.cpu(), full.grad[mine], relative, "dw " + what)
    return handle


def check_handle(test, group, topk_idx_of_rank):
    """Counts and gather lists equal a count of everyone's routing; a handle gives the same bytes again."""
    topk_idx = topk_idx_of_rank[group.rank].to(group.device)
    handle = group.plan(topk_idx)
    first = group.rank * group.num_local_experts
    chosen = torch.cat([t.reshape(-1) for t in topk_idx_of_rank])
    want = [int((chosen == first + e).sum()) for e in range(group.num_local_experts)]
    counts = handle.counts()
    test.assertEqual(counts.expert_tokens, want)
    test.assertEqual(counts.n_assignments, sum(want))
    if counts.n_rounds == 1:
        offsets, gather, weight = handle.lists()
        test.assertEqual(offsets.tolist(), [0, *torch.tensor(want).cumsum(0).tolist()])
        test.assertEqual(weight[:sum(want)].tolist(), [1.0] * sum(want))
        test.assertEqual(float(weight[sum(want):].sum()), 0)
        test.assertTrue(sum(want) == 0 or int(gather.max()) < max(counts.n_recv, group.max_tokens))
    x = torch.randn(topk_idx.shape[0], group.dim, device=group.device).to(group.dtype)
    rounds = group.dispatch(x, handle)
    once = group.combine([rows.x for rows in rounds], handle)
    twice = group.combine([rows.x for rows in group.dispatch(x, handle)], handle)
    test.assertTrue(torch.equal(once, twice))
    # a row comes back once for each rank that it went to and each expert there
    times = (topk_idx >= 0).sum(1, keepdim=True)
    test.assert_close(once.cpu(), (x.float() * times).cpu(), 2**-6 if group.dtype == torch.bfloat16 else 1e-6)


def make_group(process_group, device, dtype=torch.float32, **changes):
    args = dict(num_experts=EXPERTS, top_k=TOP_K, dim=DIM, max_tokens=40, dtype=dtype, device=device, timeout=60)
    return Group(process_group, **{**args, **changes})


def all_cases(test, process_group, size, device):
    """One set of cases for any number of ranks."""
    tokens = [[17] * size, [0] * size, [40 if r == 0 else 0 for r in range(size)], [(7 * r + 5) % 40 for r in range(size)]]
    for backend in ("deepep", "standard"):
        for capacity in (2.0, 0.3):
            with make_group(process_group, device, backend=backend, capacity_factor=capacity) as group:
                test.assertEqual((group.backend, group.size), (backend, size))
                for seed, (kind, n) in enumerate((kind, n) for kind in ("natural", "skewed", "one", "holes") for n in tokens):
                    layout = "recv" if seed % 2 else "expert"
                    check_layer(test, group, kind, n, seed, layout)
                check_handle(test, group, [routing(9 + r, TOP_K, EXPERTS, "holes", r)[0] for r in range(size)])
                rounds = check_layer(test, group, "one", [40] * size, 99).counts().n_rounds
                test.assertEqual(rounds > 1, capacity < 1 or size > 2, (rounds, capacity, size))
    with make_group(process_group, device, torch.bfloat16, capacity_factor=1.0) as group:
        for seed, kind in enumerate(("natural", "skewed")):
            check_layer(test, group, kind, [23] * size, seed, relative=0.03)


def refused_cases(test, process_group, size, device):
    """A routing that one rank gets wrong is refused on all; nothing is sent and the group goes on."""
    with make_group(process_group, device) as group:
        for bad, part in (([[1, 1, 2]], "expert 1 is selected twice"), ([[0, 1, EXPERTS]], f"{EXPERTS} is no expert"),
                          ([[0, 1, 2]] * 41, "41 tokens")):
            mine = bad if group.rank == group.size - 1 else [[0, 1, 2]]
            with test.assertRaises(ValueError) as caught:
                group.plan(torch.tensor(mine, device=device)).counts()
            test.assertIn(part, str(caught.exception))
            test.assertIn("nothing was sent", str(caught.exception))
        test.assertEqual(group.stats().n_dispatches, 0)
        if device == "cpu":
            check_layer(test, group, "natural", [11] * size, 3)


def on_rank(rank, size):
    import torch.distributed as dist

    test = TestCase()
    for device in ["cpu"] + (["cuda"] if torch.cuda.is_available() and torch.cuda.device_count() >= size else []):
        all_cases(test, dist.group.WORLD, size, device)
        refused_cases(test, dist.group.WORLD, size, device)
    failing_exchange(test)
    halves = dist.new_group([0, 1]), dist.new_group([2, 3]) if size == 4 else None
    if rank < 2 or size == 4:  # two groups in one process, over part of the ranks
        with make_group(halves[rank // 2], "cpu") as group, make_group(halves[rank // 2], "cpu", dim=DIM) as other:
            check_layer(test, group, "natural", [9, 14], 1)
            check_layer(test, other, "skewed", [3, 0], 2)
    differing_arguments(test, rank, size)
    if size == 2:
        lost_rank(test, rank)


def failing_exchange(test):
    """An exception of the process group is the cause of the library's error."""
    import torch.distributed as dist

    from expar import ExparError
    from expar._comm import DistributedExchange

    class Broken(DistributedExchange):
        calls = 0

        def all_gather(self, send, recv):
            self.calls += 1
            if self.calls > 1:
                raise RuntimeError("the network is gone")
            super().all_gather(send, recv)

    with test.assertRaises(ExparError) as caught:
        make_group(Broken(dist.group.WORLD), "cpu", timeout=5)
    test.assertIn("the network is gone", str(caught.exception))


def differing_arguments(test, rank, size):
    """Ranks that do not agree on a group would write past each other's buffers: each of them refuses it."""
    import torch.distributed as dist

    last = size - 1
    for ours, theirs in (({}, dict(max_tokens=7)), ({}, dict(capacity_factor=1.25)), ({}, dict(static=True)),
                         (dict(backend="standard"), dict(backend="deepep"))):
        (name, value), = theirs.items()
        with test.assertRaises(ValueError) as caught:
            make_group(dist.group.WORLD, "cpu", **(theirs if rank == last else ours))
        message = str(caught.exception)
        test.assertTrue(f"{name} is {value} on rank {last}" in message or f"and {value} on rank {last}" in message, message)
        test.assertIn(name, message)
    with make_group(dist.group.WORLD, "cpu") as group:
        group.plan(torch.tensor([[0, 1, 2]]))


def lost_rank(test, rank):
    """The last rank ends without a word: the other's call fails and names it."""
    import torch.distributed as dist

    from expar import ExparError

    group = make_group(dist.group.WORLD, "cpu")
    dist.barrier()
    if rank == 1:
        os._exit(0)
    with test.assertRaises(ExparError) as caught:
        group.plan(torch.tensor([[0, 1, 2]]))
    test.assertEqual(caught.exception.code_name, "XP_ECOMM")
    test.assertIn("rank 1", str(caught.exception))
    os._exit(0)


class OneRank(TestCase):
    def test_all_cases(self):
        for device in devices():
            all_cases(self, None, 1, device)
            refused_cases(self, None, 1, device)

    def test_exchange_of_your_own(self):
        class Alone(Exchange):
            rank, size = 0, 1

            def all_gather(self, send, recv):
                recv[0].copy_(send)

        with make_group(Alone(), "cpu") as group:
            check_layer(self, group, "natural", [8], 1)

    def test_static_sizes(self):
        """As on a GPU: max_rounds rounds, whatever the routing needs."""
        with make_group(None, "cpu", static=True, capacity_factor=0.4) as group:
            self.assertGreater(group.max_rounds, 1)
            handle = check_layer(self, group, "natural", [4], 1)
            self.assertEqual(handle.n_rounds, group.max_rounds)
            self.assertEqual(handle.counts().n_rounds, 1)

    def test_plans_are_used_again(self):
        with make_group(None, "cpu") as group:
            for seed in range(5):
                check_layer(self, group, "natural", [8], seed)
            gc.collect()
            self.assertLessEqual(len(group._plans), 2)

    def test_handle_outlives_nothing(self):
        with make_group(None, "cpu") as group:
            handle = group.plan(torch.tensor([[0, 1, 2]]))
        with self.assertRaises(ValueError) as caught:
            group.dispatch(torch.zeros(1, DIM), handle)
        self.assertIn("closed", str(caught.exception))
        del handle
        with self.assertRaises(ValueError):
            group.plan(torch.tensor([[0, 1, 2]]))

    def test_no_second_derivative(self):
        with make_group(None, "cpu") as group:
            x = torch.randn(2, DIM, requires_grad=True)
            handle = group.plan(torch.tensor([[0, 1, 2], [3, 4, 5]]))
            out = group.combine([rows.x for rows in group.dispatch(x, handle)], handle)
            with self.assertRaises(RuntimeError):
                (dx,) = torch.autograd.grad(out.pow(2).sum(), x, create_graph=True)
                dx.sum().backward()

    def test_bad_arguments(self):
        with make_group(None, "cpu") as group, make_group(None, "cpu") as other:
            idx, x = torch.tensor([[0, 1, 2]]), torch.zeros(1, DIM)
            handle, foreign = group.plan(idx), other.plan(idx)
            for part, call in (("[T, 3]", lambda: group.plan(idx[:, :2])),
                               ("topk_idx is torch.float32", lambda: group.plan(idx.float())),
                               ("topk_weight is torch.float64", lambda: group.plan(idx, torch.ones(1, 3).double())),
                               ("x is torch.bfloat16", lambda: group.dispatch(x.bfloat16(), handle)),
                               ("must be torch.float32 (1, 20)", lambda: group.dispatch(torch.zeros(2, DIM), handle)),
                               ("another group", lambda: group.dispatch(x, foreign)),
                               ("layout is 'rows'", lambda: group.dispatch(x, handle, "rows")),
                               ("0 rounds, the handle 1", lambda: group.combine([], handle)),
                               ("y is torch.float32 (1, 20)", lambda: group.combine(x, handle)),
                               ("top_k 13 must be from 1 to 12", lambda: make_group(None, "cpu", top_k=13)),
                               ("max_tokens", lambda: make_group(None, "cpu", max_tokens=0)),
                               ("dtype is torch.float16", lambda: make_group(None, "cpu", torch.float16)),
                               ("backend is 'nvshmem'", lambda: make_group(None, "cpu", backend="nvshmem")),
                               ("must be the CPU or a CUDA device", lambda: make_group(None, "meta")),
                               ("not initialised", lambda: make_group(object(), "cpu"))):
                with self.assertRaises(ValueError) as caught:
                    call()
                self.assertIn(part, str(caught.exception))
            self.assertEqual(group.stats().n_dispatches, 0)
            del handle, foreign

    def test_wrong_types(self):
        with make_group(None, "cpu") as group:
            idx, x = torch.tensor([[0, 1, 2]]), torch.zeros(1, DIM)
            handle = group.plan(idx)
            for part, call in (("topk_idx is None, must be a torch.Tensor", lambda: group.plan(None)),
                               ("topk_idx is a list", lambda: group.plan([[0, 1, 2]])),
                               ("topk_weight is 1", lambda: group.plan(idx, 1)),
                               ("x is None", lambda: group.dispatch(None, handle)),
                               ("handle is None, must be an expar.ep.Handle", lambda: group.dispatch(x, None)),
                               ("y is None", lambda: group.combine(None, handle)),
                               ("y is a list", lambda: group.combine([[0.0]], handle)),
                               ("handle is a torch.Tensor", lambda: group.combine([x], x)),
                               ("round is None, must be a whole number", lambda: handle.lists(None)),
                               ("round is 'a'", lambda: handle.view("a")),
                               ("top_k is None, must be a whole number", lambda: make_group(None, "cpu", top_k=None)),
                               ("num_experts is 8.0", lambda: make_group(None, "cpu", num_experts=8.0)),
                               ("num_sms is True", lambda: make_group(None, "cpu", num_sms=True)),
                               ("capacity_factor is a list", lambda: make_group(None, "cpu", capacity_factor=[2])),
                               ("timeout is 'long'", lambda: make_group(None, "cpu", timeout="long")),
                               ("static is 'a', must be True or False", lambda: make_group(None, "cpu", static="a"))):
                with self.assertRaises(TypeError) as caught:
                    call()
                self.assertIn(part, str(caught.exception))
            del handle

    def test_numbers_out_of_range(self):
        for part, changes in (("num_experts is 1099511627776, must be at most", dict(num_experts=2**40)),  # not 0, as in C's int
                              ("num_experts is 0, must be at least 1", dict(num_experts=0)),
                              ("max_tokens is 1180591620717411303424", dict(max_tokens=2**70)),
                              ("dim 1099511627776 must be at most", dict(dim=2**40)),
                              ("num_sms is -1, must be at least 0", dict(num_sms=-1)),
                              ("capacity_factor 1e+30 must be above 0 and at most 1e9", dict(capacity_factor=1e30)),
                              ("capacity_factor is nan", dict(capacity_factor=float("nan"))),
                              ("capacity_factor is inf", dict(capacity_factor=10**400)),
                              ("timeout is -1", dict(timeout=-1)),
                              ("timeout is inf", dict(timeout=float("inf")))):
            with self.assertRaises(ValueError) as caught:
                make_group(None, "cpu", **changes)
            self.assertIn(part, str(caught.exception))
        with make_group(None, "cpu", max_tokens=torch.tensor(8), capacity_factor=torch.tensor(2.0)) as group:
            self.assertIs(type(group.max_tokens), int)

    def test_copies_and_text(self):
        """Copies of a group or a handle are itself; neither can be pickled; both say what they are."""
        with make_group(None, "cpu") as group:
            handle = group.plan(torch.tensor([[0, 1, 2]]))
            for one in (group, handle):
                self.assertIs(copy.copy(one), one)
                self.assertIs(copy.deepcopy(one), one)
                with self.assertRaises(TypeError) as caught:
                    pickle.dumps(one)
                self.assertIn("cannot be pickled", str(caught.exception))
            self.assertIn("rank 0 of 1, num_experts=12, top_k=3", repr(group))
            self.assertTrue(repr(handle).startswith("Handle(n_tokens=1, Group(rank 0"))
        self.assertEqual(repr(group), "Group(closed)")
        del handle

    def test_closed(self):
        """Whatever is called of a closed group or its handles raises; it had crashed in the library."""
        group = make_group(None, "cpu")
        x = torch.zeros(1, DIM, requires_grad=True)
        handle = group.plan(torch.tensor([[0, 1, 2]]))
        rows, = group.dispatch(x, handle)
        unread = group.plan(torch.tensor([[0, 1, 2]]))
        group.close()
        group.close()
        for call in (group.stats, group.reset_stats, group.check, unread.counts, lambda: unread.view(0), lambda: unread.lists(0),
                     lambda: unread.n_rounds, rows.x.sum().backward, group.__enter__):
            with self.assertRaises(ValueError) as caught:
                call()
            self.assertIn("the group is closed", str(caught.exception))

    def test_group_that_is_dropped(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            group = make_group(None, "cpu")
            del group
            gc.collect()


class SeveralRanks(TestCase):
    def test_2(self):
        run_ranks(self, 2, on_rank)

    def test_4(self):
        run_ranks(self, 4, on_rank)


if __name__ == "__main__":
    unittest.main()
