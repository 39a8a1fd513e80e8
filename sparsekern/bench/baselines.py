"""The strongest plain-PyTorch versions of each operation: what "eager" means in the tables.

Written from the formulas, with every saving that plain PyTorch allows: each Gram matrix is made
once, centred in place, and all pairs come from one matrix product. :func:`authors_cka_matrix` and
:func:`authors_loss` are the exception: they follow the formulation published with CKA-SR, which
makes both Gram matrices anew for every ordered pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.similarity import Cosine, Linear, Polynomial
from ..ops.similarity.kernels import Kernel

Groups = Sequence[Sequence[Tensor]]


def u_center_(grams: Tensor) -> Tensor:  # (L, n, n) -> (L, n, n)
    """U-centres a stack of Gram matrices in place."""
    n = grams.shape[-1]
    diagonal = grams.diagonal(dim1=1, dim2=2)
    diagonal.zero_()
    rows = grams.sum(dim=2) / (n - 2)
    total = rows.sum(dim=1) / (n - 1)
    rows -= total[:, None] / 2
    grams -= rows[:, :, None]
    grams -= rows[:, None, :]
    diagonal.zero_()
    return grams


def center(x: Tensor) -> Tensor:  # (n, d) -> (n, d)
    """Features without their column means."""
    return x - x.mean(dim=0)


def stacked_grams(xs: Sequence[Tensor]) -> Tensor:  # L x (n, d_l) -> (L, n, n)
    """One Gram matrix per layer, each written straight into its place."""
    n = xs[0].shape[0]
    grams = xs[0].new_empty(len(xs), n, n)
    for gram, x in zip(grams, xs, strict=True):
        torch.mm(x, x.T, out=gram)
    return grams


def normalise(inner: Tensor) -> Tensor:  # (L, L) -> (L, L)
    """CKA from all inner products of centred Gram matrices, or from all HSIC values."""
    scale = inner.diagonal().rsqrt()
    return inner * scale[:, None] * scale[None, :]


def eager_cka_matrix(xs: Sequence[Tensor], centred: bool) -> Tensor:
    """Unbiased CKA of all pairs; without column-centring it loses its digits at offsets."""
    features = [center(x) for x in xs] if centred else xs
    vectors = u_center_(stacked_grams(features)).flatten(1)
    return normalise(vectors @ vectors.T)


def eager_loss(groups: Groups, centred: bool) -> Tensor:
    """The CKA-SR loss as the squared norms of sums of unit vectors; backward by autograd."""
    sizes = [len(group) for group in groups]
    xs = [center(x) if centred else x for group in groups for x in group]
    grams = torch.stack([x @ x.T for x in xs])
    n = grams.shape[-1]
    grams = grams * (1 - torch.eye(n, dtype=grams.dtype, device=grams.device))
    rows = grams.sum(dim=2) / (n - 2)
    shift = rows - rows.sum(dim=1, keepdim=True) / (2 * (n - 1))
    centred_grams = grams - shift[:, :, None] - shift[:, None, :]
    vectors = (centred_grams * (1 - torch.eye(n, dtype=grams.dtype, device=grams.device))).flatten(
        1
    )
    units = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return torch.stack([part.sum(dim=0).square().sum() for part in torch.split(units, sizes)]).sum()


class _CkaSum(torch.autograd.Function):
    """The loss with its gradient by hand: one product ``2 G X`` per layer."""

    @staticmethod
    def forward(ctx: Any, sizes: list[int], *xs: Tensor) -> Tensor:
        vectors = u_center_(stacked_grams(xs)).flatten(1)
        norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        units = vectors.div_(norms)
        ctx.save_for_backward(units, norms, *xs)
        ctx.sizes = sizes
        sums = torch.stack([part.sum(dim=0) for part in torch.split(units, sizes)])
        return sums.square().sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        units, norms, *xs = ctx.saved_tensors
        n = xs[0].shape[0]
        scale = 4 * grads[0] / norms  # ∂loss/∂K = 2 (m - (m·v̂) v̂) / ‖v‖, and dX = 2 G X
        result: list[Tensor | None] = [None]
        start = 0
        for size in ctx.sizes:
            part = units[start : start + size]
            total = part.sum(dim=0)
            shares = part @ total
            weights = (total - shares[:, None] * part) * scale[start : start + size]
            for offset in range(size):
                result.append(weights[offset].view(n, n) @ xs[start + offset])
            start += size
        return tuple(result)


def eager_backward_loss(groups: Groups) -> Tensor:
    """The CKA-SR loss, uncentred, with a hand-written backward."""
    result: Tensor = _CkaSum.apply(  # type: ignore[no-untyped-call]
        [len(group) for group in groups], *(x for group in groups for x in group)
    )
    return result


def eager_feature_space(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased linear CKA of one pair from d x d products."""
    n = x.shape[0]
    xc, yc = center(x), center(y)
    a, b = xc.square().sum(dim=1).double(), yc.square().sum(dim=1).double()

    def inner(p: Tensor, q: Tensor, r: Tensor, s: Tensor) -> Tensor:
        product = (p.T @ q).square_().sum().double()
        return product - n / (n - 2) * (r @ s) + r.sum() * s.sum() / ((n - 1) * (n - 2))

    return inner(xc, yc, a, b) / (inner(xc, xc, a, a) * inner(yc, yc, b, b)).sqrt()


def numpy_median(values: Tensor) -> Tensor:  # (m,) -> ()
    """Numpy's median: torch's is the lower of the two middle values."""
    lower = values.median()
    if values.numel() % 2 or int((values <= lower).sum()) > values.numel() // 2:
        return lower
    return (lower + values[values > lower].min()) / 2


def _rbf_u_gram(x: Tensor, fraction: float) -> Tensor:  # (n, d) -> (n, n)
    xc = center(x)
    distances = xc @ xc.T
    squares = distances.diagonal().clone()
    distances.mul_(-2).add_(squares[:, None]).add_(squares[None, :]).clamp_(min=0)
    distances.fill_diagonal_(0)
    variance = fraction**2 * numpy_median(distances.flatten())
    return u_center_(distances.div_(-2 * variance).exp_()[None])[0]


def eager_rbf(x: Tensor, y: Tensor, fraction: float) -> Tensor:
    """Unbiased RBF CKA of one pair, all in place.

    The sums are torch.sum's, which adds pairwise: vector_norm's are not exact enough over n² terms.
    """
    u, v = _rbf_u_gram(x, fraction), _rbf_u_gram(y, fraction)
    return (u * v).sum() / (u.square().sum() * v.square_().sum()).sqrt()


def eager_gram(xs: Sequence[Tensor]) -> Tensor:  # [(n, d)] -> (n, n)
    """The double-centred linear Gram matrix: that of the column-centred features."""
    xc = center(xs[0])
    return xc @ xc.T


def lower_panels(xc: Tensor) -> Tensor:  # (n, d) -> (n, n)
    """``xc xcᵀ`` by panels of rows, each only up to the diagonal; what is above is not defined."""
    n = xc.shape[0]
    panel = max(64, n // 8)  # the fastest, or within 5% of it, at n = 256, 1024 and 4096
    result = xc.new_empty(n, n)
    for start in range(0, n, panel):
        stop = min(n, start + panel)
        torch.mm(xc[start:stop], xc[:stop].T, out=result[start:stop, :stop])
    return result


def _kernel_gram(x: Tensor, kernel: Kernel) -> Tensor:  # (n, d) -> (n, n)
    """The Gram matrix of any kernel, differentiable; the linear one's features are centred."""
    if isinstance(kernel, Polynomial):
        return (x @ x.T + kernel.c) ** kernel.degree
    if isinstance(kernel, Cosine):
        units = torch.nn.functional.normalize(x, dim=1)
        return units @ units.T
    xc = center(x)
    products = xc @ xc.T
    if isinstance(kernel, Linear):
        return products
    squares = products.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0)
    distances = distances * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))
    return torch.exp(distances / (-2 * kernel.fraction**2 * numpy_median(distances.flatten())))


def _u_centred(gram: Tensor) -> Tensor:  # (n, n) -> (n, n)
    """U-centring that autograd can follow."""
    n = gram.shape[0]
    off_diagonal = 1 - torch.eye(n, dtype=gram.dtype, device=gram.device)
    gram = gram * off_diagonal
    rows = gram.sum(dim=1) / (n - 2)
    shift = rows - rows.sum() / (2 * (n - 1))
    return (gram - shift[:, None] - shift[None, :]) * off_diagonal


def eager_pairs(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor] | None,
    kernel: Kernel,
    normalised: bool,
    in_place: bool,
) -> Tensor:  # -> (len(xs), len(ys or xs))
    """Unbiased HSIC or CKA of all pairs: each Gram matrix once, one product for all pairs.

    Args:
        xs: features per layer.
        ys: a second list, or None for the first.
        kernel: any but an RBF of given bandwidth.
        normalised: CKA, else HSIC.
        in_place: saves memory and passes where no gradient is wanted.
    """

    def vectors(layers: Sequence[Tensor]) -> Tensor:
        if in_place:
            return u_center_(torch.stack([_kernel_gram(x, kernel) for x in layers])).flatten(1)
        return torch.stack([_u_centred(_kernel_gram(x, kernel)).flatten() for x in layers])

    v = vectors(xs)
    w = v if ys is None else vectors(ys)
    if normalised:
        v, w = (torch.nn.functional.normalize(u, dim=1, eps=0.0) for u in (v, w))
        return v @ w.T
    n = xs[0].shape[0]
    return v @ w.T / (n * (n - 3))


def _song_hsic(k: Tensor, l_: Tensor) -> Tensor:
    """HSIC_1 of two Gram matrices with zero diagonals, as the paper of Song et al. writes it."""
    n = k.shape[0]
    product = k @ l_
    middle = k.sum() * l_.sum() / ((n - 1) * (n - 2))
    return (product.trace() + middle - 2 / (n - 2) * product.sum()) / (n * (n - 3))


def _authors_cka(x: Tensor, y: Tensor) -> Tensor:
    off_diagonal = 1 - torch.eye(x.shape[0], dtype=x.dtype, device=x.device)
    k, l_ = (x @ x.T) * off_diagonal, (y @ y.T) * off_diagonal
    return _song_hsic(k, l_) / (_song_hsic(k, k) * _song_hsic(l_, l_)).sqrt()


def authors_cka_matrix(xs: Sequence[Tensor]) -> Tensor:
    """Every ordered pair on its own, both Gram matrices made anew."""
    return torch.stack([torch.stack([_authors_cka(x, y) for y in xs]) for x in xs])


def authors_loss(groups: Groups) -> Tensor:
    """The CKA-SR loss as a loop over the ordered pairs of each stage."""
    return torch.stack([authors_cka_matrix(group).sum() for group in groups]).sum()
