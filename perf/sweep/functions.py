"""Functions of torch: linear algebra, Fourier, scans, sorting, indexing, softmaxes, elementwise."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, linalg

from perf.sweep.subject import Recipe, function

ORDER = torch.tensor([2, 0, 3, 1])
FIXED = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
EYE = torch.eye(3, dtype=torch.float64)


def bent(f: Callable[[Tensor], Tensor], *shape: int) -> Recipe:
    """Recipe of a function that is linear in its input or nearly so, behind a sine."""
    return function(lambda z: f(z.sin()), *shape)


def matrix(f: Callable[[Tensor], Tensor]) -> Recipe:
    """Recipe of a function of well-conditioned square matrices."""
    return function(lambda z: f(z + 3 * EYE), 3, 3)


def symmetric(f: Callable[[Tensor], Tensor]) -> Recipe:
    """Recipe of a function of symmetric positive definite matrices."""
    return function(lambda z: f(z @ z.mT + EYE), 3, 3)


def positive(f: Callable[[Tensor], Tensor]) -> Recipe:
    """Recipe of an elementwise function of positive numbers."""
    return function(lambda z: f(z.exp()), 4)


def inside(f: Callable[[Tensor], Tensor]) -> Recipe:
    """Recipe of an elementwise function of numbers between −0.9 and 0.9."""
    return function(lambda z: f(0.9 * z.tanh()), 4)


def _low_rank(z: Tensor) -> Tensor:
    u, s, v = linalg.svd(z, full_matrices=False)
    rebuilt: Tensor = (u * s.sqrt().unsqueeze(-2)) @ v
    return rebuilt


def _eigenvectors(z: Tensor) -> Tensor:
    values, vectors = linalg.eigh(z)
    rebuilt: Tensor = (vectors * values.exp().unsqueeze(-2)) @ vectors.mT
    return rebuilt


def _lu(z: Tensor) -> Tensor:
    _, lower, upper = linalg.lu(z)
    return torch.cat([lower, upper], -1)


ALGEBRA: dict[str, Recipe] = {
    "matmul": bent(lambda z: z @ z.mT, 3, 2),
    "bmm": bent(lambda z: torch.bmm(z, z.mT), 3, 2),
    "einsum": bent(lambda z: torch.einsum("bij,bkj,ik->bik", z, z, FIXED), 3, 2),
    "tensordot": bent(lambda z: torch.tensordot(z, FIXED, 1), 2, 3),
    "kron": bent(lambda z: torch.stack([torch.kron(m, FIXED) for m in z]), 2, 2),
    "outer": bent(lambda z: torch.stack([torch.outer(m, m) for m in z]), 3),
    "cross": bent(lambda z: linalg.cross(z, z.flip(1)), 3),
    "cdist": bent(lambda z: torch.cdist(z, z.flip(1).exp()), 3, 2),
    "cdist p=1": bent(lambda z: torch.cdist(z, z.flip(1).exp(), p=1.0), 3, 2),
    "cdist p=3": bent(lambda z: torch.cdist(z, z.flip(1).exp(), p=3.0), 3, 2),
    "pdist": bent(lambda z: torch.stack([F.pdist(m) for m in z]), 4, 2),
    "det": matrix(linalg.det),
    "slogdet": matrix(lambda z: linalg.slogdet(z)[1]),
    "logdet": symmetric(torch.logdet),
    "inv": matrix(linalg.inv),
    "pinv": matrix(lambda z: linalg.pinv(z[:, :2])),
    "solve": matrix(lambda z: linalg.solve(z, FIXED)),
    "solve_triangular": matrix(lambda z: linalg.solve_triangular(z, FIXED, upper=True)),
    "lstsq": matrix(lambda z: linalg.lstsq(z, FIXED.expand(len(z), 3, 3)).solution),
    "cholesky": symmetric(linalg.cholesky),
    "cholesky_solve": symmetric(lambda z: torch.cholesky_solve(FIXED, linalg.cholesky(z))),
    "qr": matrix(lambda z: torch.cat(linalg.qr(z), -1)),
    "lu": matrix(_lu),
    "svd": matrix(_low_rank),
    "svdvals": matrix(linalg.svdvals),
    "eigh": symmetric(_eigenvectors),
    "eigvalsh": symmetric(linalg.eigvalsh),
    "eigvals": symmetric(lambda z: linalg.eigvals(z).abs().sort(-1).values),
    "matrix_exp": matrix(linalg.matrix_exp),
    "matrix_power": matrix(lambda z: linalg.matrix_power(z, 3)),
    "householder_product": matrix(lambda z: linalg.householder_product(z, z[..., 0].sigmoid())),
    "norm 2": function(lambda z: linalg.vector_norm(z, dim=1), 4),
    "norm 1": bent(lambda z: linalg.vector_norm(z, 1, dim=1), 4),
    "norm inf": bent(lambda z: linalg.vector_norm(z, float("inf"), dim=1), 4),
    "norm 3": function(lambda z: linalg.vector_norm(z, 3, dim=1), 4),
    "norm nuclear": matrix(lambda z: linalg.matrix_norm(z, "nuc")),
    "norm spectral": matrix(lambda z: linalg.matrix_norm(z, 2)),
    "norm Frobenius": function(lambda z: z.norm(dim=(1, 2)), 3, 2),
    "renorm": function(lambda z: torch.renorm(z, 2, 0, 1.0), 4),
    "normalize": function(lambda z: F.normalize(z, dim=1), 4),
    "dist": function(lambda z: torch.stack([torch.dist(m, 2 * m.cos()) for m in z]), 4),
    "cosine_similarity": function(lambda z: F.cosine_similarity(z, z.exp(), dim=1), 4),
    "trapezoid": bent(lambda z: torch.trapezoid(z, z.exp(), dim=1), 4),
}

FOURIER: dict[str, Recipe] = {
    "fft, abs": bent(lambda z: torch.fft.fft(z).abs(), 5),
    "rfft, real and imaginary": bent(lambda z: torch.view_as_real(torch.fft.rfft(z)), 5),
    "irfft": bent(lambda z: torch.fft.irfft(torch.fft.rfft(z) * torch.fft.rfft(z.exp()), n=5), 5),
    "fft2": bent(lambda z: torch.fft.ifft2(torch.fft.fft2(z).pow(2)).real, 3, 3),
    "stft": bent(
        lambda z: (
            torch.stft(z, 4, 2, window=torch.ones(4).double(), return_complex=True).abs().square()
        ),
        8,
    ),
    "complex product": bent(lambda z: torch.view_as_real(torch.view_as_complex(z) ** 2), 3, 2),
    "complex angle": bent(lambda z: torch.view_as_complex(z + 1.5).angle(), 3, 2),
    "polar": positive(lambda z: torch.view_as_real(torch.polar(z, z.log()))),
}

SCANS: dict[str, Recipe] = {
    "cumsum": bent(lambda z: z.cumsum(1), 4),
    "cumprod": bent(lambda z: z.cumprod(1), 4),
    "cumprod with a zero": bent(lambda z: (z * (ORDER != 3)).cumprod(1), 4),
    "prod": bent(lambda z: z.prod(1), 4),
    "logcumsumexp": function(lambda z: z.logcumsumexp(1), 4),
    "cummax": bent(lambda z: z.cummax(1).values, 4),
    "logsumexp": function(lambda z: z.logsumexp(1), 4),
    "logaddexp": function(lambda z: torch.logaddexp(z, z.flip(1).sin()), 4),
    "sort": bent(lambda z: z.sort(1).values, 4),
    "topk": bent(lambda z: z.topk(2, 1).values, 4),
    "kthvalue": bent(lambda z: z.kthvalue(2, 1).values, 4),
    "median": bent(lambda z: z.median(1).values, 4),
    "quantile": bent(lambda z: z.quantile(0.3, 1), 4),
    "amax": bent(lambda z: z.amax(1), 4),
    "max": bent(lambda z: z.max(1).values, 4),
    "var": bent(lambda z: z.var(1), 4),
    "std": bent(lambda z: z.std(1), 4),
    "mean, unbiased=False": bent(lambda z: torch.var_mean(z, 1, correction=0)[0], 4),
    "diff": bent(lambda z: z.diff(dim=1), 4),
}

INDEXING: dict[str, Recipe] = {
    "index": bent(lambda z: z[:, ORDER], 4),
    "index twice": bent(lambda z: z[:, torch.tensor([0, 0, 2])] * z[:, :3], 4),
    "gather": bent(lambda z: z.gather(1, ORDER.expand(len(z), 4)), 4),
    "take_along_dim": bent(lambda z: z.take_along_dim(z.argsort(1), 1), 4),
    "scatter": bent(lambda z: z.scatter(1, ORDER[:2].expand(len(z), 2), z[:, :2].exp()), 4),
    "scatter_add": bent(lambda z: z.scatter_add(1, (ORDER % 2).expand(len(z), 4), z.exp()), 4),
    "scatter_reduce prod": bent(
        lambda z: z.scatter_reduce(1, (ORDER % 2).expand(len(z), 4), z.exp(), "prod"), 4
    ),
    "scatter_reduce amax": bent(
        lambda z: z.scatter_reduce(1, (ORDER % 2).expand(len(z), 4), z.exp(), "amax"), 4
    ),
    "scatter_reduce mean": bent(
        lambda z: z.scatter_reduce(1, (ORDER % 2).expand(len(z), 4), z.exp(), "mean"), 4
    ),
    "index_add": bent(lambda z: z.index_add(1, ORDER % 2, z.exp()), 4),
    "index_select": bent(lambda z: z.index_select(1, ORDER[:2]), 4),
    "index_put": bent(lambda z: z.clone().index_put((ORDER[:2],), z[2:].exp()), 4),
    "in-place slice": bent(lambda z: _written(z), 4),
    "masked_fill": bent(lambda z: z.masked_fill(ORDER > 2, -1.0), 4),
    "masked_select": bent(lambda z: z[:, ORDER > 1], 4),
    "where": function(lambda z: torch.where(z > 0, z.sin(), z.exp()), 4),
    "roll, flip": bent(lambda z: z.roll(1, 1) * z.flip(1), 4),
    "tril": bent(lambda z: z.tril() @ z.triu(), 3, 3),
    "as_strided": bent(lambda z: z.contiguous().as_strided((len(z), 2), (4, 2)), 4),
    "unfold": bent(lambda z: z.unfold(1, 2, 1), 4),
    "split, cat": bent(lambda z: torch.cat([m.square() for m in z.split(2, 1)][::-1], 1), 4),
    "repeat_interleave": bent(lambda z: z.repeat_interleave(2, 1), 4),
    "segment_reduce": bent(
        lambda z: torch.segment_reduce(z.flatten(), "sum", lengths=torch.full((4,), 4)), 4
    ),
    "sparse mm": bent(lambda z: torch.sparse.mm(FIXED.to_sparse(), z.T).T, 3),
}


def _written(z: Tensor) -> Tensor:
    out = torch.zeros_like(z)
    out[:, :2] = z[:, 2:].exp()
    out[:, 2:] += z[:, :2]
    return out.square_()


SOFTMAXES: dict[str, Recipe] = {
    "softmax": function(lambda z: z.softmax(1), 4),
    "log_softmax": function(lambda z: z.log_softmax(1), 4),
    "gumbel_softmax": function(lambda z: F.gumbel_softmax(z, tau=0.7), 4),
    "masked softmax": function(lambda z: z.masked_fill(ORDER > 2, -torch.inf).softmax(1), 4),
    "softmax, temperature": function(lambda z: (z / z.std(1, keepdim=True)).softmax(1), 4),
}

_OF_POSITIVE = "sqrt rsqrt log log1p lgamma digamma"
_INSIDE = "asin acos atanh erfinv"
_OF_ALL = "exp expm1 sin cos tan sinh cosh atan asinh erf erfc sinc square abs i0"

ELEMENTWISE: dict[str, Recipe] = {
    **{name: positive(getattr(torch, name)) for name in _OF_POSITIVE.split()},
    **{name: inside(getattr(torch, name)) for name in _INSIDE.split()},
    **{name: function(getattr(torch, name), 4) for name in _OF_ALL.split()},
    "acosh": positive(lambda z: (1 + z).acosh()),
    "logit": inside(lambda z: (0.5 + 0.5 * z).logit()),
    "pow": positive(lambda z: z.pow(2.5)),
    "pow learnt": positive(lambda z: z.pow(z.flip(1))),
    "xlogy": positive(lambda z: torch.xlogy(z, z.flip(1))),
    "atan2": function(lambda z: torch.atan2(z, z.flip(1).exp()), 4),
    "hypot": function(lambda z: torch.hypot(z, z.flip(1).exp()), 4),
    "clamp": function(lambda z: z.clamp(-0.4, 0.6).sin(), 4),
    "clamp learnt": function(lambda z: z.clamp(min=z.flip(1).sin()), 4),
    "maximum": bent(lambda z: torch.maximum(z, z.flip(1).exp() - 1), 4),
    "lerp": bent(lambda z: torch.lerp(z, z.exp(), z.flip(1)), 4),
    "addcmul": bent(lambda z: torch.addcmul(z, z.exp(), z.flip(1)), 4),
    "addcdiv": bent(lambda z: torch.addcdiv(z, z, z.flip(1).exp()), 4),
    "fmod": function(lambda z: torch.fmod(z, 0.7).sin(), 4),
    "special.i1": function(torch.special.i1, 4),
    "special.erfcx": function(torch.special.erfcx, 4),
    "special.ndtri": inside(lambda z: torch.special.ndtri(0.5 + 0.5 * z)),
    "special.log_ndtr": function(torch.special.log_ndtr, 4),
    "special.entr": positive(torch.special.entr),
    "special.zeta": positive(lambda z: torch.special.zeta(z + 2, torch.ones_like(z))),
    "polygamma": positive(lambda z: torch.polygamma(1, z)),
    "multigammaln": positive(lambda z: torch.mvlgamma(z + 2, 2)),
    "sgn of complex": bent(lambda z: torch.view_as_real(torch.view_as_complex(z).sgn()), 3, 2),
    "nan_to_num": function(lambda z: torch.nan_to_num(z).sin(), 4),
    "float32 inside": function(lambda z: z.float().sin().double(), 4),
}

CASES = ALGEBRA | FOURIER | SCANS | INDEXING | SOFTMAXES | ELEMENTWISE
