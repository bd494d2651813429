"""Triton compiles for the first visible GPU, and its fp16 product is right: on Volta it was zero (pytorch/pytorch#127157)."""

import json

print("@@" + json.dumps({"begin": "triton"}), flush=True)
import torch  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402


@triton.jit
def product(a, b, out):
    rows = tl.arange(0, 32)[:, None] * 32 + tl.arange(0, 32)[None, :]
    tl.store(out + rows, tl.dot(tl.load(a + rows), tl.load(b + rows)))


a = torch.randn(32, 32, device="cuda", dtype=torch.float16)
b = torch.randn(32, 32, device="cuda", dtype=torch.float16)
out = torch.zeros(32, 32, device="cuda", dtype=torch.float32)
product[(1,)](a, b, out)
off = (out - a.float() @ b.float()).abs().max().item()
print("@@" + json.dumps({"tried": "triton", "problem": None if off < 0.1 else f"a product is off by {off:.3g}"}), flush=True)
