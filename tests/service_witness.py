"""Divergences with 50 digits: the witness of the tests of ``/kl``, written from the formulas alone."""

from mpmath import fdot, log, mp, mpf, sqrt

Vector = list[float]


def factor(side: dict) -> list[list[mpf]]:
    """The lower triangle L of a covariance LLᵀ, row by row."""
    if "std" in side:
        return [[mpf(0)] * i + [mpf(std)] for i, std in enumerate(side["std"])]
    rows: list[list[mpf]] = []
    for i, line in enumerate(side["cov"]):
        row: list[mpf] = []
        for j in range(i):
            row.append((mpf(line[j]) - fdot(zip(row, rows[j][:j], strict=True))) / rows[j][j])
        rows.append([*row, sqrt(mpf(line[i]) - fdot(zip(row, row, strict=True)))])
    return rows


def solved(rows: list[list[mpf]], right: list[mpf]) -> list[mpf]:
    """x with Lx = right."""
    out: list[mpf] = []
    for row, value in zip(rows, right, strict=True):
        out.append((value - fdot(zip(row[:-1], out, strict=True))) / row[-1])
    return out


def kl_normals(p: dict, q: dict) -> mpf:
    """½·(log|Σ₂| − log|Σ₁| − k + tr(Σ₂⁻¹Σ₁) + (μ₁−μ₂)ᵀΣ₂⁻¹(μ₁−μ₂)), of float64 taken as exact numbers."""
    with mp.workdps(50):
        first, second = factor(p), factor(q)
        size = len(first)
        log_ratio = 2 * sum(log(b[-1] / a[-1]) for a, b in zip(first, second, strict=True))
        columns = [[row[j] if j < len(row) else mpf(0) for row in first] for j in range(size)]
        trace = sum(fdot(zip(x, x, strict=True)) for x in (solved(second, column) for column in columns))
        apart = solved(second, [mpf(a) - mpf(b) for a, b in zip(p["mean"], q["mean"], strict=True)])
        return (log_ratio - size + trace + fdot(zip(apart, apart, strict=True))) / 2


def kl_diagonal(mean: Vector, std: Vector, mean_q: Vector | None = None, std_q: Vector | None = None) -> list[mpf]:
    """Per dimension; against N(0, I) where no q is given."""
    mean_q, std_q = mean_q or [0.0] * len(mean), std_q or [1.0] * len(mean)
    with mp.workdps(50):
        out = []
        for m, s, n, t in zip(mean, std, mean_q, std_q, strict=True):
            ratio = mpf(s) / mpf(t)
            out.append((ratio**2 - 1 + ((mpf(m) - mpf(n)) / mpf(t)) ** 2) / 2 - log(ratio))
        return out


def kl_discrete(p: Vector, q: Vector) -> mpf:
    """Σ p·log(p/q), with 0·log 0 = 0."""
    with mp.workdps(50):
        return sum((mpf(a) * log(mpf(a) / mpf(b)) for a, b in zip(p, q, strict=True) if a > 0), mpf(0))


def relative_error(got: float, want: mpf) -> float:
    with mp.workdps(50):
        return float(abs(mpf(got) - want) / abs(want)) if want else abs(got)
