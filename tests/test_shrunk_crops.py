"""Crops of a bounded height: all but the pixels of large persons stays, and those change at edges alone."""

import numpy as np
import pytest
from record_cases import broken_folder, recipe, stored_as_png  # noqa: F401, two of them fixtures

from dpose_jax.data import crop, loader
from dpose_jax.data.array_record import writer
from dpose_jax.data.array_record.crop_margin import Margin
from dpose_jax.data.build import build
from dpose_jax.data.datasets import make_source
from dpose_jax.data.sample import Person

pytest.importorskip("tensorflow_datasets", reason="the extra [records] is not installed")


def test_large_persons_are_shrunk_to_the_rows_asked_for(folder, tmp_path, lossless):
    """All but their pixels stays, and those change at edges alone; a taller crop than stored is refused."""
    plain = recipe(folder).override({"input_size": (64, 32)})
    build(plain, str(tmp_path), "crops", max_height=80)
    size = {"input_size": (64, 32), "data.root": str(tmp_path), "data.source": "crops"}
    source, whole = (make_source(plain.override(where), "train", training=True) for where in (size, {}))
    shrunk = 0
    for i in range(len(source)):
        person, rows = source[i], crop.padded_view(whole[i].bbox, crop.crop_spec(plain)).size[1]
        if person.scale == (1, 1):  # also of an image that cannot be read
            continue
        shrunk += 1
        assert rows * person.scale[1] == pytest.approx(80, abs=1) and rows > 80
        assert person.scale[0] == pytest.approx(person.scale[1], abs=0.02)
        for seed in range(8):
            given, expected = (
                loader.train_example(plain, one)(i, np.random.default_rng(seed)) for one in (source, whole)
            )
            for key in expected.keys() - {"image"}:
                np.testing.assert_array_equal(given[key], expected[key], err_msg=key)
            assert np.abs(given["image"].astype(int) - expected["image"]).mean() < 8
    assert shrunk > len(source) / 4
    with pytest.raises(ValueError, match="shrunk to max_height=80 rows, input_size has 128"):
        make_source(plain.override(size | {"input_size": (128, 64)}), "train", training=True)


def test_a_shrunk_cut_has_the_pixels_around_the_outermost_samples():
    image, box = np.full((600, 500, 3), 255, np.uint8), np.array([120.3, 100.7, 200, 300])
    person, spec = Person(1, 1, "f", box, np.zeros((17, 3), np.float32)), crop.CropSpec((32, 24), 1.25, "unbiased")
    part, *place = writer.Cut(Margin(spec.aspect, spec.padding), 90, 32).pixels(image, person)
    assert part.shape[0] < 40
    assert (crop.warp_image(part, crop.padded_view(box, spec), spec, *place) == 255).all()


def test_wrong_heights_are_named(folder, tmp_path):
    for given in {"kind": "full", "max_height": 200}, {"kind": "crops", "max_height": 127}:
        with pytest.raises(ValueError, match=f"max_height={given['max_height']}: must be at least the 128 rows"):
            build(recipe(folder), str(tmp_path), **given)
