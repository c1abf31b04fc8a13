"""The algebra behind the closed-form methods, as pure functions on tensors.

Every cross-attention weight W `[out, d]` becomes W T with one T = I + B A `[d, d]` for the whole model. Rows are token
embeddings: C (erased), G (their anchors), P (preserved), each `[rows, d]`. With

    S = ridge I + erase_scale C'C + preserve_scale P'P

the minimiser of erase_scale |W_new C' - W G'|^2 + preserve_scale |W_new P' - W P'|^2 + ridge |W_new - W|^2 is
W_new = W (I + erase_scale (G - C)' C S^-1): UCE (arXiv 2308.14761, equation 7) without a loop over layers.

S has a condition number of 1e4 to 1e6 when whole prompts are erased, so everything here is float64.
"""

from __future__ import annotations

import torch


def gram(rows: torch.Tensor) -> torch.Tensor:
    """R'R in float64 `[d, d]` of rows `[n, d]`."""
    rows = rows.double()
    return rows.T @ rows


def ridge_edit(
    erase: torch.Tensor,
    anchor: torch.Tensor,
    preserve: torch.Tensor,
    *,
    ridge: float,
    erase_scale: float = 1.0,
    preserve_scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The edit that maps `erase` onto `anchor` and holds `preserve` (UCE, arXiv 2308.14761, equation 7).

    Args:
        erase: C `[n, d]`.
        anchor: G `[n, d]`.
        preserve: P `[m, d]`, m may be 0.
        ridge: Weight of |W_new - W|^2, above 0.
        erase_scale: Weight of the erased rows.
        preserve_scale: Weight of the preserved rows.

    Returns:
        A `[n, d]` and B `[d, n]` in float64, T = I + B A.

    Raises:
        ValueError: Rows that do not fit each other, or a ridge that is not above 0.
    """
    _check_rows(erase, anchor, preserve, ridge)
    erase, anchor, preserve = erase.double(), anchor.double(), preserve.double()
    weighted = torch.cat([erase_scale**0.5 * erase, preserve_scale**0.5 * preserve])
    if 2 * len(weighted) < erase.shape[1]:
        a = erase_scale * _solve_few(weighted, ridge, erase)
    else:
        a = erase_scale * _solve_gram(weighted.T @ weighted, ridge, erase)
    return a, (anchor - erase).T.contiguous()


def ridge_edit_gram(
    erase: torch.Tensor,
    anchor: torch.Tensor,
    preserve_gram: torch.Tensor,
    *,
    ridge: float,
    erase_scale: float = 1.0,
    preserve_scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`ridge_edit` from P'P `[d, d]` in place of the preserved rows, for preserve sets of more than d rows."""
    _check_rows(erase, anchor, preserve_gram, ridge)
    erase, anchor = erase.double(), anchor.double()
    total = torch.addmm(preserve_gram.double(), erase.T, erase, beta=preserve_scale, alpha=erase_scale)
    return erase_scale * _solve_gram(total, ridge, erase), (anchor - erase).T.contiguous()


def adversarial_rows(gram: torch.Tensor, transform: torch.Tensor, rows: torch.Tensor, *, reg: float) -> torch.Tensor:
    """Rows that bring the concept back through the edited weights (RECE, arXiv 2407.12383, equation 8).

    The minimiser over x of sum_l |W_l T x - W_l c|^2 + reg |x|^2 is x = (reg I + T'HT)^-1 T'H c, H = sum_l W_l'W_l.

    Args:
        gram: H `[d, d]`.
        transform: T `[d, d]`.
        rows: c, one a row `[n, d]`: the original embedding of the concept.
        reg: What keeps x from undoing the whole edit, above 0.

    Returns:
        x, one a row `[n, d]`, in float64.

    Raises:
        ValueError: `reg` is not above 0.
    """
    if not reg > 0:
        raise ValueError(f"expected reg above 0, got {reg}")
    transform = transform.double()
    pulled = transform.T @ gram.double()
    right = pulled @ rows.double().T
    return torch.cholesky_solve(right, _cholesky(pulled @ transform, reg)).T.contiguous()


def double_projection(
    erase: torch.Tensor, anchor: torch.Tensor, held: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The edit that maps `erase` onto `anchor` and moves nothing in the span of `held` (Double Projections, CVPR 2026).

    With N = I - V V' and X = C N, the erased rows without what is held of them: M = (C* - C)' pinv(X)' and T = I + M.
    Rows of X are orthogonal to V, so that M V = 0, and M C' = (C* - C)' while they are linearly independent. This is
    the limit of `ridge_edit` for preserve_scale to infinity and a ridge to 0, in which that one loses its digits.

    Args:
        erase: C `[n, d]`.
        anchor: C* `[n, d]`.
        held: V `[d, k]` with orthonormal columns, k may be 0.

    Returns:
        A = pinv(X)' `[n, d]` and B = (C* - C)' `[d, n]` in float64, T = I + B A.

    Raises:
        ValueError: Rows that do not fit each other.
    """
    _check_rows(erase, anchor, held.T, 1.0)
    erase, anchor, held = erase.double(), anchor.double(), held.double()
    free = _without(_without(erase, held), held)  # twice: the first leaves a rest as large as rounding
    a: torch.Tensor = torch.linalg.pinv(free, rtol=1e-10).T.contiguous()
    return _without(a, held), (anchor - erase).T.contiguous()


def free_share(rows: torch.Tensor, held: torch.Tensor) -> float:
    """The least share of the length of a row `[n, d]` that is outside of the span of `held` `[d, k]`."""
    return float((_without(rows.double(), held).norm(dim=1) / rows.double().norm(dim=1)).min())


def _without(rows: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    return rows - (rows @ held) @ held.T


def oblique_edit(directions: torch.Tensor, preserve: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The projection that removes `directions` and moves `preserve` least.

    With K = (P'P / m + ridge I)^-1: A = (V'KV)^-1 V'K, T = I - V A. Then A V = I, so T T = T and A T x = 0 for every x:
    no prompt puts anything back into the removed coordinates.

    Args:
        directions: V `[d, r]` of full column rank.
        preserve: P `[m, d]`, m may be 0 (then T is the orthogonal projection).
        ridge: Above 0.

    Returns:
        A `[r, d]` and B = -V `[d, r]` in float64, T = I + B A.

    Raises:
        ValueError: A ridge that is not above 0.
    """
    return oblique_edit_gram(directions, gram(preserve) / max(1, len(preserve)), ridge)


def oblique_edit_gram(
    directions: torch.Tensor, covariance: torch.Tensor, ridge: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`oblique_edit` from P'P / m `[d, d]` in place of the preserved rows."""
    if not ridge > 0:
        raise ValueError(f"expected a ridge above 0, got {ridge}")
    directions = directions.double()
    kv = torch.cholesky_solve(directions, _cholesky(covariance.double(), ridge))
    a: torch.Tensor = torch.linalg.solve(directions.T @ kv, kv.T)
    return a, -directions


def leading_directions(rows: torch.Tensor, rank: int) -> torch.Tensor:
    """Up to `rank` leading right singular vectors `[d, r]` of `rows` `[n, d]`, without the null ones."""
    _, values, right = torch.linalg.svd(rows.double(), full_matrices=False)
    found = int((values > values.max() * 1e-10).sum()) if values.numel() and values.max() > 0 else 0
    directions: torch.Tensor = right[: min(rank, found)].T.contiguous()
    return directions


def norm_of(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest singular value of T - I = B A, from factors of the size of its rank."""
    return float(torch.linalg.matrix_norm(torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T, ord=2))


def transform_of(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """T = I + B A `[d, d]`."""
    return torch.eye(a.shape[1], dtype=a.dtype, device=a.device) + b @ a


def compress(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same T with at most d rows in A: where there are more, A = I and B = T - I."""
    if a.shape[0] <= a.shape[1]:
        return a, b
    return torch.eye(a.shape[1], dtype=a.dtype, device=a.device), b @ a


def compose(
    first: tuple[torch.Tensor, torch.Tensor], second: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors (A, B) of T1 T2, the edit `second` fitted on weights already edited by `first`.

    (I + B1 A1)(I + B2 A2) = I + B1 (A1 + A1 B2 A2) + B2 A2, so the ranks add.
    """
    (a1, b1), (a2, b2) = first, second
    return torch.cat([a1 + (a1 @ b2) @ a2, a2]), torch.cat([b1, b2], dim=1)


def _check_rows(erase: torch.Tensor, anchor: torch.Tensor, preserve: torch.Tensor, ridge: float) -> None:
    if erase.ndim != 2 or erase.shape != anchor.shape:
        raise ValueError(
            f"expected one anchor row for each erased row, got {tuple(erase.shape)}, {tuple(anchor.shape)}"
        )
    if preserve.ndim != 2 or preserve.shape[1] != erase.shape[1]:
        raise ValueError(f"expected preserved rows of width {erase.shape[1]}, got {tuple(preserve.shape)}")
    if not ridge > 0:
        raise ValueError(f"expected a ridge above 0, got {ridge}")


def _solve_few(rows: torch.Tensor, ridge: float, right: torch.Tensor) -> torch.Tensor:
    """right (ridge I + R'R)^-1 for few rows R `[k, d]`: (x - (x R') (ridge I + R R')^-1 R) / ridge."""
    factor = _cholesky(rows @ rows.T, ridge)
    return (right - torch.cholesky_solve(rows @ right.T, factor).T @ rows) / ridge


def _solve_gram(gram: torch.Tensor, ridge: float, right: torch.Tensor) -> torch.Tensor:
    """right (ridge I + gram)^-1."""
    return torch.cholesky_solve(right.T, _cholesky(gram, ridge)).T.contiguous()


def _cholesky(matrix: torch.Tensor, ridge: float) -> torch.Tensor:
    shifted = matrix.clone()
    shifted.diagonal().add_(ridge)
    factor: torch.Tensor = torch.linalg.cholesky(shifted)
    return factor
