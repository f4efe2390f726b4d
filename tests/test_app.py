"""The page in the browser: what a click does, and what it shows step by step."""

import numpy as np
import pytest

pytest.importorskip("gradio", reason="the optional extra `app`")

from dpose_jax import Predictor, app  # noqa: E402

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor.from_workdir(trained[1], steps=2, batch_sizes=(2,))


def test_boxes_from_text():
    assert app.parse_boxes(" \n") is None
    assert app.parse_boxes("1, 2, 3, 4\n\n5 6 7.5 8") == [[1, 2, 3, 4], [5, 6, 7.5, 8]]
    for line in ("1, 2, 3", "1, 2, 3, x", "1 2 3 4 5"):
        with pytest.raises(ValueError, match=f"box '{line}': must be four numbers"):
            app.parse_boxes(line)


def test_two_clicks_make_a_box():
    text, corner = app.add_corner("1, 2, 3, 4", None, (30, 40))
    assert (text, corner) == ("1, 2, 3, 4", [30, 40])
    text, corner = app.add_corner(text, corner, (10, 50))
    assert (text, corner) == ("1, 2, 3, 4\n10, 40, 20, 10", None)
    assert app.add_corner("", [5, 5], (5, 9)) == ("", [5, 9])  # no width: the first click anew


def test_drawn_boxes():
    drawn = app.draw_boxes(IMAGE, [[5, 10, 20, 30]])
    assert drawn[10, 15].tolist() == list(app.BOX_COLOR) and (drawn[25, 15] == IMAGE[25, 15]).all()
    np.testing.assert_array_equal(app.draw_boxes(IMAGE, None), IMAGE)


def test_marked_boxes():
    """Those that can be used are drawn, clipped; a half typed line and no photo leave what is shown."""
    marked = app.mark(IMAGE, "5, 10, 20, 30\n90, 0, 5, 5\n1e99, nan, inf, 4\n30, 40, 1e99, 1e99")
    np.testing.assert_array_equal(marked, app.draw_boxes(IMAGE, [[5, 10, 20, 30], [30, 40, 20, 20]]))
    assert app.mark(IMAGE, "5, 10, 2") == app.mark(None, "5, 10, 20, 30") == app.gr.skip()


def test_every_step_is_shown_then_the_poses(predictor, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    shown = list(app.denoise(predictor, IMAGE, "5, 5, 30, 40\n0, 0, 50, 60"))
    assert [text for _, _, text in shown[:3]] == ["coarse", "step 1", "step 2"]
    strips = [strip for strip, _, _ in shown[:3]]
    assert all(strip.shape == strips[0].shape for strip in strips) and (strips[1] != strips[2]).any()
    _, drawn, text = shown[3]
    assert len(shown) == 4 and drawn.shape == IMAGE.shape and (drawn != IMAGE).any()
    assert text.startswith("2 persons, scores 0.")


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [(None, "", "drop a photo first"), (IMAGE, "90, 0, 5, 5", "outside of the image"), (IMAGE, "a", "box 'a'")],
)
def test_what_cannot_be_shown(predictor, image, text, message):
    with pytest.raises(ValueError, match=message):
        next(app.denoise(predictor, image, text))


def test_page_is_built():
    page = app.build(lambda steps: pytest.fail("loaded before it is needed"))
    assert page.title == "dpose_jax" and not page.analytics_enabled
