"""Cross-entropy over the answer tokens only, optionally without ever holding their logits.

Stock training materialises fp16 and fp32 logits of every position, prompt and image included: 1.4 to 1.7 GiB per 1,024
tokens at a vocabulary of 151,936. The head is frozen here, so the gradient with respect to the hidden states is all that
backward needs, and it can be computed chunk by chunk during forward.

Shapes: B examples, S tokens, N supervised tokens, C tokens of a chunk, D hidden, V vocabulary.
"""

import math
from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear, pad

from budgetft.knobs import LOSS_CHUNK
from budgetft.step.attention import FUSED_KERNEL

GRADIENT_SCALE = 1024.0
"""Probabilities of a large vocabulary lie near fp16's smallest numbers; a power of two moves them up exactly."""


def supervised_loss(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    sample_weights_N: torch.Tensor | None = None,
    *,
    cap: float | None = None,
) -> torch.Tensor:
    """Sum over tokens of the cross-entropy times the token's weight, in fp32; logits of all N tokens exist at once.

    ``cap``: logits are squeezed by ``cap * tanh(x / cap)``, as Gemma's are; so in what follows.
    """
    logits_NV = linear(hidden_ND, weight_VD)
    if cap:
        logits_NV = torch.tanh(logits_NV / cap) * cap
    return _summed(logits_NV.float(), targets_N, sample_weights_N)


def chunked_loss(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    sample_weights_N: torch.Tensor | None = None,
    *,
    chunk: int = LOSS_CHUNK,
    divisor: float = 1.0,
    cap: float | None = None,
) -> torch.Tensor:
    """The same sum over ``divisor``; logits of at most ``chunk`` tokens exist at once, and backward needs none of them.

    Divided here, and not after, the gradient is rounded as often as the stock recipe's.
    """
    return _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, targets_N, sample_weights_N, chunk, divisor, cap)


def weighted_full_loss(
    logits_BSV: torch.Tensor, labels_BS: torch.Tensor, index_N: torch.Tensor, sample_weights_N: torch.Tensor
) -> torch.Tensor:
    """The same sum off the logits of all positions, computed as transformers does, which knows no weights.

    ``index_N`` has the flat positions (in B * S) that predict a supervised token.
    """
    targets_BS = pad(labels_BS, (0, 1), value=-100)[:, 1:]
    losses = cross_entropy(logits_BSV.float().flatten(0, 1), targets_BS.flatten(), reduction="none")
    return (losses[index_N] * sample_weights_N).sum()


def _summed(logits_NV: torch.Tensor, targets_N: torch.Tensor, sample_weights_N: torch.Tensor | None) -> torch.Tensor:
    if sample_weights_N is None:
        return cross_entropy(logits_NV, targets_N, reduction="sum")
    return (cross_entropy(logits_NV, targets_N, reduction="none") * sample_weights_N).sum()


def summed_loss(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    sample_weights_N: torch.Tensor | None = None,
    *,
    chunk: int = LOSS_CHUNK,
    cap: float | None = None,
) -> torch.Tensor:
    """The same sum without gradients, a chunk of logits at a time, none of it held longer than in training: for evaluation."""
    total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
    for start in range(0, hidden_ND.shape[0], chunk):
        part = slice(start, start + chunk)
        logits_CV = linear(hidden_ND[part], weight_VD)
        if cap:
            logits_CV = logits_CV.div_(cap).tanh_().mul_(cap)
        log_p_CV = _log_softmax(logits_CV)
        del logits_CV
        log_p_C = log_p_CV.gather(1, targets_N[part, None])[:, 0]
        del log_p_CV
        total -= (log_p_C if sample_weights_N is None else log_p_C * sample_weights_N[part]).sum()
    return total


def _log_softmax(logits_CV: torch.Tensor) -> torch.Tensor:
    """In fp32. CUDA reads fp16 directly; the CPU first makes an fp32 copy, which a trace for a GPU must not."""
    if logits_CV.dtype == torch.float16 and (logits_CV.is_cuda or FUSED_KERNEL.get() is not None):
        return torch.ops.aten._log_softmax(logits_CV, -1, True)
    return torch.log_softmax(logits_CV, dim=-1, dtype=torch.float32)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_N: torch.Tensor,
        sample_weights_N: torch.Tensor | None,
        chunk_tokens: int,
        divisor: float,
        cap: float | None,
    ) -> torch.Tensor:
        # Of the division a power of two is left for the end, where it is exact: what is rounded stays as large as it was.
        left = 2.0 ** math.floor(math.log2(divisor))
        scale = GRADIENT_SCALE * left / divisor
        hidden_ND = hidden_ND.to(weight_VD.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        gradient_ND = torch.empty(hidden_ND.shape, dtype=torch.float32, device=hidden_ND.device)
        for start in range(0, hidden_ND.shape[0], chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            target_C1 = targets_N[chunk, None]
            with torch.autocast(hidden_ND.device.type, enabled=False):
                logits_CV = linear(hidden_ND[chunk], weight_VD)
                tanh_CV = logits_CV.div_(cap).tanh_() if cap else None
                log_p_CV = _log_softmax(tanh_CV * cap if tanh_CV is not None and cap else logits_CV)
                del logits_CV
                log_p_C = log_p_CV.gather(1, target_C1)[:, 0]
                total -= (log_p_C if sample_weights_N is None else log_p_C * sample_weights_N[chunk]).sum()
                del log_p_C
                slope_CV = log_p_CV.exp_().scatter_add_(1, target_C1, torch.full_like(target_C1, -1, dtype=torch.float32))
                if tanh_CV is not None:  # the slope of the squeezing
                    slope_CV.mul_(1 - tanh_CV.float().square_())
                    del tanh_CV
                slope_CV = slope_CV.mul_(scale).to(weight_VD.dtype)
                del log_p_CV
                gradient_ND[chunk] = torch.mm(slope_CV, weight_VD)
                del slope_CV
        if sample_weights_N is not None:  # here, in fp32, whatever their size
            gradient_ND.mul_(sample_weights_N[:, None])
        ctx.save_for_backward(gradient_ND.div_(GRADIENT_SCALE * left))
        ctx.hidden_dtype = hidden_ND.dtype
        return total.div_(divisor)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor, None, None, None, None, None, None]:
        (gradient_ND,) = ctx.saved_tensors
        return (gradient_ND * grads[0]).to(ctx.hidden_dtype), None, None, None, None, None, None
