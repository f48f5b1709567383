"""A headless Chromium, and the API that it looks at, on loopback."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from pydantic import SecretStr
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.support.ui import WebDriverWait

from monitor import api
from monitor.api_orders import Desk
from monitor.orders import Give
from monitor.settings import ApiSettings
from monitor.store import Store
from tests.browser import fleet
from tests.monitor.serving import served

DESK: Final = (1280, 800)
PHONE: Final = (390, 844)
NOW_MS: Final = fleet.START + 100 * fleet.HOUR


class NoBrowserError(Exception):
    """There is no Chromium here."""


@contextmanager
def serving(stored: Store, give: Give, key: str = "") -> Iterator[str]:
    """Where the API answers while the context lasts."""
    stop = threading.Event()
    settings = ApiSettings(key=SecretStr(key))
    app = api.create_app(stored, settings, desk=Desk(give, lambda: NOW_MS), stop=stop)
    with served(app) as address:
        try:
            yield address
        finally:
            stop.set()


@contextmanager
def chromium() -> Iterator[Chrome]:
    """A browser; it takes a second or two to start.

    Raises:
        NoBrowserError: it or its driver is not installed.
    """
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        raise NoBrowserError("no chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = ChromeOptions()
    options.binary_location = binary
    for argument in (
        "headless=new",
        "no-sandbox",  # CI runs as root
        "disable-gpu",
        "disable-dev-shm-usage",
        "disable-background-networking",
        "no-proxy-server",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options=options, service=ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def show(browser: Chrome, url: str, size: tuple[int, int], *, dark: bool = False) -> None:
    """Open an address of the page in a fresh document, and wait until it has drawn."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})  # as on a phone
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get("about:blank")
    browser.get(url)
    until(browser, lambda: drawn_ms(browser) is not None)


def until(browser: Chrome, condition: Callable[[], object], within_s: float = 15) -> None:
    """Wait for something.

    Raises:
        TimeoutException: in vain.
    """
    WebDriverWait(browser, within_s, poll_frequency=0.05).until(lambda _: condition())


def drawn_ms(browser: Chrome) -> float | None:
    """How long after the navigation began a view was first there."""
    script = 'return performance.getEntriesByName("drawn")[0]?.startTime ?? null'
    found: float | None = browser.execute_script(script)
    return found
