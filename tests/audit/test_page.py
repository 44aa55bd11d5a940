"""The page of the audit in a real browser: what a user does with it."""

import base64
import csv
import io
import re
import time

import numpy as np
import pytest
from datasets import DatasetDict
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from browser import start_browser
from fer_pll import ConfidenceTable
from fer_pll.audit.label_audit import LabelAudit
from fer_pll.audit.page import write_page
from fer_pll.audit.row_heat_maps import RowHeatMaps
from fer_pll.data.corrections import apply_corrections
from fer_pll.labels.candidates import dataset_fingerprint
from tiny import CLASSES, make_dataset

HOSTILE = '</script><img src=x onerror="window.hacked=1">'


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(tmp_path_factory, downloads):
    browser = start_browser(
        tmp_path_factory.mktemp("browser"), "1280,900", {"download.default_directory": str(downloads)}
    )
    yield browser
    browser.quit()


def make_audit(rows, names=CLASSES, seed=0) -> LabelAudit:
    """Of rows with candidate sets, and confidences drawn at random inside them."""
    candidates = np.array(rows["candidates"][:])
    confidence = np.random.default_rng(seed).random(candidates.shape) ** 4 * candidates
    confidence[confidence < 0.05] = 0
    confidence[np.arange(len(rows)), candidates.argmax(axis=1)] += 1e-6
    confidence /= confidence.sum(axis=1, keepdims=True)
    fingerprint = dataset_fingerprint(names, rows["row_id"][:], candidates)
    table = ConfidenceTable.from_candidates(candidates, names, fingerprint, "column", confidence=confidence)
    return LabelAudit.from_run_rows(rows, table)


@pytest.fixture(scope="module")
def rows():
    return make_dataset(200)


@pytest.fixture(scope="module")
def audit(rows):
    return make_audit(rows)


@pytest.fixture(scope="module")
def html(audit, rows):
    return write_page(audit, rows.select_columns("image"), "run", 1000)


@pytest.fixture
def page(html, audit, tmp_path):
    """Address of the page, with a fingerprint of its own: marks are kept under it, so another test's are not there."""
    path = tmp_path / "audit.html"
    path.write_text(html.replace(audit.table.fingerprint, tmp_path.name), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def opened(browser, page):
    browser.get(page)
    yield browser
    assert browser.get_log("browser") == []  # no script error, nothing refused


def in_view(browser) -> list[str]:
    """The row_ids in their order, shown or not."""
    return browser.execute_script("return view.map((row) => ids[row])")


def shown(browser):
    """The rows in the document, from the top."""
    found = browser.find_elements(By.CLASS_NAME, "row")
    return sorted(found, key=lambda row: int(row.get_attribute("aria-rowindex")))


def press(browser, keys: str) -> None:
    for key in keys:
        browser.switch_to.active_element.send_keys(key)


def choose(browser, name: str, value: str) -> None:
    Select(browser.find_element(By.ID, name)).select_by_value(value)


def status(browser) -> str:
    return browser.find_element(By.ID, "status").text


def test_rows_show_image_votes_and_candidates_with_the_struck_out_ones_marked(opened, audit, rows):
    assert in_view(opened) == [audit.row_ids[i] for i in audit.order]
    assert len(shown(opened)) < 20  # of 200: only those in sight
    for place, row in enumerate(shown(opened)[:4]):
        i = int(audit.order[place])
        assert row.find_element(By.CLASS_NAME, "id").text == audit.row_ids[i]
        expected = CLASSES[audit.given[i]]
        if audit.given[i] != audit.believed[i]:
            expected += f" → {CLASSES[audit.believed[i]]}"
        assert row.find_element(By.CLASS_NAME, "labels").text == expected
        assert f"suspicion {audit.score[i]:.2f}" in row.text
        struck = [name.text for name in row.find_elements(By.CLASS_NAME, "struck")]
        assert struck == [name for name, out in zip(CLASSES, audit.struck_out[i], strict=True) if out]
        alive = [name.text for name in row.find_elements(By.CLASS_NAME, "candidate")]
        assert {*alive, *struck} == {CLASSES[k] for k in np.flatnonzero(audit.table.candidates[i])}
        votes = [int(bar.text or 0) for bar in row.find_elements(By.CSS_SELECTOR, ".bar.votes")]
        assert votes == audit.votes[i].tolist()
        # The image is this row's: its bright half tells the class.
        face = row.find_element(By.CLASS_NAME, "face").screenshot_as_png
        pixels = np.asarray(Image.open(io.BytesIO(face)).convert("L").resize((120, 120)), dtype=float)
        halves = [pixels[:, :60], pixels[:, 60:], pixels[:60], pixels[60:]]
        assert np.argmax([half.mean() for half in halves]) == rows[i]["true_label"]


def test_search_filters_and_sorting(opened, audit):
    number = np.arange(len(audit.given))
    opened.find_element(By.ID, "search").send_keys("ROW:19")
    WebDriverWait(opened, 10).until(lambda browser: len(in_view(browser)) == 11)
    assert set(in_view(opened)) == {"row:19", *(f"row:19{i}" for i in range(10))}
    assert status(opened).startswith("11 of 200 rows")
    press(opened, Keys.BACKSPACE * 6)
    WebDriverWait(opened, 10).until(lambda browser: len(in_view(browser)) == 200)

    choose(opened, "pair", "differ")
    assert set(in_view(opened)) == {f"row:{i}" for i in number[audit.given != audit.believed]}
    given, believed, count, _ = audit.pairs()[0]
    choose(opened, "pair", f"{given} {believed}")
    option = Select(opened.find_element(By.ID, "pair")).first_selected_option.text
    assert option == f"{CLASSES[given]} → {CLASSES[believed]} ({count})" and len(in_view(opened)) == count
    choose(opened, "pair", "")

    choose(opened, "sort", "id")
    assert in_view(opened) == sorted(audit.row_ids)
    choose(opened, "sort", "disputed")
    shares = audit.votes[number, audit.given] / audit.votes.sum(axis=1)
    assert [shares[int(name[4:])] for name in in_view(opened)] == sorted(shares)
    opened.execute_script("const least = $('least'); least.value = 500; least.dispatchEvent(new Event('input'))")
    expected = {f"row:{i}" for i in number[(audit.score * 1000).round() >= 500]}
    WebDriverWait(opened, 10).until(lambda browser: set(in_view(browser)) == expected)
    opened.execute_script("const least = $('least'); least.value = 1000; least.dispatchEvent(new Event('input'))")
    WebDriverWait(opened, 10).until(lambda browser: browser.find_element(By.ID, "none").is_displayed())


def test_marks_by_keyboard_survive_a_reload_and_correct_the_data(opened, page, audit, rows, downloads, tmp_path):
    first = [audit.row_ids[i] for i in audit.order[:8]]
    press(opened, [Keys.ESCAPE, "k", "r", "4", "d", Keys.ARROW_DOWN, "d", Keys.ARROW_UP, "u"])
    mark = CLASSES[audit.believed[audit.order[1]]]
    expected = [
        [first[0], "keep", ""],
        [first[1], "relabel", mark],
        [first[2], "relabel", "bottom"],
        [first[3], "drop", ""],
    ]
    expected.append([first[5], "drop", ""])
    # `d` moved on to the seventh row, the arrow back to the sixth, `u` took its mark away.
    expected.pop()
    assert "4 marked" in status(opened)
    row = shown(opened)[4]
    row.find_element(By.CLASS_NAME, "drop").click()
    Select(shown(opened)[6].find_element(By.TAG_NAME, "select")).select_by_value("left")
    expected += [[first[4], "drop", ""], [first[6], "relabel", "left"]]

    opened.get(page)  # at once: every mark is written when it is made
    assert "6 marked" in status(opened)
    assert [row.get_attribute("data-mark") for row in shown(opened)[:4]] == ["keep", "relabel", "relabel", "drop"]
    choose(opened, "marked", "drop")
    assert in_view(opened) == [first[3], first[4]]
    opened.find_element(By.ID, "download").click()
    path = downloads / "marks.csv"
    WebDriverWait(opened, 10).until(lambda _: path.is_file() and path.stat().st_size)
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [["row_id", "mark", "label"], *expected]
    corrected, report = apply_corrections(DatasetDict(train=rows), path)
    path.unlink()
    assert "3 relabeled, 2 dropped, 1 kept" in report
    labels = dict(zip(corrected["train"]["row_id"], corrected["train"]["label"], strict=True))
    assert len(labels) == 198 and labels[first[2]] == CLASSES.index("bottom")


def test_a_decision_by_mouse_brings_the_next_row_that_needs_one(opened, audit):
    choose(opened, "pair", "differ")
    order = [int(name[4:]) for name in in_view(opened)]

    def decide(place: int, button: str) -> int:
        """Click, and return the place of the row that has the focus afterwards."""
        row = opened.find_element(By.CSS_SELECTOR, f'.row[data-place="{place}"]')
        row.find_element(By.CLASS_NAME, button).click()
        return int(opened.switch_to.active_element.get_attribute("data-place"))

    first = shown(opened)[0]
    assert first.find_element(By.CLASS_NAME, "accept").text == f"Accept {CLASSES[audit.believed[order[0]]]}"
    assert decide(1, "keep") == 2 and decide(2, "drop") == 3
    assert decide(0, "accept") == 3  # the two after it have their marks
    marks = opened.execute_script("return view.slice(0, 4).map((row) => marks.get(ids[row]) || null)")
    assert marks == [["relabel", CLASSES[audit.believed[order[0]]]], ["keep"], ["drop"], None]
    pressed = opened.find_elements(By.CSS_SELECTOR, '.row[data-place="0"] [aria-pressed=true]')
    assert [button.text for button in pressed] == [f"Accept {CLASSES[audit.believed[order[0]]]}"]
    assert decide(0, "accept") == 0 and "2 marked" in status(opened)  # taken away again
    Select(opened.switch_to.active_element.find_element(By.TAG_NAME, "select")).select_by_value("left")
    assert opened.switch_to.active_element.get_attribute("data-place") == "3" and "3 marked" in status(opened)

    choose(opened, "pair", "")
    choose(opened, "sort", "trusted")  # the label of these rows is the one believed
    assert audit.given[int(in_view(opened)[0][4:])] == audit.believed[int(in_view(opened)[0][4:])]
    press(opened, [Keys.ESCAPE, Keys.HOME])
    assert not opened.find_elements(By.CSS_SELECTOR, '.row[data-place="0"] .accept')
    last = len(audit.given) - 1
    press(opened, [Keys.END, "k"])  # nothing follows
    assert opened.switch_to.active_element.get_attribute("data-place") == str(last)


def test_marks_made_in_another_tab_show(opened, page):
    first = opened.current_window_handle
    opened.switch_to.new_window("tab")
    opened.get(page)
    press(opened, ["k"])
    second = opened.current_window_handle
    opened.switch_to.window(first)
    WebDriverWait(opened, 10).until(lambda browser: "1 marked" in status(browser))
    assert shown(opened)[0].get_attribute("data-mark") == "keep"
    opened.switch_to.window(second)
    opened.execute_script("localStorage.clear()")
    opened.close()
    opened.switch_to.window(first)
    WebDriverWait(opened, 10).until(lambda browser: "0 marked" in status(browser))
    assert not shown(opened)[0].get_attribute("data-mark")


def test_keys_do_not_mark_while_one_types_and_the_focus_follows(opened):
    press(opened, ["/", "d", "k", "r"])
    assert opened.switch_to.active_element.get_attribute("id") == "search" and "0 marked" in status(opened)
    WebDriverWait(opened, 10).until(lambda browser: in_view(browser) == [])
    press(opened, [Keys.BACKSPACE] * 3)
    WebDriverWait(opened, 10).until(lambda browser: len(in_view(browser)) == 200)
    press(opened, [Keys.ESCAPE, Keys.END])
    opened.execute_script("applyFilters()")  # the rows are made anew
    assert opened.switch_to.active_element.get_attribute("aria-rowindex") == "200"
    press(opened, [Keys.HOME, Keys.PAGE_DOWN])
    assert int(opened.switch_to.active_element.get_attribute("aria-rowindex")) > 3
    press(opened, ["?"])
    assert opened.find_element(By.ID, "help").is_displayed()
    press(opened, ["d", Keys.ESCAPE])
    assert not opened.find_element(By.ID, "help").is_displayed() and "0 marked" in status(opened)


def test_what_the_data_hold_is_text_and_nothing_is_fetched(browser, downloads, tmp_path):
    names = [HOSTILE, "{{sheets}}", 'a "b", c', "<!--"]
    rows = make_dataset(6)
    ids = [HOSTILE, "{{data}}", 'with "quotes", and\na line', "\u2028", "<!-- <script>", "__proto__"]
    rows = rows.remove_columns("row_id").add_column("row_id", ids)
    audit = make_audit(rows, names)
    html = write_page(audit, rows.select_columns("image"), HOSTILE, 1000)
    assert "<img" not in html and not re.search(r"https?:", html)
    path = tmp_path / "audit.html"
    path.write_text(html, encoding="utf-8")
    browser.get(path.as_uri())
    assert browser.execute_script("return window.hacked") is None
    assert browser.find_elements(By.TAG_NAME, "img") == []
    assert browser.title == f"Label audit: {HOSTILE}"
    assert in_view(browser) == [ids[i] for i in audit.order]
    fetched = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith("blob:") for name in fetched)
    # A script that got into the page nevertheless would not run.
    browser.execute_script(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'hacked = 1'}))"
    )
    assert browser.execute_script("return window.hacked") is None
    assert "Content Security Policy" in "".join(entry["message"] for entry in browser.get_log("browser"))

    browser.execute_script("goTo(0)")
    press(browser, "1" * 6)
    browser.find_element(By.ID, "download").click()
    marks = downloads / "marks.csv"
    WebDriverWait(browser, 10).until(lambda _: marks.is_file() and marks.stat().st_size)
    with marks.open(newline="", encoding="utf-8") as file:
        assert {tuple(line) for line in csv.reader(file)} == {
            ("row_id", "mark", "label"),
            *((name, "relabel", HOSTILE) for name in ids),
        }
    marks.unlink()


def test_the_page_shows_the_most_suspicious_rows_of_a_large_set(audit, rows):
    html = write_page(audit, rows.select_columns("image"), "run", 70)
    sheets = re.findall(r'<script type="text/plain" id="sheet-(\d+)">([^<]*)</script>', html)
    assert [number for number, _ in sheets] == ["0", "1"]
    sizes = [Image.open(io.BytesIO(base64.b64decode(sheet))).size for _, sheet in sheets]
    assert sizes == [(128, 128), (128, 16)]  # 16 px an image, eight in a line
    assert '"total":200' in html and audit.row_ids[audit.order[69]] in html


@pytest.mark.long
def test_30_000_rows_open_scroll_and_filter_quickly(browser, tmp_path):
    rows = make_dataset(1000)
    many = rows.select(np.arange(30_000) % 1000)
    many = many.remove_columns("row_id").add_column("row_id", [f"row:{i}" for i in range(30_000)])
    path = tmp_path / "audit.html"
    path.write_text(write_page(make_audit(many), many.select_columns("image"), "run", 30_000), encoding="utf-8")
    started = time.perf_counter()
    browser.get(path.as_uri())
    assert time.perf_counter() - started < 10
    assert len(shown(browser)) < 20
    slowest = browser.execute_script("""
        const times = [];
        function time(what) {
            const begun = performance.now();
            what();
            list.offsetHeight;  // lays out
            times.push(performance.now() - begun);
        }
        for (const share of [0.9, 0.1, 0.5]) time(() => { list.scrollTop = share * list.scrollHeight; render(); });
        for (const sort of Object.keys(SORTS)) time(() => { $("sort").value = sort; applyFilters(); });
        time(() => { $("pair").value = "differ"; applyFilters(); });
        return Math.max(...times);
    """)
    assert slowest < 1000  # milliseconds


def test_why_shows_what_speaks_for_the_given_and_the_believed_label(browser, audit, rows, tmp_path):
    differ = int(np.flatnonzero((audit.given != audit.believed)[audit.order[:20]])[0])
    values = np.zeros((20, 2, 8, 8), np.float32)
    values[:, 0, :4], values[:, 1, 4:] = 0.5, -0.25  # the upper half for the given, the lower against the believed
    why = RowHeatMaps(values, [(16, 16)] * 19 + [(16, 8)])
    html = write_page(audit, rows.select_columns("image"), "run", 1000, why)
    assert len(html) < len(write_page(audit, rows.select_columns("image"), "run", 1000)) + 20 * 2 * 64 * 2
    path = tmp_path / "audit.html"
    path.write_text(html.replace(audit.table.fingerprint, tmp_path.name), encoding="utf-8")
    browser.get(path.as_uri())

    row = browser.find_element(By.CSS_SELECTOR, f'.row[data-place="{differ}"]')
    row.find_element(By.CLASS_NAME, "why-button").click()
    WebDriverWait(browser, 30).until(lambda opened: len(opened.find_elements(By.CSS_SELECTOR, "[data-drawn]")) == 2)
    i = audit.order[differ]
    captions = [each.text for each in browser.find_elements(By.CSS_SELECTOR, "#why figcaption")]
    assert captions == [f"{CLASSES[audit.given[i]]} (given)", f"{CLASSES[audit.believed[i]]} (believed)"]
    canvases = [each.screenshot_as_png for each in browser.find_elements(By.CSS_SELECTOR, "#why canvas")]
    given, believed = (np.asarray(Image.open(io.BytesIO(each)).convert("RGB"), dtype=int) for each in canvases)
    red, blue = given[..., 0] - given[..., 2], believed[..., 2] - believed[..., 0]
    middle = len(red) // 2
    assert red[10 : middle - 40].mean() > 60 and abs(red[middle + 40 : -10]).mean() < 8
    assert blue[middle + 40 : -10].mean() > 20 and abs(blue[10 : middle - 40]).mean() < 8

    press(browser, [Keys.ESCAPE])
    assert not browser.find_element(By.ID, "why").is_displayed()
    browser.execute_script("goTo(19)")
    press(browser, ["w"])  # of an image that is not square: no color on the bands around it
    WebDriverWait(browser, 30).until(lambda opened: opened.find_elements(By.CSS_SELECTOR, "[data-drawn]"))
    canvas = browser.find_element(By.CSS_SELECTOR, "#why canvas").screenshot_as_png
    pixels = np.asarray(Image.open(io.BytesIO(canvas)).convert("RGB"), dtype=int)
    assert (
        abs(pixels[5:50, :, 0] - pixels[5:50, :, 2]).mean() < 8
        and (pixels[75:120, :, 0] - pixels[75:120, :, 2]).mean() > 60
    )
    press(browser, [Keys.ESCAPE])
    browser.execute_script("goTo(20)")
    assert not shown(browser)[-1].find_elements(By.CLASS_NAME, "why-button")  # beyond the rows that have maps
    press(browser, ["w"])
    assert not browser.find_element(By.ID, "why").is_displayed()
    assert browser.get_log("browser") == []
