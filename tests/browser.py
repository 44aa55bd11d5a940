"""A Chromium without a window, for the tests of pages."""

import os
import shutil
from pathlib import Path

import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip


def start_browser(profile: Path, window: str, prefs: dict[str, str] | None = None, flags: tuple[str, ...] = ()):
    """A driver of Chromium with a window of such a size (`"1280,900"`) and more flags; it logs what the page logs.

    Skips the test where there is none and none must be.
    """
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        missing = "no chromium with chromedriver: apt-get install chromium chromium-driver"
        assert "FER_PLL_NEEDS_BROWSER" not in os.environ, missing
        pytest.skip(missing)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, *flags, f"--window-size={window}", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", prefs or {})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
