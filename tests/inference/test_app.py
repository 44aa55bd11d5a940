"""The page of `fer-pll app`: answers as from Python, in Chromium with a webcam, and messages about hostile files."""

import json
import math
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage.data import astronaut

import fer_pll_cli
from browser import start_browser
from fer_pll import load_recognizer
from fer_pll.inference.app import _Answers, _Models, _open, _Watcher
from fer_pll.io.errors import DataError
from fer_pll.io.shipped import DEFAULT_NAME
from fer_pll.model.face_detection import load_detector
from gradio_beside import ask, served
from videos import place, write_frames

ROOT = Path(__file__).parents[2]

# Prints what the page answers to a file, or the message that it has for it.
PREDICT = """
import json, sys
from gradio_client import Client, handle_file
client = Client(sys.argv[1], verbose=False)
answers = []
for file in sys.argv[3:]:
    try:
        picture, crops, bars, *_ = client.predict(handle_file(file), sys.argv[2], api_name="/photograph")
        bars = {each["label"]: each["confidence"] for each in (bars or {}).get("confidences") or []}
        answers.append({"crops": len(crops), "bars": bars})
    except Exception as error:
        answers.append(str(error))
print(json.dumps(answers))
"""
VIDEO = """
import json, sys
from gradio_client import Client, handle_file
client = Client(sys.argv[1], verbose=False)
video = {"path": handle_file(sys.argv[3]), "meta": {"_type": "gradio.FileData"}}
print(json.dumps(client.predict(handle_file(sys.argv[3]), sys.argv[2], 1, api_name="/video")))
"""


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    return Image.fromarray(astronaut())


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert fer_pll_cli.main(["app"]) == 1
    assert "pip install 'fer-pll[app]'" in capsys.readouterr().err


def test_only_who_sits_at_the_machine_can_name_any_model():
    with pytest.raises(DataError, match=f"choose one of {DEFAULT_NAME}"):
        _Models([DEFAULT_NAME], any_model=False)(str(ROOT))
    with pytest.raises(DataError, match=r"has no config\.json"):
        _Models([DEFAULT_NAME], any_model=True)(str(ROOT))


def test_an_upload_is_never_an_address(tmp_path):
    for source in ("http://127.0.0.1:1/face.png", "file:///etc/passwd", str(tmp_path)):
        with pytest.raises(DataError, match="there is no such file"):
            _open(source)


def test_photographs_and_frames_are_answered_as_from_python(photograph):
    models = _Models([DEFAULT_NAME], any_model=False)
    expected = load_recognizer(device="cpu")(photograph)
    answers = _Answers(models, load_detector("retinaface"))
    seen = _Watcher(models(DEFAULT_NAME), answers.detector).photograph(photograph)
    assert [face["expressions"] for face in seen.faces] == [face["expressions"] for face in expected]
    assert [crop.size for crop in seen.crops] == [(48, 48)]
    state = (DEFAULT_NAME, seen, 0)
    assert answers.choose(1, state) == (None, None, state)  # there is no second face
    assert answers.why(state).size[0] > 4 * 192

    watcher = _Watcher(models(DEFAULT_NAME), answers.detector)
    first, second = watcher.frame(photograph), watcher.frame(photograph)
    assert [face["person"] for face in (*first.faces, *second.faces)] == [0, 0]
    assert first.faces[0]["expressions"][0] == pytest.approx(expected[0]["expressions"][0], abs=1e-6)


def test_an_answer_that_is_nan_does_not_end_the_webcam(photograph):
    model = _Models([DEFAULT_NAME], any_model=False)(DEFAULT_NAME)
    broken = iter([True])

    def probabilities(crops: list[Image.Image]) -> np.ndarray:
        return model.classifier.probabilities(crops) * (np.nan if next(broken, False) else 1)

    watcher = _Watcher(
        model._replace(classifier=model.classifier._replace(probabilities=probabilities)), load_detector("retinaface")
    )
    with pytest.raises(ValueError, match="NaN"):
        watcher.frame(photograph)
    assert len(watcher.frame(photograph).faces) == 1


@pytest.fixture(scope="module")
def files(tmp_path_factory, photograph) -> Path:
    folder = tmp_path_factory.mktemp("files")
    photograph.save(folder / "astronaut.png")
    Image.new("RGB", (64, 64)).save(folder / "black.png")
    whole = (folder / "astronaut.png").read_bytes()
    (folder / "torn.png").write_bytes(whole[: len(whole) // 2])
    (folder / "page.png").write_bytes(b"<script>alert(1)</script>")
    Image.new("1", (12_000, 12_000)).save(folder / "bomb.png")
    return folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    """Where the page keeps its files."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def page(tmp_path_factory, scratch):
    folder = tmp_path_factory.mktemp("app")
    command = ("-m", "fer_pll_cli", "app")
    with served(*command, log=folder / "log", cwd=folder, TMPDIR=str(scratch)) as address:
        yield address
    assert not list(scratch.glob("fer-pll-*"))  # they are gone with it


def raw_call(page: str, path: str) -> str:
    """What the page answers where somebody names a file of the machine that serves it, instead of an upload."""
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, DEFAULT_NAME]
    body = json.dumps({"data": data}).encode()
    request = urllib.request.Request(f"{page}gradio_api/call/photograph", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{page}gradio_api/call/photograph/{event}") as answer:
        return answer.read().decode()


@pytest.mark.long
def test_files_that_are_no_photographs_get_a_message(page, files):
    names = ("astronaut.png", "black.png", "torn.png", "page.png", "bomb.png")
    good, black, torn, text, bomb = json.loads(ask(PREDICT, page, DEFAULT_NAME, *(files / name for name in names)))
    expected = {
        each["label"]: each["score"] for each in load_recognizer(device="cpu")(files / names[0])[0]["expressions"]
    }
    assert good["crops"] == 1 and good["bars"] == pytest.approx(expected, abs=1e-6)
    assert black == {"crops": 0, "bars": {}}
    assert torn.startswith("torn.png: cannot be read, perhaps truncated")
    assert text.startswith("page.png: not an image in a format that is read")
    assert bomb.startswith("bomb.png: ") and "decompression bomb" in bomb
    (other,) = json.loads(ask(PREDICT, page, str(ROOT / "none"), files / names[0]))
    assert "there is no such folder" in other
    said = raw_call(page, str(files / names[0]))  # it is an image, but nobody has uploaded it
    assert "error" in said and "happiness" not in said
    with urllib.request.urlopen(page) as answer:  # it still answers
        assert answer.status == 200


@pytest.mark.long
def test_a_video_is_marked_charted_and_listed(page, files):
    video = write_frames(files / "talk.mp4", (place(10 + k, 5, 0.8, (480, 360)) for k in range(12)))
    note, film, chart, table = json.loads(ask(VIDEO, page, DEFAULT_NAME, video))
    assert note == f"12 frames, {DEFAULT_NAME}"
    assert Path(film["video"] if isinstance(film, dict) else film).stat().st_size > 1000
    assert Image.open(chart).width > 300
    rows = pd.read_csv(table)
    assert rows["file"].unique().tolist() == ["talk.mp4"] and rows["person"].tolist() == [0] * 12


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory, photograph):
    folder = tmp_path_factory.mktemp("chromium")
    with (folder / "camera.mjpeg").open("wb") as film:
        for k in range(50):  # around a circle
            frame = Image.new("RGB", (640, 480), (60, 70, 80))
            place = 80 + 40 * math.cos(k * math.tau / 50), 20 * math.sin(k * math.tau / 50)
            frame.paste(photograph.crop((30, 0, 510, 480)), tuple(map(round, place)))
            frame.save(film, "JPEG", quality=90)
    flags = (
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={folder / 'camera.mjpeg'}",
    )
    browser = start_browser(folder / "profile", "1100,1400", flags=flags)
    browser.get(page)
    yield browser
    others = browser.execute_script(
        "return performance.getEntriesByType('resource').map((entry) => entry.name)"
        ".filter((name) => !name.startsWith(location.origin))"
    )
    assert others == []  # no fonts, no counters
    kept = browser.execute_script("return Object.entries(localStorage)")
    assert not any("history" in name.lower() or "data:image" in value for name, value in kept)
    browser.quit()


def wait_for(condition, seconds: float = 90) -> None:
    from selenium.common.exceptions import WebDriverException

    end = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except WebDriverException:  # not there yet, or made anew meanwhile
            pass
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.long
def test_a_photograph_in_chromium(browser, files):
    from selenium.webdriver.common.by import By

    wait_for(lambda: browser.find_element(By.CSS_SELECTOR, "#photograph input[type=file]"))
    upload = browser.find_element(By.CSS_SELECTOR, "#photograph input[type=file]")
    upload.send_keys(str(files / "astronaut.png"))
    wait_for(lambda: "happiness" in browser.find_element(By.ID, "bars").text)
    for name in ("neutral", "contempt", "disgust", "anger", "fear", "sadness", "surprise"):
        assert name in browser.find_element(By.ID, "bars").text
    assert len(browser.find_elements(By.CSS_SELECTOR, "#crops img")) == 1
    assert "not a feeling" in browser.find_element(By.ID, "limits").text
    browser.find_element(By.ID, "why").click()
    wait_for(lambda: browser.find_element(By.CSS_SELECTOR, "#heat-maps img").get_attribute("naturalWidth") > "700")


# Collects the images that the page shows.
COUNT = """
window.shown = new Set();
const live = document.getElementById("live");
const note = () => live.querySelectorAll("img").forEach((image) => shown.add(image.src));
new MutationObserver(note).observe(live, {subtree: true, childList: true, attributes: true});
"""


@pytest.mark.long
def test_a_webcam_in_chromium(browser, scratch, capsys):
    from selenium.webdriver.common.by import By

    wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, "button[role=tab]"))
    next(tab for tab in browser.find_elements(By.CSS_SELECTOR, "button[role=tab]") if tab.text == "Webcam").click()
    access = "//*[@id='camera']//*[contains(text(), 'Access Webcam')]"
    wait_for(lambda: browser.find_element(By.XPATH, access).click() is None)
    record = (By.CSS_SELECTOR, "#camera .capture-button, #camera button[aria-label='capture photo']")
    wait_for(lambda: browser.find_element(*record).click() is None)
    wait_for(lambda: "happiness" in browser.find_element(By.ID, "live-bars").text)
    files = sorted(scratch.rglob("*"))
    browser.execute_script(COUNT)
    start = time.monotonic()
    wait_for(lambda: browser.execute_script("return shown.size") >= 5)
    time.sleep(10)
    rate = browser.execute_script("return shown.size") / (time.monotonic() - start)
    with capsys.disabled():
        print(f"\nwebcam: {rate:.1f} frames/s")
    assert all(each.startswith("data:image/jpeg") for each in browser.execute_script("return [...shown]"))
    assert sorted(scratch.rglob("*")) == files  # frames are kept nowhere
    crop = browser.find_element(By.CSS_SELECTOR, "#live-crop img")
    assert crop.get_attribute("naturalWidth") == "192"
