"""The page in the browser: what a click does, and what it shows step by step."""

import http.client
import json
import struct
import threading
import time
import types
import zlib

import cv2
import numpy as np
import pytest
from commands import command

pytest.importorskip("gradio", reason="the optional extra `app`")

from dpose_jax import Predictor, app  # noqa: E402
from dpose_jax.inference.boxes import BoxSource, checked_boxes  # noqa: E402
from dpose_jax.inference.poses import Poses  # noqa: E402
from dpose_jax.pose.joint_sets import COCO  # noqa: E402

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor.from_workdir(trained[1], steps=2, batch_sizes=(2,))


def test_boxes_from_text():
    assert app.parse_boxes(" \n") is None
    assert app.parse_boxes("1, 2, 3, 4\n\n5 6 7.5 8, .5") == [[1, 2, 3, 4, 1], [5, 6, 7.5, 8, 0.5]]
    for line in ("1, 2, 3", "1, 2, 3, x", "1 2 3 4 5 6"):
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
    """Those that can be used are drawn, clipped, without a half typed line; and the first corner of the next."""
    marked = app.mark(IMAGE, "5, 10, 20, 30\n90, 0, 5, 5\n1e99, nan, inf, 4\n30, 40, 1e99, 1e99\n5, 10, 2")
    np.testing.assert_array_equal(marked, app.draw_boxes(IMAGE, [[5, 10, 20, 30], [30, 40, 20, 20]]))
    cross = app.mark(IMAGE, "", [25, 30])
    assert cross[30, 25].tolist() == list(app.BOX_COLOR) and (cross[55:] == IMAGE[55:]).all()


def test_undo_takes_back_the_corner_then_the_boxes():
    text = "1, 2, 3, 4\n5, 6, 7, 8\n"
    assert app.undo(text, [3, 4]) == (text, None)
    assert app.undo(text, None) == ("1, 2, 3, 4", None)
    assert app.undo("1, 2, 3, 4", None) == app.undo("", None) == ("", None)


def test_large_photos_are_shown_small():
    large = np.zeros((200, 3 * app.PICTURE_SIDE, 3), np.uint8)
    marked = app.draw_boxes(large, [[3 * 300, 3 * 20, 3 * 60, 3 * 30]])
    assert marked.shape == (67, app.PICTURE_SIDE, 3) and marked[35, 300].tolist() == list(app.BOX_COLOR)


def test_every_step_is_shown_then_the_poses(predictor, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    shown = list(app.denoise(predictor, IMAGE, "5, 5, 30, 40\n0, 0, 50, 60"))
    assert [text for _, _, text, _ in shown[:3]] == ["coarse", "step 1", "step 2"]
    strips = [strip for strip, *_ in shown[:3]]
    assert all(strip.shape == strips[0].shape for strip in strips) and (strips[1] != strips[2]).any()
    _, drawn, text, poses = shown[3]
    assert len(shown) == 4 and drawn.shape == IMAGE.shape and (drawn != IMAGE).any()
    assert text.startswith("2 persons, scores 0.") and "whole" not in text and len(poses) == 2
    *_, (_, _, text, _) = app.denoise(predictor, IMAGE, "")
    assert "the whole photo was taken for one person" in text


@pytest.mark.parametrize(("text", "message"), [("90, 0, 5, 5", "outside of the image"), ("a", "box 'a'")])
def test_what_cannot_be_shown(predictor, text, message):
    with pytest.raises(ValueError, match=message):
        next(app.denoise(predictor, IMAGE, text))


class Standing:
    """A predictor of one pose in all boxes, without steps."""

    sampler = types.SimpleNamespace(settings=None)

    def __call__(self, image, boxes):
        clipped, _ = checked_boxes(boxes, image.shape[:2])
        count = len(clipped)
        poses = np.full((count, 17, 2), 20.0), np.ones((count, 17)), np.ones(count), np.zeros((count, 17, 2, 2))
        return Poses(*poses, clipped[:, :4], None, COCO)


@pytest.mark.parametrize("line", ["0, 0, 1e10, 40", "-1e10, 0, 2e10, 40"])
def test_a_box_far_beyond_the_photo_is_drawn_as_it_is_marked(line):
    *_, (_, drawn, _, poses) = app.denoise(Standing(), IMAGE, line)
    marked = app.mark(IMAGE, line)
    np.testing.assert_array_equal(poses.boxes, [[0, 0, 50, 40]])
    np.testing.assert_array_equal(drawn[38:], marked[38:])  # below the joints: the box's lower side


class Two(BoxSource):
    def of(self, image_id, pixels):
        return np.array([[1, 2, 30, 40, 0.875], [3, 4, 20, 10, 0.5]])[: len(pixels) // 30]


def test_people_are_found_into_the_text():
    text = app.find_people(IMAGE, Two())
    assert app.parse_boxes(text) == [[1, 2, 30, 40, 0.875], [3, 4, 20, 10, 0.5]]
    with pytest.raises(ValueError, match="the detector finds nobody; click two"):
        app.find_people(IMAGE[:20], Two())


def huge_png(side):
    """A PNG of side x side pixels in a few hundred bytes, cut off, of which only the header can be read."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", bytes(99)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_photos_that_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    path.write_bytes(huge_png(13_000))
    with monkeypatch.context() as patched:
        patched.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
        with pytest.raises(ValueError, match="^photo.png: 13000 x 13000 pixels are more than 100,000,000; shrink it"):
            app.read_photo(str(path))
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match="^photo.png: cannot be decoded: no image"):
        app.read_photo(str(path))
    with pytest.raises(ValueError, match="^drop a photo first"):
        app.read_photo(None)


def test_a_slip_is_a_line_on_the_page(predictor, tmp_path, monkeypatch):
    """Gradio is told to print no traceback; text of a file's name is no HTML."""
    events = app.Events(lambda steps: predictor, lambda name: Two())
    (tmp_path / "<b>.png").write_bytes(b"text")
    with pytest.raises(app.gr.Error) as raised:
        list(events.shown(events.find)(str(tmp_path / "<b>.png"), "fcos"))
    assert raised.value.message.startswith("&lt;b&gt;.png: cannot be decoded") and not raised.value.print_exception
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    cv2.imwrite(str(tmp_path / "a.png"), IMAGE)
    *_, (_, _, _, saved) = events.run(str(tmp_path / "a.png"), "5, 5, 30, 40", app.FIRST_STEPS)
    found = json.loads(open(saved["value"]).read())
    assert len(found["persons"]) == 1 and found["joints"] == list(predictor.joint_set.joints)


@pytest.fixture(scope="module")
def address():
    """The host and the port of a page that is served."""
    serving, listening = app.server(app.build(lambda steps: pytest.fail("loaded before it is needed")), 0)
    thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]})
    thread.start()
    while not serving.started:
        time.sleep(0.05)
    yield listening.getsockname()
    serving.should_exit = True
    thread.join()


def ask(address, method, path, headers, body=None):
    connection = http.client.HTTPConnection(*address, timeout=30)
    connection.request(method, path, body, headers)
    return connection.getresponse()


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:{port}", None, 200),
        ("localhost:{port}", "http://localhost:{port}", 200),
        ("evil.example", None, 403),
        ("[::1", None, 403),
        ("127.0.0.1.evil.example", None, 403),
        ("evil.example:{port}", "http://evil.example:{port}", 403),
        ("127.0.0.1:{port}", "http://evil.example", 403),
        ("127.0.0.1:{port}", "http://127.0.0.1:1", 403),
        ("127.0.0.1:{port}", "null", 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_own_host_and_origin_only(address, host, origin, status, method):
    headers = {"Host": host.format(port=address[1])} | ({"Origin": origin.format(port=address[1])} if origin else {})
    if method == "OPTIONS":
        headers["Access-Control-Request-Method"] = "POST"
        if origin is None:
            return  # a browser's question always has one
    answer = ask(address, method, "/", headers)
    assert answer.status == status
    if status == 403:
        assert answer.getheader("Access-Control-Allow-Origin") is None


@pytest.mark.parametrize(("size", "taken"), [(1000, True), (2000, False)])
def test_uploads_are_bounded(monkeypatch, size, taken):
    monkeypatch.setattr(app, "MAX_UPLOAD", 1500)
    serving, listening = app.server(app.build(lambda steps: None), 0)
    thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]})
    thread.start()
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head + bytes(size) + b"\r\n--x--\r\n"
    while not serving.started:
        time.sleep(0.05)
    try:
        where = "/gradio_api/upload"
        answer = ask(listening.getsockname(), "POST", where, {"Content-Type": "multipart/form-data; boundary=x"}, body)
        assert (answer.status == 200) == taken
        assert answer.status in (200, 413)
    finally:
        serving.should_exit = True
        thread.join()


def test_a_taken_port_is_named(address):
    with pytest.raises(OSError, match=rf"--port={address[1]}: Address already in use; is a page open already\?"):
        app.server(None, address[1])


def test_a_wrong_workdir_fails_at_the_start(tmp_path):
    done = command("dpose_jax.app", f"--workdir={tmp_path}/none", "--port=0")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "none" in done.stderr


def test_page_is_built():
    page = app.build(lambda steps: pytest.fail("loaded before it is needed"))
    assert page.title == "dpose_jax" and not page.analytics_enabled
