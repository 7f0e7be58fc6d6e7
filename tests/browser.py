"""Chromium for tests of pages: started, sized, and asked how a page is laid out."""

import contextlib
import shutil

import pytest

webdriver = pytest.importorskip(
    "selenium.webdriver", reason="selenium is not installed (launch/test.sh does)"
)
_CHROMIUM, _DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needed = pytest.mark.skipif(
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
  const unseen = "title, script, noscript, style, select, [hidden]";
  if (!node.data.trim() || parent.closest(unseen)) continue;
  const range = document.createRange();
  range.selectNodeContents(node);
  const box = parent.closest(
    "td, th, dd, dt, li, p, figcaption, summary, h1, h2, h3, h4, svg, pre, a, div, label, " +
    "button, body");
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


@contextlib.contextmanager
def started(profile):
    """Starts Chromium with a profile in a folder; yields its driver."""
    options = webdriver.ChromeOptions()
    options.binary_location = _CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",  # root cannot have one
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(_DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def resize(driver, size, scheme="light"):
    """Sets the width and height of the page, and its colours."""
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
