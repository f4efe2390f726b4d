"""How well K hypotheses of a joint cover its true place: best of k, likelihood, calibration of the spread.

Lengths are in units of the box's longer side. What is fitted is fitted on one half of the persons for the other half.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from scipy import optimize, special

from benchmarks import report
from dpose_jax.data.sample import Source
from dpose_jax.evaluation.predict_split import Rows
from dpose_jax.evaluation.report import box_lengths
from dpose_jax.models.pose_sampler import to_image_pixels
from dpose_jax.pose import uncertainty
from dpose_jax.pose.codec import Codec

SHORTEST, LONGEST = 1e-4, 1.0  # bandwidths that are tried
BINS = 10


class Candidate(NamedTuple):
    """One way to cover the joints of N persons."""

    best: np.ndarray | None  # (N, K, J) distance of the nearest of the first k hypotheses; None for a density alone
    nll: np.ndarray  # (N, J) nats
    spread: np.ndarray  # (N, J) predicted root mean square distance to the truth
    error: np.ndarray  # (N, J) distance of the most likely place to the truth


class Truth(NamedTuple):
    """The annotated joints of the N persons that were predicted."""

    places: np.ndarray  # (N, J, 2) image pixels
    visible: np.ndarray  # (N, J): 0 not labelled, 1 occluded, 2 visible
    sides: np.ndarray  # (N,) longer side of the box as annotated, image pixels
    half: np.ndarray  # (N,) bool, which half

    @classmethod
    def of(cls, source: Source, index: np.ndarray, seed: int) -> "Truth":
        """The truth of the persons `index`, (N,), in random halves."""
        persons = [source[int(i)] for i in index]
        keypoints = np.stack([person.keypoints for person in persons]).astype(np.float64)
        half = np.random.default_rng(seed).permutation(len(persons)) % 2 == 1
        sides = box_lengths(source, source.ground_truth())[index]
        return cls(keypoints[..., :2], keypoints[..., 2], sides, half)

    def distances(self, places: np.ndarray) -> np.ndarray:
        """(N, J, 2) or (N, K, J, 2) image pixels -> distances to the truth, (N, J) or (N, K, J); NaN if unlabelled."""
        truth, sides, labelled = self.places, self.sides[:, None], self.visible > 0
        if places.ndim == 4:
            truth, sides, labelled = truth[:, None], sides[..., None], labelled[:, None]
        return np.where(labelled, np.linalg.norm(places - truth, axis=-1) / sides, np.nan)


def best_of(distances: np.ndarray) -> np.ndarray:
    """(N, K, J) -> (N, K, J): the smallest distance among the first k hypotheses, k = 1..K."""
    return np.minimum.accumulate(distances, axis=1)


def mixture_nll(distances: np.ndarray, weights: np.ndarray, bandwidth: Any) -> np.ndarray:
    """-log density (N, J), nats, of a mixture of K isotropic Gaussians at `distances` (N, K, J).

    `weights` (N, K, J) sum to 1 over K; the bandwidth, their standard deviation on each axis, is a number or (N, 1).
    """
    variance = np.square(bandwidth) * np.ones((len(distances), 1))
    logs = -(distances**2) / (2 * variance[:, None])
    return np.log(2 * np.pi * variance) - special.logsumexp(logs, axis=1, b=weights)


def fitted(loss: Callable[[Any], np.ndarray], half: np.ndarray, low: float, high: float) -> np.ndarray:
    """(N, 1) parameters in [low, high]: for each half of the persons the one of least mean loss on the other half.

    `loss` maps a number or (N, 1) parameters to (N, J) values, NaN where they do not count.
    """

    def on_other(log: float, side: bool) -> float:
        return float(np.nanmean(loss(np.exp(log))[half != side]))

    bounds = np.log([low, high])
    logs = [optimize.minimize_scalar(on_other, bounds=bounds, args=(side,)).x for side in (False, True)]
    return np.exp(np.where(half, logs[1], logs[0]))[:, None]


def of_hypotheses(
    truth: Truth, places: np.ndarray, best: np.ndarray, *, weights: np.ndarray | None = None, spread=None
) -> Candidate:
    """K hypotheses (N, K, J, 2) and the most likely place (N, J, 2), image pixels; equal weights unless given.

    The likelihood is that of `mixture_nll` with one bandwidth. The spread, in sides, is by default that of the
    hypotheses.
    """
    distances = truth.distances(places)
    if weights is None:
        weights = np.full(distances.shape, 1 / distances.shape[1])
    if spread is None:
        spread = uncertainty.spread(places) / truth.sides[:, None]
    bandwidth = fitted(lambda one: mixture_nll(distances, weights, one), truth.half, SHORTEST, LONGEST)
    nll = mixture_nll(distances, weights, bandwidth)
    return Candidate(best_of(distances), nll, spread, truth.distances(best))


def of_gaussian(truth: Truth, best: np.ndarray, count: int, seed: int) -> Candidate:
    """K = `count` draws around the most likely place (N, J, 2), image pixels, from one global Gaussian.

    Its standard deviation is that of the least best-of-K error.
    """
    noise = np.random.default_rng(seed).standard_normal((len(best), count, *best.shape[1:]))
    noise *= truth.sides[:, None, None, None]

    def places(deviation: Any) -> np.ndarray:
        return best[:, None] + noise * (deviation * np.ones((len(best), 1)))[..., None, None]

    deviation = fitted(lambda one: best_of(truth.distances(places(one)))[:, -1], truth.half, SHORTEST, LONGEST)
    spread = np.sqrt(2) * deviation * np.ones(best.shape[:2])
    return of_hypotheses(truth, places(deviation), best, spread=spread)


def of_heatmaps(truth: Truth, rows: Rows, found: Mapping[str, np.ndarray], codec: Codec, seed: int) -> dict:
    """Candidates by name, of what `hypotheses.from_heatmaps` gave: peaks, draws, heatmap (its density) and Gaussian."""

    def placed(places: np.ndarray) -> np.ndarray:
        return to_image_pixels(places.reshape(len(places), -1, 2), rows.to_image).reshape(places.shape)

    peaks, heights = placed(found["peaks"]), found["heights"].astype(np.float64)
    best, total = peaks[:, 0], heights.sum(axis=1, keepdims=True)
    alone = np.zeros_like(heights) + (np.arange(heights.shape[1]) == 0)[:, None]
    weights = np.where(total > 0, heights / np.where(total > 0, total, 1), alone)
    offset = peaks - np.sum(weights[..., None] * peaks, axis=1, keepdims=True)
    spread = np.sqrt(np.sum(weights * np.sum(offset**2, axis=-1), axis=1)) / truth.sides[:, None]
    # A crop pixel in sides; the crops of an evaluation are not turned.
    unit = np.sqrt(np.linalg.det(rows.to_image[:, :, :2]))[:, None] / truth.sides[:, None]
    area = np.prod(np.asarray(codec.to_crop(np.ones(2)))) * unit**2
    at_truth, uniform = found["at_truth"] / area, 1 / (np.prod(codec.size) * area)

    def nll(share: Any) -> np.ndarray:
        return np.where(truth.visible > 0, -np.log((1 - share) * at_truth + share * uniform), np.nan)

    floor = fitted(nll, truth.half, 1e-6, 1 - 1e-6)
    return {
        "peaks": of_hypotheses(truth, peaks, best, weights=weights, spread=spread),
        "draws": of_hypotheses(truth, placed(found["draws"]), best),
        "heatmap": Candidate(None, nll(floor), found["deviation"] * unit, truth.distances(best)),
        "Gaussian": of_gaussian(truth, best, heights.shape[1], seed),
    }


def calibration(spread: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Root mean squares of predicted spread and of error, two (BINS,), of bins of equal counts in order of spread.

    Both arrays have one shape; NaN errors do not count.
    """
    spread, error = spread[np.isfinite(error)], error[np.isfinite(error)]
    bins = np.array_split(np.argsort(spread, kind="stable"), BINS)
    predicted, observed = (np.array([np.sqrt(np.mean(its[one] ** 2)) for one in bins]) for its in (spread, error))
    return predicted, observed


def normalised_error(spread: np.ndarray, error: np.ndarray) -> float | None:
    """Expected normalised calibration error (Levi et al., 2022): mean of |predicted - observed| / predicted over bins.

    None where a bin's spread is 0.
    """
    predicted, observed = calibration(spread, error)
    return float(np.mean(np.abs(predicted - observed) / predicted)) if predicted.min() > 0 else None


def rescaled(candidate: Candidate, half: np.ndarray) -> np.ndarray:
    """The spread (N, J), times what makes its root mean square that of the errors, on the other half (N,) bool."""
    spread = np.where(np.isfinite(candidate.error), candidate.spread, np.nan)
    squares = [[np.nanmean(its[half != side] ** 2) for its in (candidate.error, spread)] for side in (False, True)]
    scales = [np.sqrt(error / predicted) if predicted > 0 else 1.0 for error, predicted in squares]
    return candidate.spread * np.where(half, scales[1], scales[0])[:, None]


def mean_of(values: np.ndarray, where: np.ndarray) -> tuple[float, float]:
    """The mean of (N, J) values `where` a mask holds, and its standard error, for persons drawn at random."""
    mean = values[where].mean()
    # The ratio of two sums over persons, by the delta method.
    by_person = np.where(where, values - mean, 0.0).sum(axis=1)
    return float(mean), float(np.sqrt(np.sum(by_person**2)) / where.sum())


def summarise(truth: Truth, candidates: Mapping[str, Candidate], first: str) -> tuple[list[dict], dict[str, Any]]:
    """The table's rows, and by name `curves` of best-of-k error, `calibration`, and `differences` from `first`.

    A difference is a mean over joints of one person's less the other's, with its standard error over persons.
    """
    parts = {name: truth.visible == value for name, value in (("occluded", 1), ("visible", 2))}
    parts, rows = {name: its for name, its in parts.items() if its.any()}, []
    more: dict[str, Any] = {"curves": {}, "calibration": {}, "differences": {}}
    for name, one in candidates.items():
        row: dict[str, Any] = {"hypotheses": name}
        curves, differences = (more[kind].setdefault(name, {}) for kind in ("curves", "differences"))
        for part, its in parts.items():
            if one.best is not None:
                curves[part] = [mean_of(best, its)[0] for best in one.best.swapaxes(0, 1)]
                row |= {f"{part} error": curves[part][-1], f"{part} PCK@0.1": mean_of(one.best[:, -1] <= 0.1, its)[0]}
                differences[f"{part} error"] = mean_of(one.best[:, -1] - candidates[first].best[:, -1], its)
            row[f"{part} NLL"] = mean_of(one.nll, its)[0]
            differences[f"{part} NLL"] = mean_of(one.nll - candidates[first].nll, its)
        spreads = {"ENCE": one.spread, "ENCE rescaled": rescaled(one, truth.half)}
        row |= {title: normalised_error(spread, one.error) for title, spread in spreads.items()}
        more["calibration"][name] = {title: calibration(spread, one.error) for title, spread in spreads.items()}
        rows.append(row)
    return rows, more


def write_plot(path: str, more: Mapping[str, Any], names: Sequence[str]) -> None:
    """Draws best-of-k error over k, and observed error over predicted deviation, of the candidates of these names."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, name in enumerate(names):
        for part, curve in more["curves"][name].items():
            style, label = ("o-", name) if part == "occluded" else ("o:", None)
            left.plot(np.arange(1, len(curve) + 1), curve, style, color=f"C{i}", markersize=3, label=label)
        right.plot(*more["calibration"][name]["ENCE"], "o-", color=f"C{i}", markersize=3)
    low, high = right.get_ylim()
    right.plot([low, high], [low, high], color="grey", linewidth=1, label="predicted = observed")
    left.set(xlabel="k (occluded: solid, visible: dotted)", ylabel="error of the best of k, box sides")
    right.set(xlabel="predicted deviation, box sides", ylabel="observed error, box sides", xscale="log", yscale="log")
    left.set_ylim(bottom=0)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
    right.minorticks_off()
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    report.write_figure(path, figure)
