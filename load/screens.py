"""The README's pictures of the page, from the demo that is still up: ``python -m load.screens http://127.0.0.1:8080 .github``."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Final, NamedTuple

import httpx
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from streams.demo.replay import MODEL
from tests.browser.window import chromium, show, until


class Picture(NamedTuple):
    """A view as it is kept: ``height`` pixels from its top."""

    name: str
    width: int
    height: int
    dark: bool = False


PICTURES: Final = (
    Picture("model-1280", 1280, 1060),
    Picture("model-390", 390, 1060, dark=True),
    Picture("incident-1280", 1280, 1060, dark=True),
    Picture("incident-390", 390, 1060),
)


def places(address: str) -> dict[str, str]:
    """What is shown of the demo: its model, and the incident of the bad release."""
    incidents = (
        httpx.get(f"{address}/api/v1/incidents?limit=200").raise_for_status().json()["items"]
    )
    (release,) = (one["id"] for one in incidents if one["cause"] == "bad_release")
    return {"model": f"#/models/{MODEL}", "incident": f"#/incidents/{release}"}


def take(browser: Chrome, url: str, picture: Picture) -> bytes:
    """The picture as PNG."""
    show(browser, url, (picture.width, picture.height), dark=picture.dark)
    charts = len(browser.find_elements(By.CSS_SELECTOR, ".chart"))
    until(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, ".chart canvas")) == charts)
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    return base64.b64decode(shot["data"])


def main() -> None:
    """Write all pictures of the page at the address into the directory."""
    address, target = sys.argv[1].rstrip("/"), Path(sys.argv[2])
    at = places(address)
    with chromium() as browser:
        for picture in PICTURES:
            url = f"{address}/{at[picture.name.partition('-')[0]]}"
            (target / f"{picture.name}.png").write_bytes(take(browser, url, picture))


if __name__ == "__main__":
    main()
