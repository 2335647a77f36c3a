"""The service's page, in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from browser_kit import chromium
from load_kit import query_files
from serve_kit import Server, wait_for
from shop_kit import Shop
from text_shop_kit import TextShop


def _find(browser: Any, selector: str) -> Any:
    from selenium.webdriver.common.by import By

    return browser.find_element(By.CSS_SELECTOR, selector)


def _texts(browser: Any, selector: str) -> list[str]:
    from selenium.webdriver.common.by import By

    return [part.text for part in browser.find_elements(By.CSS_SELECTOR, selector)]


def _is_clean(browser: Any, port: int) -> None:
    """No message in the console, and no request to anywhere else."""
    assert browser.get_log("browser") == []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            assert url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:")), url


@pytest.mark.parametrize(("scheme", "size"), [("light", "desktop"), ("dark", "phone")])
def test_the_page_shows_both_answers_and_follows_a_switch(
    shop: Shop, scheme: str, size: str
) -> None:
    """Both models answer an image, with pictures; after a deploy the page has the new state."""
    query = query_files(shop, 1)[0]
    with Server(shop.folder, "--shadow", "new.onnx") as server, chromium(scheme, size) as browser:
        browser.get(f"http://127.0.0.1:{server.port}/")
        wait_for(lambda: _find(browser, "#generation").text == "1")
        _find(browser, "#file").send_keys(str(query))
        wait_for(lambda: len(_texts(browser, "#candidate li img")) == 10)
        compared = server.ask("/v1/compare?k=10", query.read_bytes()).json
        for side in ("current", "candidate"):
            names = [f"{n}. {hit['id']}" for n, hit in enumerate(compared[side], 1)]
            assert _texts(browser, f"#{side} li b") == names
        back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(255, 255, 255)") == (scheme == "light")
        wide = "return document.documentElement.scrollWidth <= window.innerWidth"
        assert browser.execute_script(wide)
        given = ("--model", shop.path("new.onnx"), "--force", "--reason", "drill")
        assert shop.run("deploy", *given).code == 0
        wait_for(lambda: _find(browser, "#generation").text == "2")
        assert _texts(browser, "#history tr td:nth-child(2)") == ["deploy", "init"]
        wait_for(lambda: "generation 2" in _find(browser, "#result").text)
        _is_clean(browser, server.port)


def test_the_page_of_a_store_of_texts_takes_texts_and_a_token(tmp_path: Path) -> None:
    """A typed text is answered with texts; without the token nothing is."""
    shop = TextShop(tmp_path)
    shop.done("init", "--model", shop.models["old"])
    token = "a-token-of-some-length"
    with (
        Server(tmp_path, COMPATCTL_TOKEN=token) as server,
        chromium("light", "desktop") as browser,
    ):
        browser.get(f"http://127.0.0.1:{server.port}/")
        wait_for(lambda: _find(browser, "#access").is_displayed())
        _find(browser, "#token").send_keys(token)
        _find(browser, "#access button").click()
        wait_for(lambda: _find(browser, "#words").is_displayed())
        _find(browser, "#words").send_keys("word1 word2\n")
        wait_for(lambda: len(_texts(browser, "#current li")) == 10)
        assert not _find(browser, "#candidate").is_displayed()
        headers = {"Authorization": f"Bearer {token}"}
        hits = server.ask("/v1/search?k=10", "word1 word2", **headers).json["hits"]
        names = [f"{n}. {hit['id']}" for n, hit in enumerate(hits, 1)]
        assert _texts(browser, "#current li b") == names
