"""The page in a real browser: a photo is dropped, persons are marked by text and by clicks, and poses come."""

import base64
import json
import os
import shutil
import threading
import urllib.parse

import cv2
import numpy as np
import pytest

pytest.importorskip("gradio", reason="the optional extra `app`")
pytest.importorskip("selenium", reason="the optional extra `browser`")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not CHROMIUM or not DRIVER:
    pytest.skip("needs a browser: apt-get install chromium chromium-driver", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

from dpose_jax import Predictor, app  # noqa: E402
from dpose_jax.data.synthetic.dataset import SyntheticSource  # noqa: E402
from dpose_jax.inference.boxes import BoxSource  # noqa: E402
from dpose_jax.pose.joint_sets import COCO  # noqa: E402

PICTURE = """
const image = document.querySelector(arguments[0] + " img");
if (!image || !image.complete || !image.naturalWidth) return null;
const canvas = document.createElement("canvas");
[canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
canvas.getContext("2d").drawImage(image, 0, 0);
return canvas.toDataURL("image/png").split(",")[1];
"""


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor.from_workdir(trained[1], steps=2, batch_sizes=(2,))


class Half(BoxSource):
    """Finds one person, in the left half."""

    def of(self, image_id, pixels):
        return [[0, 0, pixels.shape[1] / 2, pixels.shape[0], 0.75]]


@pytest.fixture(scope="module")
def url(predictor):
    serving, listening = app.server(app.build(lambda steps: predictor, lambda name: Half(), about="a test"), 0)
    thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    serving.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    for argument in ("--headless=new", "--window-size=1280,1000", "--disable-dev-shm-usage", *root):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield browser
    browser.quit()


def distance(image, other):
    return np.abs(image - 1.0 * other)


class Page:
    """What a user does and sees."""

    def __init__(self, browser, url):
        self.browser = browser
        browser.get(url)
        self.until(lambda: browser.find_elements(By.CSS_SELECTOR, "#photo input[type=file]"))

    def until(self, condition):
        """What the condition gives as soon as that is true."""
        return WebDriverWait(self.browser, 60).until(lambda _: condition())

    def find(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def picture(self, selector):
        """The picture that is shown, (height, width, 3) RGB, or None."""
        data = self.browser.execute_script(PICTURE, selector)
        return data and cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), 1)[..., ::-1]

    def until_shown(self, selector, expected, former=None):
        """Waits for this picture, but for what WebP loses; where it differs from `former`, it is by far the nearer."""

        def there():
            seen = self.picture(selector)
            if seen is None or seen.shape != expected.shape:
                return False
            if former is None:
                return distance(seen, expected).mean() < 4
            new = expected != former
            return distance(seen, expected)[new].mean() < distance(seen, former)[new].mean() / 2

        self.until(there)

    def text(self, selector):
        return self.find(f"{selector} textarea").get_attribute("value")

    def drop(self, path, photo):
        self.find("#photo input[type=file]").send_keys(str(path))
        self.until_shown("#result", photo)

    def press(self):
        self.find("#start").click()


@pytest.fixture(scope="module")
def photo():
    return SyntheticSource(1, COCO, difficulty=0.1, seed=3, size=(384, 512)).draw(0)


@pytest.fixture
def page(browser, url, photo, tmp_path):
    """The page with a drawn person as its photo."""
    cv2.imwrite(str(tmp_path / "photo.png"), photo[..., ::-1])
    page = Page(browser, url)
    page.drop(tmp_path / "photo.png", photo)
    return page


def last_shown(predictor, photo, text):
    """The strip of the last step, the photo with poses and the line, as the page's own generator gives them."""
    *_, (strip, *_), (_, drawn, summary, _) = app.denoise(predictor, photo, text)
    return strip, drawn, summary


def test_a_typed_box_is_denoised(page, predictor, photo, monkeypatch):
    monkeypatch.setattr(app, "PAUSE", 0)
    text = "80, 40, 240, 320"
    page.find("#boxes textarea").send_keys(text)
    page.until_shown("#result", app.draw_boxes(photo, [[80, 40, 240, 320]]), photo)
    page.press()
    strip, drawn, summary = last_shown(predictor, photo, text)
    page.until(lambda: page.text("#state") == summary)
    assert summary.startswith("1 person, score 0.")
    page.until_shown("#result", drawn, photo)
    page.until_shown("#strip", strip)
    assert strip.std() > 20


def test_clicks_mark_persons(page, predictor, photo, monkeypatch):
    """Two clicks a person, at pixels of the photo, however large it is shown; each is a row of the poses."""
    monkeypatch.setattr(app, "PAUSE", 0)
    image = page.find("#photo img")
    # Gradio shrinks a photo to its place, but never enlarges it.
    scale = min(1.0, image.size["width"] / photo.shape[1], image.size["height"] / photo.shape[0])
    boxes = [[80, 60, 160, 240], [300, 40, 180, 300]]
    for number, (x, y, width, height) in enumerate(boxes, 1):
        for corner in ((x, y + height), (x + width, y)):
            offset = [round((place - side / 2) * scale) for place, side in zip(corner, photo.shape[1::-1], strict=True)]
            ActionChains(page.browser).move_to_element_with_offset(image, *offset).click().perform()
        page.until(lambda number=number: len(page.text("#boxes").splitlines()) == number)
    found = np.array(app.parse_boxes(page.text("#boxes")))[:, :4].tolist()
    np.testing.assert_allclose(found, boxes, atol=2)
    page.until_shown("#result", app.draw_boxes(photo, found), photo)
    page.press()
    _, drawn, summary = last_shown(predictor, photo, page.text("#boxes"))
    page.until(lambda: page.text("#state") == summary)
    assert summary.startswith("2 persons, scores 0.")
    page.until_shown("#result", drawn, photo)


def test_people_are_found_undone_and_cleared(page, photo):
    """And the model is named; undo takes the last box, clear all of them."""
    assert "Model: a test" in page.find("#about").text
    page.find("#boxes textarea").send_keys("300, 40, 180, 300")
    page.until_shown("#result", app.draw_boxes(photo, [[300, 40, 180, 300]]), photo)
    page.find("#find").click()
    page.until(lambda: page.text("#boxes") == "0, 0, 256, 384, 0.75")
    page.until_shown("#result", app.draw_boxes(photo, [[0, 0, 256, 384]]), photo)
    page.find("#boxes textarea").send_keys("\n300, 40, 180, 300")
    page.find("#undo").click()
    page.until(lambda: page.text("#boxes") == "0, 0, 256, 384, 0.75")
    page.find("#clear").click()
    page.until(lambda: page.text("#boxes") == "")


def test_an_error_is_shown_and_a_new_photo_starts_anew(page, photo, tmp_path):
    page.find("#boxes textarea").send_keys("900, 0, 5, 5")
    page.press()
    page.until(lambda: "lies outside of the image, 512 x 384" in page.find("body").text)
    page.find("#photo button[aria-label*=emove]").click()
    page.until(lambda: page.text("#boxes") == "" and not page.browser.find_elements(By.CSS_SELECTOR, "#result img"))
    cv2.imwrite(str(tmp_path / "other.png"), photo[:, ::-1, ::-1])
    page.drop(tmp_path / "other.png", photo[:, ::-1])


def test_nothing_comes_from_elsewhere(page):
    """The page, its fonts and scripts are this machine's."""
    messages = [json.loads(entry["message"])["message"] for entry in page.browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    hosts = {urllib.parse.urlsplit(address).hostname for address in sent if address.startswith(("http", "ws"))}
    assert hosts == {"127.0.0.1"}
