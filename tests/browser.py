"""A real Chromium without a window, for tests of pages."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="chromium and chromium-driver are not installed"
)
WAIT = 60.0
ARGUMENTS = """--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars
--disable-background-networking --disable-component-update --disable-sync --disable-quic""".split()


class Browser:
    """A driver of Chromium, with what the tests ask of it.

    Args:
        profile: a folder of its own.
    """

    def __init__(self, profile: Path):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))

    def close(self) -> None:
        """Ends the browser."""
        self.driver.quit()

    def open(self, page: Path, width: int = 1200, dark: bool = False, media: str = "screen") -> None:
        """Loads a page in a window of a width, as light or dark, and waits until its plots are drawn."""
        self.driver.get_log("browser")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.prefer("dark" if dark else "light", media)
        self.driver.get(page.as_uri())
        self.until("return document.body.classList.contains('drawn')")

    def prefer(self, scheme: str, media: str = "screen") -> None:
        """Says what the reader prefers, without loading the page again."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})

    def do(self, script: str, *arguments: Any) -> Any:
        """Runs a script and returns what it returns."""
        return self.driver.execute_script(script, *arguments)

    def until(self, script: str, *arguments: Any) -> Any:
        """Waits until a script returns something true, and returns that; the page may load itself again meanwhile."""
        from selenium.common.exceptions import WebDriverException

        end = time.monotonic() + WAIT
        while True:
            try:
                if found := self.do(script, *arguments):
                    return found
            except WebDriverException:  # the page is just loading itself again
                pass
            assert time.monotonic() < end, f"waited in vain for {script}; {self.errors()}"
            time.sleep(0.05)

    def find(self, selector: str) -> Any:
        """The first element that a selector matches."""
        return self.driver.find_element("css selector", selector)

    def press(self, *keys: str) -> None:
        """Presses keys, wherever the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        ActionChains(self.driver).send_keys(*(getattr(Keys, key, key) for key in keys)).perform()

    def point(self, selector: str, across: float, down: float = 0.5) -> None:
        """Moves the pointer to a share of an element's width and height."""
        from selenium.webdriver.common.action_chains import ActionChains

        found = self.find(selector)
        self.do("arguments[0].scrollIntoView({block: 'center'})", found)
        size = found.size
        x, y = round((across - 0.5) * size["width"]), round((down - 0.5) * size["height"])
        ActionChains(self.driver).move_to_element_with_offset(found, x, y).perform()

    def errors(self) -> list[Any]:
        """What the console has said since the page was opened."""
        return [entry for entry in self.driver.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]
