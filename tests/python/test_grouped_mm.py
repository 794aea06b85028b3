"""Grouped GEMM with gather: values and gradients against torch, expert by expert."""
import unittest

import torch
from common import TestCase, devices

from expar.ops import grouped_mm

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7}


def reference(x, weight, offsets, gather):
    rows = x if gather is None else x[gather[:int(offsets[-1])].long()]
    parts = [rows[offsets[e]:offsets[e + 1]].float() @ weight[e].float().t() for e in range(weight.shape[0])]
    return torch.cat(parts).to(x.dtype)


def case(sizes, n_source, n, k, dtype, device, with_gather, spare=3):
    generator = torch.Generator().manual_seed(1)
    offsets = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()], dtype=torch.int32)
    used = int(offsets[-1])
    rows = n_source if with_gather else used + spare
    x = torch.randn(rows, k, generator=generator).to(device, dtype).requires_grad_()
    weight = torch.randn(len(sizes), n, k, generator=generator).to(device, dtype).requires_grad_()
    gather = None
    if with_gather:  # rows that are not in use lead nowhere
        gather = torch.cat([torch.randint(0, n_source, (used,), generator=generator), torch.full((spare,), -7)]).int().to(device)
    dout = torch.randn(used, n, generator=generator).to(device, dtype)
    return x, weight, offsets.to(device), gather, dout


class GroupedMM(TestCase):
    def test_against_torch(self):
        for device in devices():
            for dtype in (torch.float32, torch.bfloat16):
                for with_gather in (False, True):
                    for sizes, n_source, n, k in (([5, 0, 12, 3], 9, 11, 13), ([64, 70], 50, 32, 64), ([0, 0], 4, 8, 8),
                                                  ([1], 1, 1, 1)):
                        with self.subTest(device=device, dtype=dtype, gather=with_gather, sizes=sizes):
                            self.compare(*case(sizes, n_source, n, k, dtype, device, with_gather), TOLERANCE[dtype])

    def compare(self, x, weight, offsets, gather, dout, tolerance):
        used = int(offsets[-1])
        got, want = grouped_mm(x, weight, offsets, gather)[:used], reference(x, weight, offsets.cpu(), gather)
        self.assert_close(got, want, tolerance, "out")
        dx, dw = torch.autograd.grad(got, (x, weight), dout)
        want_dx, want_dw = torch.autograd.grad(want, (x, weight), dout, allow_unused=True)
        self.assert_close(dw, torch.zeros_like(weight) if want_dw is None else want_dw, tolerance, "dw")
        rows = x.shape[0] if gather is not None else used  # the gradient of rows that are not in use is undefined
        self.assert_close(dx[:rows], (torch.zeros_like(x) if want_dx is None else want_dx)[:rows], tolerance, "dx")

    def test_one_gradient_only(self):
        x, weight, offsets, gather, dout = case([5, 2], 6, 8, 8, torch.float32, "cpu", True)
        out = grouped_mm(x.detach(), weight, offsets, gather)[:7]
        (dw,) = torch.autograd.grad(out, weight, dout)
        self.assert_close(dw, torch.autograd.grad(reference(x, weight, offsets, gather), weight, dout)[0])

    def test_wrong_types(self):
        x, weight, offsets, gather, _ = case([2, 3], 4, 8, 8, torch.float32, "cpu", True)
        for part, arguments in (("x is None, must be a torch.Tensor", (None, weight, offsets)),
                                ("weight is a list", (x, [weight], offsets)), ("offsets is a list", (x, weight, [0, 2, 5])),
                                ("gather is 'rows'", (x, weight, offsets, "rows"))):
            with self.assertRaises(TypeError) as caught:
                grouped_mm(*arguments)
            self.assertIn(part, str(caught.exception))

    def test_no_second_derivative(self):
        x, weight, offsets, gather, _ = case([2, 3], 4, 8, 8, torch.float32, "cpu", True)
        for leaf in (x, weight):
            (gradient,) = torch.autograd.grad(grouped_mm(x, weight, offsets, gather)[:5].sum(), leaf, create_graph=True)
            with self.assertRaises(RuntimeError) as caught:
                (gradient.pow(2).sum() + leaf.pow(2).sum()).backward()
            self.assertIn("expar::grouped_mm has no second derivative", str(caught.exception))

    def test_bad_arguments(self):
        x, w, offsets = torch.randn(6, 4), torch.randn(2, 3, 4), torch.tensor([0, 2, 6], dtype=torch.int32)
        gather = torch.arange(6, dtype=torch.int32)
        for part, arguments in (("[rows, K] and [L, N, K]", (x, w[:, :, :3], offsets)),
                                ("they must be equal", (x, w.bfloat16(), offsets)),
                                ("x is torch.float16", (x.half(), w.half(), offsets)),
                                ("offsets is torch.int64", (x, w, offsets.long())),
                                ("must be torch.int32 [3]", (x, w, offsets[:2])),
                                ("gather is torch.int64", (x, w, offsets, gather.long())),
                                ("must ascend from 0 to at most 6", (x, w, torch.tensor([0, 7, 6], dtype=torch.int32))),
                                ("must ascend from 0 to at most 6", (x, w, torch.tensor([0, 2, 7], dtype=torch.int32))),
                                ("gather leads to rows 1 to 6", (x, w, offsets, gather + 1))):
            with self.assertRaises(ValueError) as caught:
                grouped_mm(*arguments)
            self.assertIn(part, str(caught.exception))


if __name__ == "__main__":
    unittest.main()
