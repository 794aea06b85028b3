"""expar.moe.MoELayer against a dense mixture of experts: values, gradients, state dict, checkpointing, training."""
import copy
import pickle
import unittest
import warnings

import torch
import torch.nn.functional as F
from common import DenseMoE, TestCase, devices, run_ranks
from torch import nn
from torch.utils.checkpoint import checkpoint

from expar.ep import Group
from expar.moe import MoEArgs, MoELayer, prepare_for_ddp, update_expert_bias

EXPERTS, TOP_K, DIM, WIDTH = 8, 3, 32, 24


def make_layer(process_group=None, device="cpu", dtype=torch.float32, group=None, **changes):
    args = MoEArgs(**{**dict(num_experts=EXPERTS, top_k=TOP_K, route_norm=True), **changes})
    sizes = {} if group is not None else dict(max_tokens=64, process_group=process_group, device=device)
    return MoELayer(args, DIM, WIDTH, dtype=dtype, group=group, **sizes)


def make_dense(dtype=torch.float32, seed=0, **changes):
    torch.manual_seed(seed)
    return DenseMoE(EXPERTS, TOP_K, DIM, WIDTH, **{**dict(route_norm=True, dtype=dtype), **changes})


def tokens(n, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, DIM, generator=generator).to(dtype), torch.randn(n, DIM, generator=generator).to(dtype)


def compare(test, layer, n_tokens, relative=1e-5, skew=0.0, run=lambda layer, x: layer(x), **dense_changes):
    """The layer, spread over its ranks, against one dense layer that sees all ranks' tokens."""
    group = layer.group
    dense = make_dense(group.dtype, **dense_changes)
    with torch.no_grad():
        dense.gate.weight[0] += skew  # with tokens of a positive mean: nearly all select expert 0
    layer.load_state_dict(dense.state_dict())
    layer.zero_grad()
    for r in range(group.size):
        x, d_out = tokens(n_tokens[r], 10 * r + 1, group.dtype)
        x = (x + (0.5 if skew else 0)).requires_grad_()
        want = dense(x)
        want.backward(d_out)
        if r == group.rank:
            mine, wanted = (x.detach().to(group.device).requires_grad_(), d_out.to(group.device)), (want, x.grad)
    got = run(layer, mine[0])
    got.backward(mine[1])
    gate = layer.gate.weight.grad.cpu()
    if group.size > 1:
        torch.distributed.all_reduce(gate)
    w13, w2 = (grad[group.rank * group.num_local_experts:][:group.num_local_experts] for grad in dense.stacked_gradients())
    test.assert_close(got.cpu(), wanted[0], relative, "out")
    test.assert_close(mine[0].grad.cpu(), wanted[1], relative, "dx")
    test.assert_close(gate, dense.gate.weight.grad, relative, "gate")
    test.assert_close(layer.experts.w13.grad.cpu(), w13, relative, "w13")
    test.assert_close(layer.experts.w2.grad.cpu(), w2, relative, "w2")


class Block(nn.Module):
    """A small model around an MoE layer; `moe` is the only line that changes."""

    def __init__(self, moe):
        super().__init__()
        self.embed, self.mlp, self.head = nn.Embedding(64, DIM), moe, nn.Linear(DIM, 64)

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(x + self.mlp(F.layer_norm(x, (DIM,))))


def train(model, steps, rank=0, size=1, recompute=False):
    """Losses of `steps` steps; each rank has its share of a batch of 32 tokens, gradients are summed as the layer says."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    expert = set(model.mlp.expert_parameters()) if isinstance(model.mlp, MoELayer) else set()
    generator, losses = torch.Generator().manual_seed(7), []
    for _ in range(steps):
        ids = torch.randint(0, 64, (32,), generator=generator)
        ids, target = ids.chunk(size)[rank], ((ids * 5 + 3) % 64).chunk(size)[rank]
        logits = checkpoint(model, ids, use_reentrant=False) if recompute else model(ids)
        loss = F.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        total = loss.detach() / size
        if size > 1:
            for parameter in model.parameters():
                if parameter not in expert:
                    torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= size
            torch.distributed.all_reduce(total)
        optimizer.step()
        losses.append(float(total))
    return losses


def train_both(test, layer, recompute=False):
    """100 steps with and without expar, from the same weights."""
    def model(moe):
        torch.manual_seed(3)
        block = Block(nn.Identity())
        block.mlp = moe
        return block

    dense = make_dense()
    layer.load_state_dict(dense.state_dict())
    want = train(model(dense), 100)
    got = train(model(layer), 100, layer.group.rank, layer.group.size, recompute)
    test.assertLess(want[-1], 0.5 * want[0])
    for step, (a, b) in enumerate(zip(got, want)):
        # fp32 rounding grows with every step
        test.assertLess(abs(a - b), 1e-5 if step < 10 else 1e-3 if step < 50 else 1e-2, f"step {step}: {a} and {b}")


def check_ddp(test, layer):
    """A model under DDP takes the same step as a dense one on all tokens."""
    from torch.nn.parallel import DistributedDataParallel

    rank, size = layer.group.rank, layer.group.size
    dense = make_dense(seed=6)
    layer.load_state_dict(dense.state_dict())
    torch.manual_seed(3)
    plain = Block(nn.Identity())
    model = copy.deepcopy(plain)
    plain.mlp, model.mlp = dense, layer
    ids = torch.randint(0, 64, (24,), generator=torch.Generator().manual_seed(1))
    F.cross_entropy(plain(ids), ids).backward()
    model.zero_grad()
    parallel = DistributedDataParallel(prepare_for_ddp(model))
    mine = ids.chunk(size)[rank]
    F.cross_entropy(parallel(mine), mine).backward()
    test.assert_close(layer.gate.weight.grad, dense.gate.weight.grad, 1e-5, "gate under DDP")
    test.assert_close(model.head.weight.grad, plain.head.weight.grad, 1e-5, "head under DDP")
    w13 = dense.stacked_gradients()[0][layer.experts.first:][:layer.group.num_local_experts]
    test.assert_close(layer.experts.w13.grad, w13, 1e-5, "experts under DDP")


def on_rank(rank, size):
    import torch.distributed as dist

    test = TestCase()
    for device in ["cpu"] + (["cuda"] if torch.cuda.is_available() and torch.cuda.device_count() >= size else []):
        for changes in ({}, dict(use_deepep=False), dict(capacity_factor=0.5, recompute=True)):
            layer = make_layer(dist.group.WORLD, device, **changes)
            compare(test, layer, [13] * size)
            compare(test, layer, [(11 * r) % 30 for r in range(size)], skew=1.0)
            compare(test, layer, [0] * size)
            if device == "cpu" and not changes:
                if size == 2:
                    train_both(test, layer)
                check_state_dicts(test, layer)
                check_bias(test, layer, dist.group.WORLD)
                layer.expert_bias.zero_()
                check_ddp(test, layer)
            layer.group.close()


def check_state_dicts(test, layer):
    """A rank saves its experts under Hugging Face's names and loads them from a whole layer's."""
    dense = make_dense(seed=4)
    whole = dense.state_dict()
    layer.load_state_dict(whole)
    saved = layer.state_dict()
    n_local, first = layer.group.num_local_experts, layer.experts.first
    names = {f"experts.{e}.{p}.weight" for e in range(first, first + n_local) for p in ("gate_proj", "up_proj", "down_proj")}
    test.assertEqual(set(saved), names | {"gate.weight"})
    for name in saved:
        test.assertTrue(torch.equal(saved[name], whole[name]), name)


def check_bias(test, layer, process_group):
    """d = coeff * sign(mean - count), without its mean; counts of all ranks; the bias moves the selection and is saved."""
    layer.train()
    layer.update_expert_bias(process_group)
    with torch.no_grad():
        layer.expert_bias.zero_()
        layer.gate.weight.zero_()
        layer.gate.weight[0] = 1  # expert 0 is the busiest
        layer(tokens(16, 3)[0].abs())
    test.assertEqual(float(layer.tokens_per_expert[0]), 16)
    update_expert_bias(nn.Sequential(layer), process_group)
    test.assertEqual(float(layer.tokens_per_expert.sum()), 0)
    bias = layer.expert_bias
    test.assertLess(float(bias[0]), 0)
    test.assertAlmostEqual(float(bias.sum()), 0, places=6)
    test.assertIn("expert_bias", layer.state_dict())
    bias[0] = -1
    test.assertFalse(bool((layer.route(tokens(16, 3)[0].abs()).topk_idx == 0).any()))


class OneRank(TestCase):
    def test_against_dense(self):
        for device in devices():
            for changes in ({}, dict(capacity_factor=0.4), dict(capacity_factor=0.4, recompute=True), dict(recompute=True),
                            dict(use_deepep=False)):
                with self.subTest(device=device, **changes):
                    layer = make_layer(device=device, **changes)
                    for n in (1, 37, 64, 0):
                        compare(self, layer, [n])
                    compare(self, layer, [50], skew=1.0)
            with self.subTest(device=device, dtype=torch.bfloat16):
                compare(self, make_layer(device=device, dtype=torch.bfloat16), [48], relative=0.03)

    def test_sigmoid(self):
        compare(self, make_layer(score_func="sigmoid", route_norm=False), [20], score_func="sigmoid", route_norm=False)

    def test_activation_checkpointing(self):
        for reentrant in (False, True):
            for changes in ({}, dict(capacity_factor=0.4)):
                compare(self, make_layer(**changes), [33],
                        run=lambda layer, x: checkpoint(layer, x, use_reentrant=reentrant))

    def test_no_second_derivative(self):
        layer = make_layer()
        x = tokens(6, 0)[0].requires_grad_()
        for leaf in (x, layer.experts.w13, layer.gate.weight):
            (gradient,) = torch.autograd.grad(layer(x).sum(), leaf, create_graph=True)
            with self.assertRaises(RuntimeError) as caught:
                (gradient.pow(2).sum() + leaf.pow(2).sum()).backward()
            self.assertIn("expar::moe_experts has no second derivative", str(caught.exception))
        layer.group.close()

    def test_dropping_dprob_would_be_seen(self):
        """The router's gradient comes through the routing weights alone."""
        layer = make_layer()
        x, d_out = tokens(20, 1)
        layer(x).backward(d_out)
        self.assertGreater(float(layer.gate.weight.grad.abs().max()), 0)

    def test_shapes(self):
        layer = make_layer()
        x = torch.randn(2, 5, DIM)
        self.assertEqual(layer(x).shape, x.shape)
        self.assert_close(layer(x).reshape(-1, DIM), layer(x.reshape(-1, DIM)))

    def test_layers_share_a_group(self):
        group = Group(num_experts=EXPERTS, top_k=TOP_K, dim=DIM, max_tokens=64, dtype=torch.float32, device="cpu")
        first, second = make_layer(group=group), make_layer(group=group)
        x = torch.randn(9, DIM, requires_grad=True)
        second(first(x) + first(x)).sum().backward()  # one layer twice, two forwards outstanding
        self.assertIsNotNone(x.grad)
        with self.assertRaises(ValueError) as caught:
            make_layer(group=group, top_k=2)
        self.assertIn("top_k is 2, the group was made for 3", str(caught.exception))

    def test_same_weights_for_every_number_of_ranks(self):
        torch.manual_seed(11)
        whole = make_layer().state_dict()
        torch.manual_seed(11)
        again = make_layer().state_dict()
        self.assertTrue(all(torch.equal(whole[name], again[name]) for name in whole))
        self.assertFalse(torch.equal(whole["experts.0.up_proj.weight"], whole["experts.1.up_proj.weight"]))

    def test_state_dict(self):
        layer = make_layer()
        check_state_dicts(self, layer)
        wrong = dict(make_dense().state_dict())
        del wrong["experts.3.up_proj.weight"]
        wrong["experts.99.up_proj.weight"] = torch.zeros(1)
        wrong["experts.1.down_proj.weight"] = torch.zeros(2, 2)
        with self.assertRaises(RuntimeError) as caught:
            layer.load_state_dict(wrong)
        for part in ("experts.3.up_proj.weight", "experts.99.up_proj.weight", "size mismatch for experts.1.down_proj.weight"):
            self.assertIn(part, str(caught.exception))

    def test_bias(self):
        layer = make_layer()
        check_bias(self, layer, None)
        other = make_layer()
        other.load_state_dict(layer.state_dict())
        self.assertTrue(torch.equal(other.expert_bias, layer.expert_bias))

    def test_bias_that_never_moves_is_told(self):
        layer = make_layer()
        x = tokens(2, 1)[0]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(250):
                layer(x)
        self.assertEqual(["the expert bias does not move" in str(w.message) for w in caught], [True])

    def test_forced_balance(self):
        x = tokens(16, 1)[0]
        for kind in ("modulo", "spread"):
            layer = make_layer(force_load_balance=kind)
            topk_idx = layer.route(x).topk_idx
            self.assertEqual(topk_idx.flatten().bincount().tolist(), [16 * TOP_K // EXPERTS] * EXPERTS)
            layer(x)

    def test_buffers_stay_fp32(self):
        layer = make_layer(dtype=torch.bfloat16)
        layer.expert_bias += 1 / 3
        layer.to(torch.bfloat16)
        layer(torch.ones(5, DIM, dtype=torch.bfloat16))
        self.assertEqual(layer.expert_bias.tolist(), torch.full((EXPERTS,), 1 / 3).tolist())
        self.assertEqual(float(layer.tokens_per_expert.sum()), 5 * TOP_K)

    def test_autocast_leaves_the_router_alone(self):
        layer, x = make_layer(), tokens(9, 1)[0]
        want = layer.route(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got, _ = layer.route(x), layer(x)
        for part, expected in zip(got, want):
            self.assertTrue(torch.equal(part, expected))

    def test_training(self):
        train_both(self, make_layer())
        train_both(self, make_layer(capacity_factor=0.5), recompute=True)

    def test_bad_arguments(self):
        for part, call in (("score_func is 'relu'", lambda: MoEArgs(4, 2, score_func="relu")),
                           ("top_k 5 must be from 1 to num_experts (4)", lambda: MoEArgs(4, 5)),
                           ("force_load_balance is 'even'", lambda: MoEArgs(4, 2, force_load_balance="even")),
                           ("x has shape (2, 3, 16), its last dimension must be 32", lambda: make_layer()(torch.zeros(2, 3, DIM // 2))),
                           ("x has shape (), its last", lambda: make_layer()(torch.zeros(()))),
                           ("give max_tokens", lambda: MoELayer(MoEArgs(4, 2), 8, 8)),
                           ("65 tokens, but the group was made for 0 to 64", lambda: make_layer()(torch.zeros(65, DIM)))):
            with self.assertRaises(ValueError) as caught:
                call()
            self.assertIn(part, str(caught.exception))

    def test_wrong_types(self):
        layer = make_layer()
        for part, call in (("num_experts is None, must be a whole number", lambda: MoEArgs(None, 2)),
                           ("top_k is 'a'", lambda: MoEArgs(4, "a")),
                           ("route_norm is 1, must be True or False", lambda: MoEArgs(4, 2, route_norm=1)),
                           ("route_scale is None", lambda: MoEArgs(4, 2, route_scale=None)),
                           ("load_balance_coeff is a list", lambda: MoEArgs(4, 2, load_balance_coeff=[1])),
                           ("args is None, must be an expar.moe.MoEArgs", lambda: MoELayer(None, 8, 8, max_tokens=4)),
                           ("hidden_dim is None", lambda: MoELayer(MoEArgs(4, 2), 8, None, max_tokens=4)),
                           ("group is 3, must be an expar.ep.Group", lambda: MoELayer(MoEArgs(4, 2), 8, 8, group=3)),
                           ("dtype is 'bf16'", lambda: MoELayer(MoEArgs(4, 2), 8, 8, max_tokens=4, dtype="bf16")),
                           ("x is None, must be a torch.Tensor", lambda: layer(None)),
                           ("x is a list", lambda: layer.route([1])),
                           ("model is None, must be a torch.nn.Module", lambda: update_expert_bias(None)),
                           ("model is a list", lambda: prepare_for_ddp([layer]))):
            with self.assertRaises(TypeError) as caught:
                call()
            self.assertIn(part, str(caught.exception))
        for part, call in (("score_func is ['softmax']", lambda: MoEArgs(4, 2, score_func=["softmax"])),
                           ("capacity_factor is -1", lambda: MoEArgs(4, 2, capacity_factor=-1)),
                           ("hidden_dim is 0, must be at least 1", lambda: MoELayer(MoEArgs(4, 2), 8, 0, max_tokens=4)),
                           ("x has shape (2, 3), must be [T, 32]", lambda: layer.route(torch.zeros(2, 3)))):
            with self.assertRaises(ValueError) as caught:
                call()
            self.assertIn(part, str(caught.exception))
        layer.group.close()
        with self.assertRaises(ValueError):
            MoELayer(MoEArgs(EXPERTS, TOP_K), DIM, WIDTH, group=layer.group)

    def test_deepcopy(self):
        """A copy (of a moving average of weights, say) has weights of its own and shares the group."""
        layer = make_layer()
        twin, x = copy.deepcopy(layer), tokens(5, 0)[0]
        self.assertIs(twin.group, layer.group)
        want = layer(x)
        self.assertTrue(torch.equal(twin(x), want))
        with torch.no_grad():
            twin.experts.w2.zero_()
        self.assertTrue(torch.equal(layer(x), want))
        self.assertFalse(torch.equal(twin(x), want))
        with self.assertRaises(TypeError) as caught:
            pickle.dumps(layer)
        self.assertIn("state_dict()", str(caught.exception))
        layer.group.close()


class SeveralRanks(TestCase):
    def test_2(self):
        run_ranks(self, 2, on_rank)

    def test_4(self):
        run_ranks(self, 4, on_rank)


if __name__ == "__main__":
    unittest.main()
