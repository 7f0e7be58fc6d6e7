"""The report in Chromium: on a phone and a desktop, light and dark."""

import io
import json
import shutil

import numpy as np
import pytest
import report_example
from PIL import Image

webdriver = pytest.importorskip(
    "selenium.webdriver", reason="selenium is not installed (launch/test.sh does)"
)
_CHROMIUM, _DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (_CHROMIUM and _DRIVER), reason="chromium is not installed (launch/test.sh does, as root)"
)
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}

# Returns what is wrong with how a page is laid out. Text is taken line by line, as it is drawn.
LAYOUT = """
const wrong = [];
document.querySelectorAll("details").forEach(details => { details.open = true; });
for (const image of document.images)
  if (!image.complete || !image.naturalWidth) wrong.push(`broken image: ${image.alt}`);
const width = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth > arguments[0] || width > arguments[0])
  wrong.push(`the page is ${document.documentElement.scrollWidth} wide`);
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const lines = [];
for (let node; (node = walker.nextNode());) {
  const parent = node.parentElement;
  if (!node.data.trim() || parent.closest("title, script, style")) continue;
  const range = document.createRange();
  range.selectNodeContents(node);
  const box = parent.closest(
    "td, th, dd, dt, li, p, figcaption, summary, h1, h2, h3, h4, svg, pre, a, div");
  const inside = box.getBoundingClientRect();
  const text = `${node.data.trim().slice(0, 30)} (${box.tagName})`;
  const drawn = [...range.getClientRects()].filter(r => r.width > 0);
  if (!drawn.length) wrong.push(`invisible: ${text}`);
  for (const r of drawn) {
    if (!parent.closest("pre, .scroll") && (r.left < -1 || r.right > width + 1))
      wrong.push(`out of the page: ${text}`);
    const across = r.left < inside.left - 1 || r.right > inside.right + 1;
    const down = r.top < inside.top - 2 || r.bottom > inside.bottom + 2;
    if ((across || down) && !parent.closest("pre")) wrong.push(`out of its box: ${text}`);
    lines.push([r, text]);
  }
}
lines.forEach(([a, first], i) => lines.slice(i + 1).forEach(([b, second]) => {
  const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
  if (across > 2 && down > 3) wrong.push(`overlap: ${first} and ${second}`);
}));
return [wrong, lines.length];
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = _CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "--headless=new",
        "--no-sandbox",  # root cannot have one
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(_DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    report_example.write(folder, report_example.make())
    return (folder / "report.html").as_uri()


def show(browser, page, size, scheme="light"):
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page)


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_broken_cut_off_or_on_top_of_something_else(browser, page, size):
    show(browser, page, size)
    wrong, num_lines = browser.execute_script(LAYOUT, SIZES[size][0])
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
    wrong, _ = browser.execute_script(LAYOUT, SIZES["phone"][0])
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


@pytest.mark.parametrize("size", SIZES)
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
@pytest.mark.parametrize("size", SIZES)
def test_there_is_something_to_see(browser, page, size, scheme):
    show(browser, page, size, scheme)
    with Image.open(io.BytesIO(browser.get_screenshot_as_png())) as picture:
        assert picture.size == SIZES[size]
        pixels = np.array(picture.convert("L"))
    assert (np.median(pixels) > 200) == (scheme == "light")
    assert pixels.std() > 10
