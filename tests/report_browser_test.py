"""The report in Chromium: on a phone and a desktop, light and dark."""

import io
import json

import browser as chromium
import numpy as np
import pytest
import report_example
from PIL import Image

pytestmark = chromium.needed


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.started(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    report_example.write(folder, report_example.make())
    return (folder / "report.html").as_uri()


def show(browser, page, size, scheme="light"):
    chromium.resize(browser, size, scheme)
    browser.get(page)


@pytest.mark.parametrize("size", chromium.SIZES)
def test_nothing_is_broken_cut_off_or_on_top_of_something_else(browser, page, size):
    show(browser, page, size)
    wrong, num_lines = browser.execute_script(chromium.LAYOUT, chromium.SIZES[size][0])
    assert not wrong and num_lines > 300


def test_that_test_sees_what_is_wrong(browser, page):
    show(browser, page, "phone")
    browser.execute_script("""
        const add = html => document.querySelector("main").insertAdjacentHTML("beforeend", html);
        add("<img alt=no src='data:image/png;base64,AAAA'>");
        add("<div style='width: 600px'>wide</div>");
        add("<div>below</div><div style='margin-top: -1.2em'>above</div>");
        add("<div style='width: 20px; white-space: nowrap'>more than fits</div>");
    """)
    wrong, _ = browser.execute_script(chromium.LAYOUT, chromium.SIZES["phone"][0])
    for kind in (
        "broken image: no",
        "the page is 6",
        "overlap: below",
        "out of its box: more than",
    ):
        assert any(found.startswith(kind) for found in wrong), (kind, wrong)


def test_nothing_is_asked_of_the_network_and_no_name_is_run(browser, page):
    browser.get("about:blank")
    browser.get_log("performance")
    show(browser, page, "desktop")
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert page in asked
    assert all(url.startswith("data:") for url in asked - {page})
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.scripts.length") == 0


@pytest.mark.parametrize("size", chromium.SIZES)
def test_methods_and_the_papers_mark_are_seen(browser, page, size):
    show(browser, page, size)
    seen = browser.execute_script("""
        const shown = element => element.checkVisibility() && element.getClientRects().length > 0;
        const texts = selector =>
          [...document.querySelectorAll(selector)].filter(shown).map(e => e.innerText.trim());
        return [texts("#results tbody th"), texts("#differences tbody th"),
                texts("#paper tbody th"), texts("#images article:first-of-type figcaption")];
    """)
    methods = list(report_example.METHODS)
    assert seen[0] == methods and seen[1] == methods[:-1]
    assert len(seen[2]) == 4 and all(text.split()[0] == "paper" for text in seen[2])
    assert seen[3][:5] == ["input", *methods, "reference"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", chromium.SIZES)
def test_there_is_something_to_see(browser, page, size, scheme):
    show(browser, page, size, scheme)
    with Image.open(io.BytesIO(browser.get_screenshot_as_png())) as picture:
        assert picture.size == chromium.SIZES[size]
        pixels = np.array(picture.convert("L"))
    assert (np.median(pixels) > 200) == (scheme == "light")
    assert pixels.std() > 10
