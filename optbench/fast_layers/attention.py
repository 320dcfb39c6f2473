"""Attention with a second derivative in ten matrix products and a few passes over the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from optbench.fast_layers.graph import Gradients, second


def attention(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """F.scaled_dot_product_attention with a cheap second derivative.

    Calls with dropout, grouped heads, broadcast batches or a rare kind of mask go to the original.
    """

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        covered = not (dropout_p or enable_gqa) and (
            _shapes_fit(query, key, value) and _mask_fits(query, attn_mask, is_causal)
        )
        if not covered:
            return original(
                query,
                key,
                value,
                attn_mask,
                dropout_p,
                is_causal,
                scale=scale,
                enable_gqa=enable_gqa,
            )
        factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        return _attend(query, key, value, _mask(query, key, attn_mask, is_causal), factor)

    return attend


def _shapes_fit(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether no tensor is empty and all have the same batch dimensions."""
    filled = query.numel() and key.numel() and value.numel()
    return bool(filled) and key.shape[:-2] == query.shape[:-2] == value.shape[:-2]


def _mask_fits(query: Tensor, mask: Tensor | None, is_causal: bool) -> bool:
    """Whether the mask is constant, of a usual dtype, and the only one."""
    if mask is None:
        return True
    return not (is_causal or mask.requires_grad or mask.dtype not in (torch.bool, query.dtype))


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, factor: float
) -> Tensor:
    """Attention with all batch dimensions flattened to one."""
    batch = query.shape[:-2]
    flat = [x.reshape(-1, *x.shape[-2:]) for x in (query, key, value)]
    if mask is not None and mask.ndim > 2:
        mask = mask.expand(*batch, -1, -1)
    mixed: Tensor = _Attention.apply(*flat, mask, factor)  # type: ignore[no-untyped-call]
    return mixed.view(*batch, *mixed.shape[-2:])


def _mask(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """Mask to add to the scores, which broadcasts to their shape (…, T, S); None for no mask."""
    shape = query.shape[-2], key.shape[-2]
    if causal:
        mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill_(
            ~mask, -math.inf
        )
    return mask


class _Attention(Function):
    """y = p v, p = softmax(c q kᵀ + mask), with shapes (B, T, d), (B, S, d) and (B, S, e)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, c: float) -> Tensor:
        scores = torch.bmm(q * c, k.mT)
        if mask is None:
            p = torch.softmax(scores, -1)
        else:
            scores.view(*mask.shape[:-2], *scores.shape[1 if mask.ndim > 2 else 0 :]).add_(mask)
            p = torch._safe_softmax(scores, -1)  # 0 where all is masked, as in torch's attention
        ctx.save_for_backward(q, k, v, p)
        ctx.c = c
        return torch.bmm(p, v)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Gradients:
        kept = (*ctx.saved_tensors, ctx.c)
        if torch.is_grad_enabled():
            gradients = _Gradient.apply(g, *kept)  # type: ignore[no-untyped-call]
        else:
            gradients = _gradients(g, *kept)[:3]
        return (*gradients, None, None)


class _Gradient(Function):
    """Gradients in q, k and v of Σ g∘y, and their derivatives along dq, dk, dv."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor, c: float
    ) -> tuple[Tensor, ...]:
        dq, dk, dv, s = _gradients(g, q, k, v, p, c)
        ctx.save_for_backward(g, q, k, v, p, s)
        ctx.c = c
        ctx.set_materialize_grads(False)
        return dq, dk, dv

    @staticmethod
    @second
    def backward(ctx: Any, dq: Tensor | None, dk: Tensor | None, dv: Tensor | None) -> Gradients:
        g, q, k, v, p, s = ctx.saved_tensors
        dq, dk, dv = (
            torch.zeros_like(x) if d is None else d for d, x in ((dq, q), (dk, k), (dv, v))
        )
        dq, dk = dq * ctx.c, dk * ctx.c
        # t: change of the scores along (dq, dk), less its mean under p; u = p∘t: change of p
        t = torch.baddbmm(torch.bmm(dq, k.mT), q, dk.mT)
        t -= (p * t).sum(-1, keepdim=True)
        bent = torch.bmm(g, dv.mT).mul_(p).addcmul_(s, t)
        bent.addcmul_(p, bent.sum(-1, keepdim=True), value=-1)
        u = t.mul_(p)
        along_g = torch.baddbmm(torch.bmm(p, dv), u, v)
        along_v = torch.bmm(u.mT, g)
        along_q = torch.baddbmm(torch.bmm(s, dk), bent, k, alpha=ctx.c)
        along_k = torch.baddbmm(torch.bmm(s.mT, dq), bent.mT, q, alpha=ctx.c)
        return along_g, along_q, along_k, along_v, None, None


def _gradients(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor, c: float
) -> tuple[Tensor, ...]:
    """Gradients c s k, c sᵀ q and pᵀ g in q, k and v, and s in the scores.

    s = p∘(r − Σ p∘r), r = g vᵀ.
    """
    s = torch._softmax_backward_data(torch.bmm(g, v.mT), p, -1, p.dtype)
    return torch.bmm(s, k) * c, torch.bmm(s.mT, q) * c, torch.bmm(p.mT, g), s
