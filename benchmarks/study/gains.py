"""Gains beside what persons and seeds leave open, of readings that are chosen on the other half of the images."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from benchmarks.study.tables import CONTROLS, Reading, Row
from benchmarks.study.variants import controls, title
from dpose_jax.evaluation.coco import matched_images
from dpose_jax.evaluation.metrics import best_assignment
from dpose_jax.evaluation.oks import oks
from dpose_jax.evaluation.results_check import Inputs
from dpose_jax.workdir.files import write_bytes

MATCHES_FILE = "persons.npz"  # in the folder of a run
MEASURES = ("AP", "AR", "OKS", "PCK@0.1")
DRAWS = 300
# A gain that a study shows is found in this share of studies, by a two-sided test at this level.
POWER, LEVEL = 0.8, 0.05
RECALLS = np.linspace(0, 1, 101)


class Matches(NamedTuple):
    """A reading of a run against the truth of I images: D results in falling order of their scores."""

    images: np.ndarray  # (I,) ids, rising
    image: np.ndarray  # (D,) the row of `images` that a result is of
    hits: np.ndarray  # (10, D) bool, by COCO's thresholds of OKS
    counts: np.ndarray  # (10, D) bool, False for what is neither hit nor miss
    persons: np.ndarray  # (I,) persons with a labelled joint
    oks: np.ndarray  # (I,) the sum over them of the OKS with the result assigned to each, 0 without one
    near: np.ndarray  # (I,) labelled joints within 0.1 of the longer side of the box
    labelled: np.ndarray  # (I,) labelled joints


def match(inputs: Inputs) -> Matches:
    """Matches results and persons as COCO does for AP and AR, and by `best_assignment` for mean OKS and PCK."""
    images = np.array(sorted(image["id"] for image in inputs.images))
    found = [entry for entry in matched_images(inputs) if entry["dtScores"]]
    rows = np.repeat(np.searchsorted(images, [e["image_id"] for e in found]), [len(e["dtScores"]) for e in found])
    order = np.argsort(-np.concatenate([e["dtScores"] for e in found]), kind="stable")
    hits, ignored = (np.concatenate([e[key] for e in found], axis=1, dtype=bool) for key in ("dtMatched", "dtIgnore"))
    predicted, truth, lengths = best_assignment(inputs)
    labelled = inputs.truth[..., 2] > 0
    persons = [i for i, a in enumerate(inputs.annotations) if not a["iscrowd"] and labelled[i].any()]
    areas, boxes, sigmas = inputs.areas[persons], inputs.boxes[persons], inputs.joint_set.sigmas
    alone = zip(predicted[:, None], truth[:, None], areas[:, None], boxes[:, None], strict=True)
    own = np.array([oks(*one, sigmas).item() for one in alone])
    near = np.linalg.norm(predicted - truth[..., :2], axis=-1) <= 0.1 * lengths[:, None]
    of = np.searchsorted(images, [inputs.annotations[i]["image_id"] for i in persons])
    sums = (np.ones_like(own), own, (near & labelled[persons]).sum(axis=1), labelled[persons].sum(axis=1))
    by_image = (np.bincount(of, each, minlength=len(images)) for each in sums)
    return Matches(images, rows[order], hits[:, order], ~ignored[:, order], *by_image)


def write_matches(path: str, matches: Mapping[Reading, Matches]) -> None:
    """Writes the matches of a run's readings, those with DARK, as a .npz file."""
    data, arrays = io.BytesIO(), {}
    for reading, one in matches.items():
        arrays |= {f"{reading.update} {reading.K} {name}": array for name, array in one._asdict().items()}
    np.savez_compressed(data, **arrays)
    write_bytes(path, data.getvalue())


def read_matches(path: str) -> dict[Reading, Matches]:
    """What `write_matches` wrote."""
    with np.load(path) as file:
        keys = dict.fromkeys(tuple(name.split(" ")[:2]) for name in file.files)
        return {
            Reading(update, int(k)): Matches(*(file[f"{update} {k} {name}"] for name in Matches._fields))
            for update, k in keys
        }


def measure(one: Matches, weights: np.ndarray) -> np.ndarray:
    """(4,) MEASURES as fractions, AP and AR as pycocotools', of images that count as often as `weights` (I,) say."""
    each, persons = weights[one.image] * one.counts, weights @ one.persons
    right = np.cumsum(each * one.hits, axis=1)
    precision = right / np.maximum(np.cumsum(each, axis=1), np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)
    places = [np.searchsorted(recall, RECALLS) for recall in right / persons]
    ap = np.mean([row[place] for row, place in zip(best, places, strict=True)])
    pck = weights @ one.near / (weights @ one.labelled)
    return np.array([ap, np.mean(right[:, -1]) / persons, weights @ one.oks / persons, pck])


def halves(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (I,) of the half that readings are chosen on, and of the other: every second image by its id."""
    odd = np.arange(len(images)) % 2
    return 1.0 - odd, odd.astype(float)


class Gain(NamedTuple):
    """A mean over S seeds of what one reading has beyond another, in MEASURES (4,), with standard errors (4,)."""

    mean: np.ndarray
    seeds: np.ndarray  # the spread over seeds, by sqrt S; NaN of one seed
    persons: np.ndarray  # of the mean, over images drawn anew

    @property
    def error(self) -> np.ndarray:
        """Of both, as if independent: a little too large, since seeds also differ by what they do to single persons."""
        return np.hypot(np.nan_to_num(self.seeds), self.persons)

    def shows(self, count: int) -> np.ndarray:
        """(4,) the smallest gains that `count` seeds would show, see POWER; NaN of one seed.

        By Student's t, since few seeds tell their spread badly: with the degrees of freedom of Welch and Satterthwaite,
        those of the persons without end.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            freedom = (count - 1) * (self.error / self.seeds) ** 4
        return (stats.t.ppf(1 - LEVEL / 2, freedom) + stats.t.ppf(POWER, freedom)) * self.error


def gain(pairs: Sequence[tuple[Matches, Matches]], draws: int = DRAWS) -> Gain:
    """The gain of the first of each pair, a pair a seed, over the half of images that reports.

    Images are drawn anew `draws` times, each as often as a Poisson variable of mean 1 says; an image counts equally for
    all seeds and both readings. Seeds that were validated on different images need no more.
    """
    every = np.unique(np.concatenate([one.images for one, _ in pairs]))
    rows = [np.searchsorted(every, one.images) for one, _ in pairs]
    reported = [halves(one.images)[1] for one, _ in pairs]

    def gains(weights):
        both = (
            [measure(each, weights[row] * half) for each in pair]
            for pair, row, half in zip(pairs, rows, reported, strict=True)
        )
        return np.array([one - other for one, other in both])

    found, random = gains(np.ones(len(every))), np.random.default_rng(0)
    drawn = [gains(random.poisson(1.0, len(every))).mean(axis=0) for _ in range(draws)]
    seeds = found.std(axis=0, ddof=1) / len(found) ** 0.5 if len(found) > 1 else np.full(len(MEASURES), np.nan)
    return Gain(found.mean(axis=0), seeds, np.std(drawn, axis=0, ddof=1))


Runs = Mapping[tuple[str, int], Mapping[Reading, Matches]]  # by variant and seed


def chosen(runs: Runs, variant: str, times: Mapping[tuple[str, str, int], float], most: float) -> Reading:
    """The reading of a variant with the highest mean AP on the choosing half, of those that take at most `most` times.

    `times` are the latencies by variant, update and K. It is the coarse branch if there is no such reading.
    """
    its = [readings for (name, _), readings in runs.items() if name == variant]
    common = set.intersection(*(set(readings) for readings in its))
    allowed = [one for one in common if one.K and times.get((variant, one.update, one.K), np.inf) <= most]

    def mean_ap(reading):
        return np.mean([measure(each[reading], halves(each[reading].images)[0])[0] for each in its])

    return max(sorted(allowed), key=mean_ap, default=Reading("coarse", 0))


def gains_table(
    runs: Runs, devices: Mapping[tuple[str, int], str], latencies: Sequence[Row], most_times: float
) -> list[Row]:
    """A row for each variant with a denoiser and each of its `controls`: gains in points, and their errors.

    A seed's runs are compared if one kind of device, by `devices`, trained both. A variant without a reading of at most
    `most_times` times the latency of the coarse branch has no row. `shows` is the smallest gain of AP that the design
    would find, see `Gain.shows`. One seed has errors of the images alone, and shows nothing of others.
    """
    times = {(row["variant"], row["timed"], row["K"]): row["times"] for row in latencies}
    readings = {name: chosen(runs, name, times, most_times) for name in dict.fromkeys(name for name, _ in runs)}
    table = []
    for name, reading in readings.items():
        for heading, control in zip(CONTROLS, controls(name), strict=True):
            both = [seed for variant, seed in runs if variant == name and (control, seed) in runs]
            seeds = [seed for seed in both if devices[name, seed] == devices[control, seed]]
            if not reading.K or not seeds or control == name:
                continue
            theirs = readings[control]
            pairs = [(runs[name, seed][reading], runs[control, seed][theirs]) for seed in seeds]
            found = gain(pairs)
            row: Row = {"variant": name, "reading": str(reading), "times": times.get((name, reading.update, reading.K))}
            row |= {"control": control, "its reading": str(theirs), "of": heading, "seeds": len(seeds)}
            row |= {"persons": _reporting(one for one, _ in pairs)}
            columns = zip(MEASURES, 100 * found.mean, 100 * found.error, strict=True)
            row |= {key: value for name, mean, error in columns for key, value in ((name, mean), (f"{name} ±", error))}
            parts = {
                "± of seeds": found.seeds[0],
                "± of persons": found.persons[0],
                "shows": found.shows(len(seeds))[0],
            }
            table.append(row | {key: None if np.isnan(value) else 100 * value for key, value in parts.items()})
    return table


def _reporting(ones: Iterable[Matches]) -> int:
    """Persons of the reporting half, those of an image that several seeds share once."""
    counts: dict[int, float] = {}
    for one in ones:
        counts |= zip(one.images.tolist(), halves(one.images)[1] * one.persons, strict=True)
    return int(sum(counts.values()))


def gain_in_points(row: Row) -> dict[str, str]:
    """A row of `gains_table` as text: gains as `+4.6 ± 0.4`, of one seed `+4.6 ± 0.4 of persons`."""
    of = "" if row["seeds"] > 1 else " of persons"
    cells = {"variant": title(row["variant"]), "reading": row["reading"], "gain": row["of"].removeprefix("gain ")}
    cells |= {name: str(row[name]) for name in ("its reading", "seeds", "persons")}
    cells |= {name: f"{row[name]:+.1f} ± {row[f'{name} ±']:.1f}{of}".replace("-", "−") for name in MEASURES}
    return cells | {
        "shows": f"{row['shows']:.1f}" if row["shows"] else "",
        "times": f"{row['times']:.3g}" if row["times"] else "",
    }
