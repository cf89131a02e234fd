"""The law of tools/scaling.py, L(N, D): how the loss of a model depends on its size and its data.

    fit_law   the law that fits to the losses of runs
    Fit       the same with its uncertainty: the noise of a run, and the interval of a prediction
"""

import functools
import math
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

LAWS = (1.0, 2.0)  # the exponents q of Law that are tried
Z80, Z95 = 1.2816, 1.9600  # 80% and 95% of a normal distribution are within so many deviations


@dataclass
class Law:
    """L(N, D) = E + (x^q + y^q)^(1/q) with x = A / N^a, y = B / D^b, and N and D in units of 1e5.

    q = 1 is the law of Hoffmann et al. (2022, equation 2): the terms of size and data are added. A
    larger q lets the larger term decide; q = 1 / b is the law of Kaplan et al. (2020, equation
    1.5). misfit: the sum of the squared relative errors of the fit."""

    E: float
    A: float
    B: float
    a: float
    b: float
    q: float = 1.0
    misfit: float = 0.0

    def described(self, cells):
        error = math.sqrt(self.misfit / cells)
        return (f"E = {self.E:.3f}, x = {self.A:.3f} / (N/1e5)^{self.a:.3f}, "
                f"y = {self.B:.3f} / (D/1e5)^{self.b:.3f}, rms error {error:.2%}")

    def loss(self, N, D):
        x = self.A * (N / 1e5) ** -self.a
        y = self.B * (D / 1e5) ** -self.b
        return self.E + (x**self.q + y**self.q) ** (1 / self.q)

    def gradient(self, N, D):
        """The derivatives of log L by E, A, B, a, b: (..., 5). They are exact: for a tiny
        imaginary step ih, f(x + ih) = f(x) + ih f'(x) (Squire & Trapp 1998). A parameter that the
        fit has set to zero has none."""
        columns = []
        for name in "EABab":
            value = getattr(self, name)
            moved = replace(self, **{name: value + 1e-20j})
            derivative = np.log(moved.loss(N, D)).imag / 1e-20
            columns.append(derivative * (value > 0))
        return np.stack(columns, axis=-1)

    def optimal(self, flops):
        """The N and D with 6 N D = flops that have the lowest loss."""
        N = np.geomspace(1e3, 1e10, 7001)
        D = flops / 6 / N
        best = self.loss(N, D).argmin()
        return N[best], D[best]


def non_negative(designs, values):
    """Least squares without negative coefficients, for many problems at once.

    designs (G, n, k), values (G, n) -> coefficients (G, k), sums of squared errors (G,). The best
    non-negative solution is the ordinary solution for some of the columns, so all subsets of the
    columns are tried: 3 if k = 2."""
    count, _, k = designs.shape
    best = np.zeros((count, k))
    misfit = (values**2).sum(axis=1)
    for size in range(1, k + 1):
        for columns in map(list, combinations(range(k), size)):
            part = designs[:, :, columns]
            gram = part.mT @ part + 1e-13 * np.eye(size)  # the last term: if columns are the same
            found = np.linalg.solve(gram, part.mT @ values[:, :, None])
            squares = ((part @ found)[:, :, 0] - values) ** 2
            squares = squares.sum(axis=1)
            better = (found >= 0).all(axis=(1, 2)) & (squares < misfit)
            misfit[better] = squares[better]
            best[better] = 0
            best[np.ix_(better, columns)] = found[better, :, 0]
    return best, misfit


def fit_law(N, D, losses, fixed_E=None, q=1.0):
    """The Law that minimizes the sum of squared relative errors. N, D, losses: arrays (n,).

    Variable projection (Golub & Pereyra 1973): for given E, a and b, (L - E)^q is linear in A^q and
    B^q, so only E, a and b are searched for, on a grid that becomes finer around its best point.
    fixed_E: E has this value and is not fitted."""
    lowest = 0.999 * losses.min()
    low = np.array([0.0, 0.01, 0.01])  # E, a, b
    high = np.array([lowest, 2.0, 2.0])
    if fixed_E is not None:
        low[0] = high[0] = min(fixed_E, lowest)
    limits = low, np.array([lowest, 9.0, 9.0])
    for _ in range(28):
        axes = np.linspace(low, high, 9).T
        E, a, b = (values.reshape(-1, 1) for values in np.meshgrid(*axes))  # (G, 1)
        # an error in L is to first order an error in (L - E)^q, divided by q (L - E)^(q - 1)
        rest = losses - E  # (G, n)
        weight = 1 / (q * rest ** (q - 1) * losses)
        terms = [(N / 1e5) ** (-q * a) * weight, (D / 1e5) ** (-q * b) * weight]
        coefficients, misfit = non_negative(np.stack(terms, axis=2), rest**q * weight)
        best = misfit.argmin()
        center = np.array([E[best, 0], a[best, 0], b[best, 0]])
        width = (high - low) * 0.3  # not less: the best point lies in a narrow, slanted valley
        low = np.maximum(limits[0], center - width)
        high = np.minimum(limits[1], center + width)
    A, B = coefficients[best] ** (1 / q)
    E, a, b = center.tolist()
    return Law(E, float(A), float(B), a, b, q, float(misfit[best]))


class Fit:
    """What the losses of a ladder say. N, D: arrays (cells,); by_seed: losses (cells, seeds).

    laws: one Law for each q in LAWS. law: the one that describes the ladder best. fixed: the same
    with E fixed. noise: the relative standard deviation of one run: that between seeds or, if it is
    larger, the one that the misfit of the law implies."""

    def __init__(self, N, D, by_seed, fixed_E=None):
        self.N = N
        self.D = D
        self.by_seed = by_seed
        self.losses = by_seed.mean(axis=1)
        self.fixed_E = float(self.losses.min() * 2 / 3 if fixed_E is None else fixed_E)
        self.laws = [fit_law(N, D, self.losses, q=q) for q in LAWS]
        self.law = min(self.laws, key=lambda law: law.misfit)
        seeds = by_seed.shape[1]
        variances = by_seed.var(axis=1, ddof=1) / self.losses**2
        self.seed_noise = math.sqrt(variances.mean())
        implied = seeds * self.law.misfit / (len(N) - 5)  # five parameters are fitted
        self.noise = max(self.seed_noise, math.sqrt(implied))
        gradient = self.law.gradient(N, D)
        self.covariance = np.linalg.pinv(gradient.T @ gradient) * self.noise**2 / seeds

    @functools.cached_property
    def fixed(self):
        return fit_law(self.N, self.D, self.losses, self.fixed_E, self.law.q)

    @property
    def excludes_fixed(self):
        """Likelihood-ratio test: whether the fixed E fits worse than noise can explain."""
        worse = (self.fixed.misfit - self.law.misfit) * self.by_seed.shape[1]
        return worse > Z95**2 * self.noise**2

    def deviation(self, N, D, penalty=0.0):
        """The relative standard deviation of a measured loss from the predicted one: uncertainty of
        the law (linearized), noise of the large run, and its learning rates."""
        gradient = self.law.gradient(N, D)
        return math.sqrt(gradient @ self.covariance @ gradient + self.noise**2 + penalty**2)

    def disagree(self, N, D, deviation):
        """Whether the two laws differ by more than the 80% interval at (N, D), although the data
        allow both: then the data do not determine E, and the prediction is a guess."""
        apart = self.fixed.loss(N, D) / self.law.loss(N, D) - 1
        return not self.excludes_fixed and abs(apart) > Z80 * deviation

    def baselines(self, flops):
        """Two simpler predictions: the power law in FLOPs through the two largest runs of the
        ladder, and the loss of the largest."""
        compute = 6 * self.N * self.D
        second, largest = np.argsort(compute)[-2:]
        exponent = math.log(self.losses[largest] / self.losses[second])
        exponent /= math.log(compute[largest] / compute[second])
        power = self.losses[largest] * (flops / compute[largest]) ** exponent
        return {"power law through the two largest runs": float(power),
                "same loss as the largest run": float(self.losses[largest])}


def interval(loss, deviation, width):
    """loss, minus and plus so many relative deviations."""
    return loss * (1 - width * deviation), loss * (1 + width * deviation)
