"""Run one small kernel of each kind on the first visible GPU: what a run would meet first."""

import json
import warnings
from collections.abc import Callable


def say(**fields: object) -> None:
    print("@@" + json.dumps(fields), flush=True)


def tried(name: str, act: Callable[[], str | None]) -> None:
    """Announce, act, and say what came of it: None when all was well."""
    say(begin=name)
    try:
        problem = act()
    except BaseException as error:
        problem = f"{type(error).__name__}: {error}"[:1500]
    say(tried=name, problem=problem)


def matmul(dtype: str) -> Callable[[], str | None]:
    def act() -> str | None:
        a = torch.full((128, 128), 0.5, device="cuda", dtype=getattr(torch, dtype))
        got = (a @ a).float().mean().item()
        return None if abs(got - 32.0) < 0.5 else f"a product that is 32 came out as {got}"

    return act


def efficient_attention() -> str | None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    query = torch.randn(1, 2, 64, 128, device="cuda", dtype=torch.float16)
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        got = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    return None if bool(torch.isfinite(got).all()) else "values that are not finite"


say(begin="start")
warnings.simplefilter("ignore")
import torch  # noqa: E402
from torch.cuda import nccl  # noqa: E402

try:
    torch.cuda.init()
    properties = torch.cuda.get_device_properties(0)
except BaseException as error:
    say(start=None, problem=f"{type(error).__name__}: {error}"[:1500])
    raise SystemExit(0) from None
say(
    start=properties.name,
    uuid=str(properties.uuid),
    capability=[properties.major, properties.minor],
    total_bytes=properties.total_memory,
    native_bf16=torch.cuda.is_bf16_supported(including_emulation=False),
)
for kind in ("float32", "float16", "bfloat16"):
    tried(kind, matmul(kind))
tried("efficient attention", efficient_attention)
tried("nccl", lambda: None if nccl.version() else "no version")
