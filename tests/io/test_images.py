"""Every kind of image comes out as the same upright RGB; every broken one as an error that names the file."""

import base64
import http.server
import io
import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from fer_pll.io import images
from fer_pll.io.errors import MissingExtra
from fer_pll.io.images import MAX_PIXELS, ImageError, check_size, decode_image, max_pixels, open_image

# Six large squares, so that JPEG leaves them as they are; 20 pixels each.
COLORS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 255], [0, 0, 0], [120, 130, 140]]], np.uint8)
RGB = COLORS.repeat(20, axis=0).repeat(20, axis=1)
GRAY = np.asarray(Image.fromarray(RGB).convert("L"))


def saved(image: Image.Image, path, **options) -> Image.Image:
    image.save(path, **options)
    result = open_image(path)
    assert result.mode == "RGB"
    return result


def close(image: Image.Image, expected: np.ndarray, tolerance: int = 0) -> bool:
    actual = np.asarray(image).astype(int)
    return actual.shape == expected.shape and np.abs(actual - expected).max() <= tolerance


def as_rgb(gray: np.ndarray) -> np.ndarray:
    return np.stack([gray] * 3, axis=-1)


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "webp", "gif", "ppm", "jpg", "jp2", "avif", "heic", "heif"])
def test_formats(tmp_path, ending):
    best = {"quality": 100, "subsampling": 0}
    exact = {"webp": {"lossless": True}, "jpg": best, "avif": {"quality": 100, "subsampling": "4:4:4"}}
    exact |= {each: {"quality": -1, "chroma": 444, "matrix_coefficients": 0} for each in ("heic", "heif")}
    if ending in ("heic", "heif"):
        pytest.importorskip("pillow_heif").register_heif_opener()
    lossy = ending in ("jpg", "avif")
    assert close(saved(Image.fromarray(RGB), tmp_path / f"a.{ending}", **exact.get(ending, {})), RGB, 2 * lossy)
    assert close(decode_image((tmp_path / f"a.{ending}").read_bytes(), "a"), RGB, 2 * lossy)


def test_heic_without_the_extra_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "IMG_0001.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(
        MissingExtra, match=r"IMG_0001.HEIC: HEIC images need pillow-heif: pip install 'fer-pll\[faces"
    ):
        open_image(tmp_path / "IMG_0001.HEIC")


@pytest.mark.parametrize("ending", ["eps", "jpg", "png"])
@pytest.mark.parametrize("start", [b"%!PS-Adobe-3.0 EPSF-3.0", b"\xc5\xd0\xd3\xc6" + bytes(26)])
def test_no_program_is_started_for_an_image(tmp_path, monkeypatch, ending, start):
    """Pillow would give these to Ghostscript, whatever their names are."""
    file = tmp_path / f"photo.{ending}"
    file.write_bytes(start + b"\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n")
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: pytest.fail(f"started {args}"))
    with pytest.raises(ImageError, match="not an image in a format that is read"):
        open_image(file)
    with pytest.raises(ImageError, match="not an image in a format that is read"):
        decode_image(file.read_bytes(), "photo")


def test_gray_black_and_white_and_palette(tmp_path):
    image = Image.fromarray(RGB)
    assert close(saved(image.convert("L"), tmp_path / "l.png"), as_rgb(GRAY))
    assert close(saved(Image.fromarray(GRAY > 127), tmp_path / "1.png"), as_rgb((GRAY > 127) * 255))
    assert close(saved(image.quantize(6), tmp_path / "p.png"), RGB)
    assert close(saved(image.quantize(6), tmp_path / "p.gif"), RGB)


def test_transparent_becomes_white(tmp_path):
    alpha = np.full(RGB.shape[:2], 255, np.uint8)
    alpha[:, :30] = 0
    expected = RGB.copy()
    expected[:, :30] = 255
    with_alpha = Image.fromarray(np.dstack([RGB, alpha]))
    assert close(saved(with_alpha, tmp_path / "rgba.png"), expected)
    gray = Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(alpha)])
    assert close(saved(gray, tmp_path / "la.png"), np.where(alpha[..., None] == 0, 255, as_rgb(GRAY)))
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert close(saved(half, tmp_path / "half.png"), np.full((4, 4, 3), 127))
    # A palette with one transparent entry, and a color that stands for transparency.
    palette = Image.fromarray(RGB).quantize(6)
    index = palette.getpixel((30, 10))
    assert saved(palette, tmp_path / "p.png", transparency=index).getpixel((30, 10)) == (255, 255, 255)
    keyed = saved(Image.fromarray(RGB), tmp_path / "key.png", transparency=(0, 255, 0))
    assert keyed.getpixel((30, 10)) == (255, 255, 255) and keyed.getpixel((10, 10)) == (255, 0, 0)


def test_cmyk_and_lab(tmp_path):
    cmyk = Image.fromarray(RGB).convert("CMYK")
    assert close(saved(cmyk, tmp_path / "cmyk.tiff"), RGB, 1)
    assert close(saved(cmyk, tmp_path / "cmyk.jpg", quality=100, subsampling=0), RGB, 4)
    white = saved(Image.new("LAB", (3, 3), (255, 128, 128)), tmp_path / "lab.tiff")
    assert close(white, np.full((3, 3, 3), 255), 1)


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_16_bits(tmp_path, ending):
    deep = GRAY.astype(np.uint16) * 257
    assert close(saved(Image.fromarray(deep), tmp_path / f"deep.{ending}"), as_rgb(GRAY))
    assert close(open_image(deep), as_rgb(GRAY))
    assert open_image(np.full((2, 2), 128, np.uint16)).getpixel((0, 0)) == (0, 0, 0)
    assert open_image(np.full((2, 2), 129, np.uint16)).getpixel((0, 0)) == (1, 1, 1)  # nearest of 0 and 257


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    turned = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, 1),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RGB, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = saved(Image.fromarray(np.ascontiguousarray(turned)), tmp_path / "turned.png", exif=exif)
    assert close(image, RGB)


def test_what_is_not_a_file():
    assert close(open_image(Image.fromarray(RGB)), RGB)
    assert close(open_image(RGB), RGB)
    assert close(open_image(torch.from_numpy(RGB)), RGB)
    assert close(open_image(GRAY), as_rgb(GRAY))
    assert close(open_image(GRAY[..., None]), as_rgb(GRAY))
    assert close(open_image(GRAY > 127), as_rgb((GRAY > 127) * 255))
    transparent = np.dstack([RGB, np.zeros_like(GRAY)])
    assert close(open_image(transparent), np.full_like(RGB, 255))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, bool, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
@pytest.mark.parametrize("shape", ["HW", "HW1", "1HW", "HW3", "3HW", "HW4", "4HW"])
def test_arrays_as_the_ecosystem_has_them(kind, make, shape):
    """scikit-image gives floats from 0 to 1, torch puts channels first."""
    values = RGB > 127 if kind is bool else RGB
    if "3" not in shape and "4" not in shape:
        values = values[..., 0]
    expected = np.broadcast_to(values.reshape(*RGB.shape[:2], -1), RGB.shape)
    if "4" in shape:  # opaque
        values = np.dstack([values, np.full(RGB.shape[:2], values.max())])
    if "1" in shape:
        values = values[..., None]
    if shape.endswith("HW") and len(shape) > 2:
        values = np.moveaxis(values, 2, 0)
    expected = expected * np.uint8(255) if kind is bool else expected
    array = values * np.uint16(257) if kind is np.uint16 else values
    array = (values / 255).astype(kind) if np.issubdtype(kind, np.floating) else array
    assert close(open_image(make(np.ascontiguousarray(array))), expected)


def test_tensors_of_a_training(tmp_path):
    tensor = torch.from_numpy(RGB).permute(2, 0, 1) / 255
    assert close(open_image(tensor.requires_grad_()), RGB)
    assert close(open_image(tensor.detach().bfloat16()), RGB, 1)


def test_urls(tmp_path):
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG")

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/face.png" else 404)
            self.end_headers()
            self.wfile.write(file.getvalue())

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        assert close(open_image(f"{address}/face.png"), RGB)
        with pytest.raises(ImageError, match=f"{address}/gone.png: cannot be downloaded .*404"):
            open_image(f"{address}/gone.png")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(ImageError, match="cannot be downloaded"):
        open_image(f"{address}/face.png", timeout=5)
    data = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    assert close(open_image(data), RGB)


def truncated(path, **options):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path, **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD = {
    "gone.jpg": (lambda path: None, "there is no such file"),
    "folder.jpg": (lambda path: path.mkdir(), "there is no such file"),
    "empty.jpg": (lambda path: path.write_bytes(b""), "the file is empty"),
    "text.jpg": (lambda path: path.write_text("a text"), "not an image in a format that is read"),
    "zeros.png": (lambda path: path.write_bytes(bytes(1000)), "not an image in a format that is read"),
    "head.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "cannot be read|not an image"),
    "cut.jpg": (truncated, "cannot be read, perhaps truncated"),
    "cut.png": (truncated, "cannot be read, perhaps truncated"),
    "cut.gif": (truncated, "cannot be read, perhaps truncated"),
    "cut.webp": (truncated, "cannot be read, perhaps truncated|not an image"),
    "cut.tiff": (truncated, "cannot be read, perhaps truncated|not an image"),
    "float.tiff": (lambda path: Image.new("F", (3, 3), 0.5).save(path), "floating point values"),
    "deep.tiff": (lambda path: Image.new("I", (3, 3), 70000).save(path), "beyond 16 bits"),
    "négatif ☃.tiff": (lambda path: Image.new("I", (3, 3), -1).save(path), "beyond 16 bits"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(tmp_path, name):
    make, message = BAD[name]
    make(tmp_path / name)
    with pytest.raises(ImageError, match=message) as caught:
        open_image(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize("side", [20, 30])  # up to twice the limit Pillow only warns
def test_a_decompression_bomb_is_refused_unopened(tmp_path, monkeypatch, side):
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(ImageError, match=r"bomb.png: more than 300 pixels, perhaps a decompression bomb"):
        open_image(tmp_path / "bomb.png")


@pytest.mark.parametrize(("ending", "limit"), [("png", 400), ("webp", 800), ("avif", 800), ("jp2", 1200)])
def test_the_limit_of_pixels_and_how_to_raise_it(tmp_path, monkeypatch, ending, limit):
    Image.new("RGB", (20, 20)).save(tmp_path / f"a.{ending}")
    monkeypatch.setenv("FER_PLL_MAX_PIXELS", str(limit))
    assert open_image(tmp_path / f"a.{ending}").size == (20, 20)
    monkeypatch.setenv("FER_PLL_MAX_PIXELS", str(limit - 1))
    with pytest.raises(ImageError, match=r"a\.\w+: 20 x 20 is more than 399 pixels, .* set .* FER_PLL_MAX_PIXELS"):
        open_image(tmp_path / f"a.{ending}")
    monkeypatch.delenv("FER_PLL_MAX_PIXELS")
    assert max_pixels() == MAX_PIXELS
    check_size(8160, 6120, "a photograph of 50 megapixels")
    for width, height in ((MAX_PIXELS + 1, 1), (float("nan"), 1), (float("inf"), 1)):
        with pytest.raises(ImageError, match=r"big: .* is more than 50,000,000 pixels"):
            check_size(width, height, "big")


def test_a_limit_above_that_of_pillow_is_the_users_to_set(tmp_path, monkeypatch):
    Image.new("1", (40, 40)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 300)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ImageError, match="more than 300 pixels"):
        open_image(tmp_path / "a.png")
    monkeypatch.setenv("FER_PLL_MAX_PIXELS", "1600")
    assert open_image(tmp_path / "a.png").size == (40, 40)


@pytest.mark.parametrize("given", ["many", "-1", "1e6", "1.5"])
def test_a_limit_that_is_no_number_is_an_error(monkeypatch, given):
    monkeypatch.setenv("FER_PLL_MAX_PIXELS", given)
    with pytest.raises(ValueError, match=f"FER_PLL_MAX_PIXELS is '{given}': give a whole number"):
        open_image(b"no image")


MEMORY = """
import ctypes, io, json, os
import numpy as np
import pillow_heif
from PIL import Image
from fer_pll.io.images import open_image

pillow_heif.register_heif_opener()
side = 3000
made = {"RGBA PNG": 1, "LA PNG": 1, "I;16 PNG": 1, "P PNG": 1, "P GIF": 1, "CMYK TIFF": 1, "RGB JPEG": 1, "RGB BMP": 1}
made |= {"L JPEG2000": 3, "RGBA JPEG2000": 3, "RGB WEBP": 2, "RGBA WEBP": 2, "RGBA AVIF": 2}
made |= {"RGB HEIF": 1, "RGBA HEIF": 2}
turned = Image.Exif()
turned[0x112] = 6
options = {"GIF": {"transparency": 3}, "TIFF": {"compression": "tiff_lzw"}, "JPEG": {"exif": turned}}
options |= {"WEBP": {"lossless": True, "method": 0}, "AVIF": {"speed": 10}, "PNG": {"exif": turned}}


def make(mode, kind, side):
    deep = mode == "I;16"
    image = Image.fromarray(np.full((side, side), 700, np.uint16)) if deep else Image.new(mode, (side, side))
    file = io.BytesIO()
    image.save(file, kind, **options.get(kind, {}))
    return file.getvalue()


def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024


def growth(name, copies):
    whole, little = (make(*name.split(), size) for size in (side, 50))
    open_image(little)
    ctypes.CDLL(None).malloc_trim(0)  # what is freed, but not given back, would not count
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    open_image(whole)
    return (peak() - before) / (3 * side**2) / copies


found = {}
for name, copies in made.items():  # each in a process of its own: what the one before left would change the measure
    read, write = os.pipe()
    if not os.fork():
        os.write(write, str(growth(name, copies)).encode())
        os._exit(0)
    os.close(write)
    os.wait()
    found[name] = float(os.read(read, 100))
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures by /proc")
@pytest.mark.long
def test_an_image_at_the_limit_takes_at_most_four_times_its_size():
    pytest.importorskip("pillow_heif")
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert len(found) == 15 and max(found.values()) < 4, found
    assert min(found.values()) > 0.3, found  # the measure works


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.full((5, 5, 3), 1.5), "floating point values from 1.5 to 1.5 have no known scale; give 0 to 1"),
        (np.full((5, 5), -0.1, np.float32), "floating point values from -0.1 to -0.1"),
        (np.full((5, 5), np.nan), "floating point values from nan"),
        (np.zeros((5, 5, 3), np.int64), "type int64"),
        (np.zeros((3, 5, 5), np.int64), "type int64"),
        (np.zeros((3, 40, 4), np.uint8), r"shape \(3, 40, 4\) may have its channels first or last"),
        (torch.zeros(1, 9, 3), r"shape \(1, 9, 3\) may have its channels first or last"),
        (np.zeros((2, 40, 40), np.uint8), r"shape \(2, 40, 40\)"),
        (12, "an object of type int"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (None, "NoneType"),
        ({"image": 1}, "dict"),
    ],
)
def test_other_things_are_refused(source, message):
    with pytest.raises(ImageError, match=message):
        open_image(source)


def test_what_was_opened_is_not_converted_again(tmp_path):
    """As on the way from `fer-pll predict` to the pipeline, which opens what it is given."""
    Image.fromarray(RGB).save(tmp_path / "a.jpg", quality=100)
    opened = open_image(tmp_path / "a.jpg")
    assert open_image(opened) is opened
    turned = Image.fromarray(RGB)
    turned.getexif()[274] = 6
    assert open_image(turned).size == turned.size[::-1]
    assert turned.size == RGB.shape[1::-1] and turned.getexif()[274] == 6  # the caller's image stays as it was
