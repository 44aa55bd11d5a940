"""The page of `fer-pll export --layout web` answers as Python does: in Chromium, and in Node with transformers.js."""

import base64
import functools
import http.server
import io
import json
import os
import subprocess
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

import fer_pll_cli
import npm
from browser import start_browser
from fer_pll import load_recognizer
from fer_pll.data.sources.synthetic.dataset import Drawing
from fer_pll.inference.web_export import RUNTIME_FILES

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

CROPS, PHOTOGRAPHS = 500, 50


def export(*argv) -> int:
    return fer_pll_cli.main(["export", "fer-pll-tiny-ferplus", "--layout", "web", *map(str, argv)])


def test_what_is_no_runtime_is_refused_before_anything_is_written(tmp_path, capsys):
    other = tmp_path / "other.tgz"
    with tarfile.open(other, "w:gz") as archive:
        archive.add(__file__, "package/dist/test.mjs")
    (tmp_path / "torn.tgz").write_bytes(other.read_bytes()[:40])
    for given, said in (
        ([], "npm pack onnxruntime-web@"),
        (["--runtime", tmp_path / "none.tgz"], "no such file"),
        (["--runtime", other], f"has no {RUNTIME_FILES[0]}"),
        (["--runtime", tmp_path / "torn.tgz"], "cannot be read"),
        (["--runtime", tmp_path, "--dtype", "int8"], "leave it out"),
    ):
        assert export("--out", tmp_path / "page", *given) != 0
        assert said in capsys.readouterr().err
    assert not (tmp_path / "page").exists()
    assert fer_pll_cli.main(["export", "fer-pll-tiny-ferplus", "--runtime", str(other), "--out", str(tmp_path / "x")])
    assert "--layout web" in capsys.readouterr().err


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    if reason := npm.missing_programs():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("web") / "page"
    assert export("--runtime", npm.fetch_runtime(), "--out", folder) == 0
    return folder


@pytest.fixture(scope="module")
def recognize():
    return load_recognizer(device="cpu")


@pytest.fixture(scope="module")
def crops() -> list[Image.Image]:
    return [Image.open(io.BytesIO(Drawing("test", k, image_size=48)())).convert("L") for k in range(CROPS)]


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Of one face, turned, scaled, mirrored and lit differently, in color."""
    rng = np.random.default_rng(0)
    portrait = Image.fromarray(astronaut()).crop((60, 0, 400, 340))
    made = []
    for number in range(PHOTOGRAPHS):
        image = portrait.rotate(rng.uniform(-25, 25), Image.Resampling.BICUBIC)
        width = int(rng.integers(180, 330))
        image = image.resize((width, int(width * rng.uniform(0.9, 1.1))), Image.Resampling.BICUBIC)
        pixels = np.asarray(image, dtype=float)[:, :: -1 if number % 2 else 1] * rng.uniform(0.6, 1.2)
        made.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return made


def as_png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def check(answers: np.ndarray, expected: np.ndarray) -> None:
    assert answers.shape == expected.shape
    assert (answers.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.99
    assert np.abs(answers - expected).max() <= 0.02


class _Host(http.server.SimpleHTTPRequestHandler):
    """Any static host; it keeps what was asked for."""

    asked: list[tuple[str, str]]

    def log_message(self, *args) -> None:
        self.asked.append((self.command, self.path))


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    browser = start_browser(tmp_path_factory.mktemp("browser"), "1200,1000")
    browser.set_script_timeout(900)
    _Host.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Host, directory=str(page)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser.get(f"http://127.0.0.1:{server.server_port}/")
    assert in_page(browser, "await window.ferPll.ready; return 'ready'") == "ready"
    yield browser
    browser.quit()
    server.shutdown()


def in_page(browser, body: str, *arguments):
    """What an async function in the page returns; `given` are its arguments."""
    script = f"const done = arguments[arguments.length - 1]; (async (given) => {{ {body} }})(arguments[0])"
    answer = browser.execute_async_script(
        script + ".then((value) => done({ value }), (error) => done({ error: String(error) }));", list(arguments)
    )
    assert "error" not in answer, answer["error"]
    return answer["value"]


BYTES = """const blob = (text) =>
    new Blob([Uint8Array.from(atob(text), (character) => character.charCodeAt(0))], { type: 'image/png' });"""


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_crops_in_chromium(browser, crops, recognize):
    body = (
        BYTES
        + """
        const images = [];
        for (const text of given[0]) images.push(await window.ferPll.pixels(blob(text)));
        return window.ferPll.recognizer().classify(images);"""
    )
    answers = [row for k in range(0, CROPS, 50) for row in in_page(browser, body, [*map(as_png, crops[k : k + 50])])]
    check(np.array(answers), np.concatenate([recognize.probabilities(crops[k : k + 50]) for k in range(0, CROPS, 50)]))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_photographs_in_chromium(browser, photographs, recognize):
    body = (
        BYTES
        + """
        const faces = await window.ferPll.open(blob(given[0]));
        return faces.map(({ box, landmarks, expressions }) => ({ box, landmarks, expressions }));"""
    )
    classes = [recognize.model.config.id2label[k] for k in range(8)]
    answers, expected = [], []
    for photograph in photographs:
        theirs, ours = in_page(browser, body, as_png(photograph)), recognize(photograph)
        assert len(theirs) == len(ours)
        for there, here in zip(theirs, ours, strict=True):
            np.testing.assert_allclose(there["box"], list(here["box"].values()), atol=0.1)
            np.testing.assert_allclose(there["landmarks"], here["landmarks"], atol=0.1)
            for face, rows in ((there, answers), (here, expected)):
                scores = {each["label"]: each["score"] for each in face["expressions"]}
                rows.append([scores[name] for name in classes])
    assert len(expected) >= PHOTOGRAPHS
    check(np.array(answers), np.array(expected))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_visitor_sees_the_answers_and_sends_nothing(browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    Image.fromarray(astronaut()).save(tmp_path / "astronaut.png")
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "astronaut.png"))
    WebDriverWait(browser, 300).until(lambda opened: opened.find_elements(By.CLASS_NAME, "face"))
    (card,) = browser.find_elements(By.CLASS_NAME, "face")
    assert card.find_element(By.TAG_NAME, "dt").text == "happiness"
    WebDriverWait(browser, 60).until(lambda opened: opened.find_element(By.ID, "status").text == "1 face")
    (tmp_path / "none.png").write_bytes(b"no image")
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "none.png"))
    WebDriverWait(browser, 60).until(lambda opened: "cannot be opened" in opened.find_element(By.ID, "status").text)
    if folder := os.environ.get("FER_PLL_SCREENSHOTS"):
        browser.save_screenshot(str(Path(folder) / "web.png"))
    # All that the page asked for are its own files, and nothing was sent.
    assert {method for method, _ in _Host.asked} == {"GET"}
    origin = browser.current_url
    names = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert names and all(name.startswith((origin, "data:", "blob:")) for name in names)
    assert browser.get_log("browser") == []


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", ["fp32", "q8"])
def test_crops_in_transformers_js(page, crops, recognize, tmp_path, dtype):
    installed = npm.fetch_transformers_js()
    for number, crop in enumerate(crops):
        crop.save(tmp_path / f"{number:03}.png")
    script = installed / "classify.mjs"
    script.write_text("""
        import { env, pipeline } from "@huggingface/transformers";
        const [parent, name, dtype, images, count] = process.argv.slice(2);
        env.localModelPath = parent;
        env.allowRemoteModels = false;
        const classify = await pipeline("image-classification", name, { dtype });
        const answers = [];
        for (let k = 0; k < +count; k++) {
          answers.push(await classify(`${images}/${String(k).padStart(3, "0")}.png`, { top_k: 100 }));
        }
        console.log(JSON.stringify(answers));
    """)
    command = ["node", script, page.parent, page.name, dtype, tmp_path, str(CROPS)]
    said = subprocess.run(command, cwd=installed, check=True, capture_output=True, text=True, timeout=900).stdout
    classes = [recognize.model.config.id2label[k] for k in range(8)]
    rows = [{each["label"]: each["score"] for each in answer} for answer in json.loads(said.splitlines()[-1])]
    answers = np.array([[row[name] for name in classes] for row in rows])
    expected = np.concatenate([recognize.probabilities(crops[k : k + 50]) for k in range(0, CROPS, 50)])
    if dtype == "fp32":
        check(answers, expected)
    else:
        assert (answers.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.98
