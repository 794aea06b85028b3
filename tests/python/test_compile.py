"""What only newer PyTorch or a GPU has: custom ops and their fake implementations, torch.compile, selective checkpointing, CUDA
graphs."""
import functools
import unittest

import torch
from common import DenseMoE, TestCase, devices

from expar import _op
from expar.fused_activation import fused_silu_gate_prob, fused_silu_gate_prob_packed, silu_gate_prob_reference
from expar.moe import MoEArgs, MoELayer
from expar.ops import grouped_mm

needs_custom_ops = unittest.skipUnless(_op.HAS_CUSTOM_OPS, f"PyTorch {torch.__version__} has no torch.library.custom_op")


def activation_inputs(device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x12 = torch.randn(24, 64, generator=generator).to(device, dtype).requires_grad_()
    return x12, torch.rand(24, 1, generator=generator).to(device).requires_grad_()


def gemm_inputs(device):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 16, generator=generator).to(device).requires_grad_()
    weight = torch.randn(3, 8, 16, generator=generator).to(device).requires_grad_()
    offsets = torch.tensor([0, 4, 4, 9], dtype=torch.int32, device=device)
    gather = torch.tensor([7, 1, 1, 0, 8, 3, 3, 2, 8], dtype=torch.int32, device=device)
    return x, weight, offsets, gather


def make_layer(device, dtype=torch.float32, **changes):
    torch.manual_seed(0)
    return MoELayer(MoEArgs(num_experts=8, top_k=2, route_norm=True, load_balance_coeff=None, **changes), 32, 24, max_tokens=64,
                    dtype=dtype, device=device)


@needs_custom_ops
class CustomOps(TestCase):
    def test_opcheck(self):
        """Schemas, fake implementations and autograd registration agree with what the ops do."""
        ops = torch.ops.expar
        for device in devices():
            x12, prob = activation_inputs(device)
            x1, x2 = (half.detach().contiguous().requires_grad_() for half in x12.chunk(2, 1))
            torch.library.opcheck(ops.silu_gate_prob.default, (x1, x2, prob, None))
            torch.library.opcheck(ops.silu_gate_prob_packed.default, (x12, prob, None))
            torch.library.opcheck(ops.grouped_mm.default, gemm_inputs(device))

    def test_compile(self):
        for device in devices():
            x12, prob = activation_inputs(device)

            def block(x12, prob):
                return torch.tanh(fused_silu_gate_prob_packed(x12 * 2, prob)) + fused_silu_gate_prob(*x12.chunk(2, 1), prob)

            def plain(x12, prob):
                return torch.tanh(silu_gate_prob_reference(*(x12 * 2).chunk(2, 1), prob)) + \
                    silu_gate_prob_reference(*x12.chunk(2, 1), prob)

            for function, want, inputs in ((block, plain, (x12, prob)),
                                           (lambda *a: grouped_mm(*a).relu(), lambda *a: grouped_mm(*a).relu(),
                                            gemm_inputs(device))):
                got = torch.compile(function, fullgraph=True)(*inputs)
                expected = want(*inputs)
                leaves = [t for t in inputs if t.requires_grad]
                self.assert_close(got, expected)
                for a, b in zip(torch.autograd.grad(got.sum(), leaves), torch.autograd.grad(expected.sum(), leaves)):
                    self.assert_close(a, b)

    def test_compiled_layer(self):
        """torch.compile breaks its graph at the exchange; the results are the same."""
        for device in devices():
            layer = make_layer(device)
            x = torch.randn(20, 32, device=device, requires_grad=True)
            want = layer(x)
            (want_dx,) = torch.autograd.grad(want.square().sum(), x)
            got = torch.compile(layer)(x)
            self.assert_close(got, want)
            self.assert_close(torch.autograd.grad(got.square().sum(), x)[0], want_dx)

    def test_selective_checkpointing(self):
        """A policy that saves the experts' results: they are not computed again, and the gradients are the same."""
        from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

        def policy(_context, op, *_arguments, **_options):
            saved = op == torch.ops.expar.moe_experts.default
            return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE

        contexts = functools.partial(create_selective_checkpoint_contexts, policy)
        for device in devices():
            layer = make_layer(device, capacity_factor=0.7)  # not local: rows are dispatched
            x = torch.randn(20, 32, device=device, requires_grad=True)
            want = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
            layer.group.reset_stats()
            out = checkpoint(layer, x, use_reentrant=False, context_fn=contexts)
            before = layer.group.stats().n_combines
            got = torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])
            for a, b in zip(got, want):
                self.assert_close(a, b)
            # backward combines once a round (dispatch_backward); a recomputed forward would combine once more
            self.assertEqual(layer.group.stats().n_combines, 2 * before)


class Graphs(TestCase):
    @unittest.skipUnless("cuda" in devices(), "no GPU that expar can use")
    def test_cuda_graph(self):
        """Forward and backward of a layer in one graph: replayed on other tokens it gives what plain calls give."""
        for changes in ({}, dict(capacity_factor=0.7)):
            layer = make_layer("cuda", torch.bfloat16, **changes)
            x = torch.randn(48, 32, device="cuda").bfloat16().requires_grad_()

            def step():
                out = layer(x)
                return out, torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()])

            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out, gradients = step()
            for seed in (1, 2):
                with torch.no_grad():
                    x.copy_(torch.randn(48, 32, generator=torch.Generator().manual_seed(seed)))
                graph.replay()
                torch.cuda.synchronize()
                kept = out.clone(), [g.clone() for g in gradients]
                want, want_gradients = step()
                self.assertTrue(torch.equal(kept[0], want))
                for a, b in zip(kept[1], want_gradients):
                    self.assertTrue(torch.equal(a, b))
            layer.group.check()

    @unittest.skipUnless("cuda" in devices(), "no GPU that expar can use")
    def test_streams(self):
        """Calls of one group on two streams are ordered, and results survive their inputs."""
        layer = make_layer("cuda")
        dense = DenseMoE(8, 2, 32, 24, route_norm=True, device="cuda")
        dense.load_state_dict(layer.state_dict())
        side = torch.cuda.Stream()
        for seed in range(8):
            x = torch.randn(48, 32, generator=torch.Generator().manual_seed(seed)).cuda()
            handle_stream = side if seed % 2 else torch.cuda.current_stream()
            handle_stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(handle_stream):
                x.record_stream(handle_stream)
                got = layer(x)
            torch.cuda.current_stream().wait_stream(handle_stream)
            self.assert_close(got, dense(x))


if __name__ == "__main__":
    unittest.main()
