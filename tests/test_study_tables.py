"""The tables of the study, their summary and its plots, on rows made up for the purpose."""

import numpy as np
import pytest

from benchmarks.study import plot
from benchmarks.study.tables import (
    METRICS,
    Estimate,
    Reading,
    in_points,
    read_table,
    reading_of,
    summarise,
    write_table,
)
from benchmarks.study.variants import UNET, VARIANTS, controls
from configs import paper_coco_w32, tiny
from dpose_jax.recipe import Recipe

REFINES = ("dark", "none")


def test_small_recipes_have_the_form_that_won():
    """`light_sub` changes nothing of them; the U-Net's variants have the paper's form whatever it is."""
    recipe, paper = Recipe.from_config(tiny.get_config()), Recipe.from_config(paper_coco_w32.get_config())
    assert recipe.override(VARIANTS["light_sub"].fields) == recipe
    form = {name: paper.flatten()[name] for name in UNET}
    for name in ("unet", "written", "one_pass", "own_all"):
        flat = recipe.override(VARIANTS[name].fields).flatten()
        assert {field: flat[field] for field in UNET} == form, name


def test_tables_keep_what_was_written(tmp_path):
    """Six significant digits; None, whole numbers and text come back as they were."""
    rows = [
        {"study": "a", "variant": "plain", "seed": 0, **Reading("coarse", 0)._asdict(), "AP": 0.123456789, "APm": None},
        {
            "study": "a",
            "variant": "unet",
            "seed": 1,
            **Reading("direct", 2, "none")._asdict(),
            "AP": 1 / 3,
            "AR": 1e-7,
        },
    ]
    for name in ("study.csv", "joints.csv.gz"):
        path = str(tmp_path / name)
        assert read_table(path) == []
        write_table(path, rows)
        first, second = read_table(path)
        assert first == rows[0] | {"AP": 0.123457, "AR": None}
        assert second == rows[1] | {"AP": 0.333333, "APm": None}
        assert reading_of(second) == Reading("direct", 2, "none")
        content = (tmp_path / name).read_bytes()
        write_table(path, read_table(path))
        assert (tmp_path / name).read_bytes() == content
    assert str(Reading("direct", 2, "none")) == "direct_2 without DARK" and str(Reading("coarse", 0)) == "coarse"


def row_of(variant, seed, reading, ap, device="cpu", **others):
    values = dict.fromkeys(METRICS, 0.5) | {"AP": ap, "training_device": device} | others
    return {"study": "a", "variant": variant, "seed": seed, **reading._asdict(), **values}


def test_errors_are_shown_by_visibility_and_joint(monkeypatch):
    """The mean over seeds of what PCK leaves, with its standard error; a joint without any is left blank."""

    def rows(variant, seed, reading, pck, wrist):
        names = (f"{metric}{end}" for metric in ("PCK@0.2", "PCK@0.1") for end in ("", " occluded", " visible"))
        run = {"study": "a", "variant": variant, "seed": seed, **reading._asdict()}
        wide, near = run | {"metric": "PCK@0.2"}, run | {"metric": "PCK@0.1"}
        joints = [wide | {"wrist": wrist, "ear": None, "tail": None}, near | {"wrist": pck, "ear": pck, "tail": None}]
        return run | dict.fromkeys(names, pck), joints

    coarse, direct = Reading("coarse", 0), Reading("direct", 1)
    found = [rows("unet", seed, coarse, 0.0, 0.0) for seed in (0, 1)] + [rows("plain", 0, coarse, 0.0, 0.0)]
    found += [rows("unet", seed, direct, 0.5, 0.7 + seed / 10) for seed in (0, 1)]
    figures = []
    monkeypatch.setattr(plot, "write_figure", lambda path, figure: figures.append(figure))
    plot.write_errors("errors.png", [row for row, _ in found], [joint for _, joints in found for joint in joints])
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all", "occluded", "visible", "wrist", "ear"]
    both, one = axes.containers
    np.testing.assert_allclose(both[0].get_xdata(), [50, 50, 50, 25, np.nan])
    np.testing.assert_allclose(one[0].get_xdata(), [100, 100, 100, 100, np.nan])
    (bars,) = both[2]
    np.testing.assert_allclose(np.ptp(bars.get_segments()[3][:, 0]), 2 * 5)
    assert both.get_label() == "U-Net, direct_1" and one.get_label() == "HRNet, coarse"


def test_ap_is_drawn_over_steps_and_over_latency(monkeypatch):
    """A panel a question; what is of an ablation, without DARK or not timed is left to the table."""

    def row(variant, reading, ap, times=None):
        return {"variant": variant, "reading": reading, "AP": Estimate(ap, 0.01 if times else None), "times": times}

    rows = [
        row("plain_sub", Reading("coarse", 0), 0.2, 1.0),
        row("plain_sub", Reading("unflipped", 0), 0.1, 0.7),
        row("unet_no_own", Reading("direct", 1), 0.9),
        row("light_sub", Reading("direct", 1), 0.3, 1.7),
        row("light_sub", Reading("direct", 2), 0.4),
        row("light_sub", Reading("ddim", 2), 0.35, 2.5),
        row("light_sub", Reading("direct", 1, "none"), 0.6, 1.7),
    ]
    figures = []
    monkeypatch.setattr(plot, "write_figure", lambda path, figure: figures.append(figure))
    plot.write_plot("study.png", rows)
    drawn = [{line.get_label(): line[0].get_xydata().tolist() for line in axes.containers} for axes in figures[0].axes]
    assert drawn == [
        {"light, sub-pixels, direct": [[1, 30], [2, 40]]},
        {"light, sub-pixels, ddim": [[2, 35]]},
        {"light, sub-pixels, direct": [[1.7, 30]]},
    ]
    # Of one seed there is no error to show.
    (bars,) = figures[0].axes[0].containers[0][2]
    np.testing.assert_allclose([np.ptp(segment[:, 1]) for segment in bars.get_segments() if len(segment)], [2])
    levels = [axes.lines[0].get_ydata() for axes in figures[0].axes[:2]]
    np.testing.assert_allclose(levels, 20)
    plot.write_plot("study.png", [row for row in rows if row["reading"].update != "ddim"])
    assert [axes.get_title() for axes in figures[1].axes] == [
        heading for heading in plot.PANELS if "DDIM" not in heading
    ]


def test_gains_are_paired_by_seed_and_decoding():
    coarse, step = Reading("coarse", 0), Reading("direct", 1)
    values = {("plain", 0, coarse): 0.25, ("plain", 1, coarse): 0.5, ("one_pass", 1, step): 0.75}
    values |= {("unet", 0, step): 0.5, ("unet", 1, step): 0.875}
    rows = [
        row_of(variant, seed, reading._replace(refine=refine), ap - (0.1 if refine == "none" else 0))
        for (variant, seed, reading), ap in values.items()
        for refine in REFINES
    ]
    timed = [{"variant": "unet", "timed": "direct", "K": 1, "ms": 3.0, "times": 1.5}]
    for refine in REFINES:
        found = {(row["variant"], row["reading"]): row for row in summarise(rows, timed)}
        row = found["unet", Reading("direct", 1, refine)]
        assert row["gain on HRNet"] == pytest.approx(((0.25 + 0.375) / 2, 0.125 / 2, False))
        assert row["gain on U-Net refiner"][:2] == (pytest.approx(0.125), None)
        assert (row["seeds"], row["ms"], row["times"]) == (2, 3.0, 1.5)
        assert found["plain", Reading("coarse", 0, refine)]["gain on HRNet"].mean == 0
        assert found["plain", Reading("coarse", 0, refine)]["gain on U-Net refiner"].mean == pytest.approx(-0.25)
    # A metric that is None everywhere has no mean; a control without the seed no gain.
    rows = [row_of("unet", 0, step, 0.5, **{"PCK@0.1 occluded": None}), row_of("plain", 0, coarse, 0.25, "gpu")]
    (row, _) = summarise(rows)
    assert row["PCK@0.1 occluded"] is None and row["gain on U-Net refiner"] is None and row["ms"] is None
    assert row["gain on HRNet"] == (0.25, None, True)
    cells = in_points(row)
    assert (cells["variant"], cells["AP"], cells["gain on HRNet"], cells["AP75"]) == (
        "U-Net",
        "50.0",
        "+25.0†",
        "50.0",
    )
    assert Estimate(-0.0123, 0.004).points(sign=True) == "−1.2 ± 0.4"


def test_light_variants_are_compared_with_those_of_their_head():
    """An HRNet and a U-Net refiner with the same heads and rows, and an HRNet of the same training time."""
    fields = {name: variant.fields for name, variant in VARIANTS.items()}
    late = {"optim.backbone_rate": 0, "loss.coarse": 0}
    for name, rows in (("light_sub", {}), ("light_sub_half", {"diffusion.every": 2}), ("light_sub_late", late)):
        plain, refiner, same_time = controls(name)
        assert fields[plain] == fields[same_time] == {"loss.diffusion": 0, "stride": 2, "model.upsampling": "subpixel"}
        no_masks = {"masks.keypoints": False, "masks.skeleton": False}
        assert fields[refiner] == fields[name] | no_masks | {"diffusion.own_share": 1}
        assert {"model.decoder": "light"}.items() | rows.items() <= fields[name].items()
        assert VARIANTS[same_time].same_time == name and controls(refiner)[:2] == (plain, refiner)
        assert VARIANTS[refiner][-2:] == VARIANTS[name][-2:] == (("plain_sub", 1 / 3) if rows is late else (None, 1))
    assert controls("unet") == controls("plain")[:2] + ("plain_same_time",) == ("plain", "one_pass", "plain_same_time")
    coarse, step = Reading("coarse", 0), Reading("direct", 1)
    rows = [row_of("plain_sub", 0, coarse, 0.25), row_of("plain_sub_time_of_light_sub", 0, coarse, 0.5)]
    rows += [row_of("light_sub", 0, step, 0.625), row_of("one_pass_light_sub", 0, step, 0.375)]
    timed = [{"variant": "light_sub", "timed": "train_step of plain_sub", "K": None, "ms": 4.0, "times": 0.8}]
    (light,) = (row for row in summarise(rows, timed) if row["variant"] == "light_sub")
    gains = [light[name].mean for name in ("gain on HRNet", "gain on U-Net refiner", "gain in the same time")]
    assert gains == [0.375, 0.25, 0.125] and light["training"] == 1.25 and in_points(light)["training"] == "1.25"
