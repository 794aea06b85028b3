"""silu * gate * prob: values and gradients against autograd of the reference, layouts, bad arguments."""
import unittest

import torch
from common import TestCase, devices

from expar.fused_activation import (fused_silu_gate_prob, fused_silu_gate_prob_packed, get_fused_activation_fn,
                                    silu_gate_prob_reference)

SHAPES = ((0, 8), (1, 1), (7, 5), (64, 96), (33, 128), (5, 768))
# fp32: a sum of F products; bf16: one rounding of the result, 2^-8
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}


def inputs(n, width, dtype, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, generator=generator)
    x12 = make(n, 2 * width).to(device, dtype).requires_grad_()
    prob = make(n, 1).to(device).requires_grad_()
    return x12, prob, make(n, width).to(device, dtype)


class FusedActivation(TestCase):
    def cases(self):
        for device in devices():
            for dtype in (torch.float32, torch.bfloat16):
                for n, width in SHAPES:
                    with self.subTest(device=device, dtype=dtype, n=n, width=width):
                        yield inputs(n, width, dtype, device), TOLERANCE[dtype]

    def test_forward_backward_dprob(self):
        for (x12, prob, dout), tolerance in self.cases():
            want = silu_gate_prob_reference(*x12.chunk(2, 1), prob)
            want_dx, want_dprob = torch.autograd.grad(want, (x12, prob), dout)
            for function in (lambda: fused_silu_gate_prob(*x12.chunk(2, 1), prob),
                             lambda: fused_silu_gate_prob_packed(x12, prob),
                             lambda: fused_silu_gate_prob(*(h.contiguous() for h in x12.chunk(2, 1)), prob)):
                got = function()
                self.assertEqual(got.dtype, x12.dtype)
                self.assertTrue(got.is_contiguous())
                dx, dprob = torch.autograd.grad(got, (x12, prob), dout)
                self.assert_close(got, want, tolerance, "out")
                self.assert_close(dx, want_dx, tolerance, "dx")
                # the reference rounds nothing in between; a sum of F products
                self.assert_close(dprob, want_dprob, 1e-5, "dprob")

    def test_halves_are_read_in_place(self):
        """The library gets the halves where they lie."""
        from expar import fused_activation

        x12, prob, _ = inputs(64, 96, torch.float32, "cpu")
        x1, x2, ld = fused_activation._operands(*x12.detach().chunk(2, 1))
        self.assertEqual((x1.data_ptr(), x2.data_ptr(), ld), (x12.data_ptr(), x12.data_ptr() + 96 * 4, 192))
        odd = torch.randn(8, 10)[:, 1:]  # rows that are not aligned are copied, not refused
        self.assert_close(fused_silu_gate_prob(odd, odd, torch.ones(8)), silu_gate_prob_reference(odd, odd, torch.ones(8)), 1e-6)

    def test_transposed(self):
        for device in devices():
            x1, x2 = (torch.randn(12, 40, device=device).t() for _ in range(2))
            prob = torch.rand(40, device=device)
            self.assert_close(fused_silu_gate_prob(x1, x2, prob), silu_gate_prob_reference(x1, x2, prob), 2e-6)

    def test_expanded_gradient(self):
        for device in devices():
            x12, prob, _ = inputs(9, 16, torch.float32, device)
            fused_silu_gate_prob_packed(x12, prob).sum().backward()
            got, x12.grad = x12.grad, None
            silu_gate_prob_reference(*x12.chunk(2, 1), prob).sum().backward()
            self.assert_close(got, x12.grad, 2e-6)

    def test_rows_on_the_device(self):
        for device in devices():
            x12, prob, dout = inputs(20, 16, torch.float32, device)
            n_rows = torch.tensor([13], dtype=torch.int32, device=device)
            got = fused_silu_gate_prob_packed(x12, prob, n_rows)
            want = silu_gate_prob_reference(*x12.chunk(2, 1), prob)
            dx, dprob = torch.autograd.grad(got, (x12, prob), dout)
            want_dx, want_dprob = torch.autograd.grad(want, (x12, prob), dout)
            self.assert_close(got[:13], want[:13], 2e-6)
            self.assert_close(dx[:13], want_dx[:13], 2e-6)
            self.assert_close(dprob[:13], want_dprob[:13], 1e-5)

    def test_no_second_derivative(self):
        """It raises where it is taken, also where autograd sees no path: d/dx12 of the gradient of a plain sum."""
        x12, prob, _ = inputs(4, 8, torch.float32, "cpu")
        for leaf, function in ((x12, lambda x: fused_silu_gate_prob_packed(x, prob.detach())),
                               (x12, lambda x: fused_silu_gate_prob(*x.chunk(2, 1), prob.detach())),
                               (prob, lambda p: fused_silu_gate_prob(*x12.detach().chunk(2, 1), p))):
            for loss in (lambda out: out.sum(), lambda out: out.pow(2).sum()):
                out = function(leaf)
                (gradient,) = torch.autograd.grad(loss(out), leaf, create_graph=True)
                self.assertTrue(torch.equal(gradient, torch.autograd.grad(loss(function(leaf)), leaf)[0]))
                total = gradient.pow(2).sum() + leaf.pow(2).sum()  # a term that has a derivative beside the one that has none
                with self.assertRaises(RuntimeError) as caught:
                    total.backward()
                self.assertIn("has no second derivative", str(caught.exception))

    def test_saved_tensors_are_read_once(self):
        """As checkpointing without reentrance requires."""
        from torch.utils.checkpoint import checkpoint

        x12, prob, _ = inputs(4, 8, torch.float32, "cpu")
        want = torch.autograd.grad(fused_silu_gate_prob_packed(x12, prob).sum(), (x12, prob))
        out = checkpoint(fused_silu_gate_prob_packed, x12, prob, use_reentrant=False)
        for a, b in zip(torch.autograd.grad(out.sum(), (x12, prob), create_graph=True), want):
            self.assertTrue(torch.equal(a, b))

    def test_names_of_torchtitan(self):
        self.assertIs(get_fused_activation_fn(use_triton=True), fused_silu_gate_prob)
        self.assertIs(get_fused_activation_fn(), fused_silu_gate_prob)
        self.assertIs(get_fused_activation_fn(use_triton=False), silu_gate_prob_reference)

    def test_bad_arguments(self):
        x, prob = torch.randn(4, 8), torch.rand(4, 1)
        for part, arguments in (("x1 is torch.float64", (x.double(), x.double(), prob)),
                                ("must both be [N, F]", (x, x[:, :4], prob)),
                                ("must both be [N, F]", (x[0], x[0], prob)),
                                ("they must be equal", (x, x.bfloat16(), prob)),
                                ("prob is torch.bfloat16", (x, x, prob.bfloat16())),
                                ("must be torch.float32 [4, 1]", (x, x, prob[:3])),
                                ("n_rows is torch.int64", (x, x, prob, torch.tensor([1])))):
            with self.assertRaises(ValueError) as caught:
                fused_silu_gate_prob(*arguments)
            self.assertIn(part, str(caught.exception))

    def test_wrong_types(self):
        x, prob = torch.randn(4, 8), torch.rand(4, 1)
        for part, call in (("x1 is None, must be a torch.Tensor", lambda: fused_silu_gate_prob(None, x, prob)),
                           ("x2 is a list", lambda: fused_silu_gate_prob(x, [1], prob)),
                           ("prob is 0.5", lambda: fused_silu_gate_prob(x, x, 0.5)),
                           ("n_rows is 3", lambda: fused_silu_gate_prob(x, x, prob, 3)),
                           ("x1 is a numpy.ndarray", lambda: fused_silu_gate_prob(x.numpy(), x, prob)),
                           ("x12 is None", lambda: fused_silu_gate_prob_packed(None, prob)),
                           ("prob is None", lambda: fused_silu_gate_prob_packed(x, None)),
                           ("x2 is None", lambda: silu_gate_prob_reference(x, None, prob))):
            with self.assertRaises(TypeError) as caught:
                call()
            self.assertIn(part, str(caught.exception))

    def test_library_message(self):
        """An error of the library itself comes with its text."""
        from expar import _capi, _device

        device = _device.of(torch.device("cpu"))
        call = _capi.SiluGateProbCall(n_rows=2, dim=8, dtype=2, ld=8)
        with self.assertRaises(ValueError) as caught:
            device.call("xp_silu_gate_prob", _capi.ctypes.byref(call), device.stream(), None)
        self.assertIn("silu_gate_prob_forward", str(caught.exception))

    def test_openblas_threads_stay(self):
        """The library calls OpenBLAS with one thread; a torch over the same OpenBLAS keeps its own number."""
        from expar import _library

        get, put = (_library.load().optional(f"openblas_{verb}_num_threads") for verb in ("get", "set"))
        if get is None:
            self.skipTest("another BLAS")
        put(2)
        x12, prob, _ = inputs(4, 8, torch.float32, "cpu")
        fused_silu_gate_prob_packed(x12, prob)
        self.assertEqual(get(), 2)
        put(1)


if __name__ == "__main__":
    unittest.main()
