"""What a camera and a post do to a crop, for training on small sets (ours): labels stay true."""

import cv2
import numpy as np

_LOWEST = 3.5  # the strongest loss of resolution
_BLUR = 0.4, 1.8  # pixels
_NOISE = 12.0  # grey levels
_QUALITY = 20, 90  # of JPEG
_HIDDEN = 0.1, 0.4  # sides of what hides a part, in those of the crop


def degrade(rng: np.random.Generator, crop: np.ndarray, share: float) -> np.ndarray:
    """Lowers resolution, blurs, adds noise, compresses, and hides a rectangle, each with probability `share`.

    `crop` is (height, width, 3) uint8, and so is the result. Takes the same random numbers whatever happens.
    """
    height, width = crop.shape[:2]
    happens, (lost, blur, noise, quality, *hidden) = rng.random(5) < share, rng.random(8)
    shade, seed = rng.random(3) * 255, int(rng.integers(2**32))
    image = crop
    if happens[0]:
        factor = 1 + (_LOWEST - 1) * lost**2
        small = max(8, round(width / factor)), max(8, round(height / factor))
        image = cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA), (width, height))
    if happens[1]:
        image = cv2.GaussianBlur(image, (0, 0), _BLUR[0] + (_BLUR[1] - _BLUR[0]) * blur)
    if happens[2]:
        grain = np.random.default_rng(seed).standard_normal(image.shape, np.float32) * (_NOISE * noise)
        image = np.clip(np.rint(image + grain), 0, 255).astype(np.uint8)
    if happens[3]:
        level = int(_QUALITY[0] + (_QUALITY[1] - _QUALITY[0]) * quality)
        coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, level])[1]
        image = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    if happens[4]:
        w, h = (_HIDDEN[0] + (_HIDDEN[1] - _HIDDEN[0]) * u for u in hidden[:2])
        x, y = int((1 - w) * hidden[2] * width), int((1 - h) * hidden[3] * height)
        image = image.copy()
        image[y : y + int(h * height), x : x + int(w * width)] = shade
    return image
