"""The page of `sr3 demo`, served by the command and used in Chromium."""

import base64
import contextlib
import io
import pathlib
import struct
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zlib

import browser as chromium
import numpy as np
import page_server
import pytest
import small_run
from etils import epath
from page_server import until
from PIL import Image
from selenium.webdriver.common.by import By

from sr3_jax import SuperResolver
from sr3_jax.web import demo_jobs

pytestmark = chromium.needed
LOADED = "return arguments[0].complete && arguments[0].naturalWidth"
_LARGE = (96, 80)  # 384 by 320 pixels, which are many tiles


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    root = epath.Path(tmp_path_factory.mktemp("run"))
    small_run.write_workdir(root, noise=0.1)
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A picture with alpha and metadata, one of many tiles, and a broken file."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 9, 4), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x010E] = "a leaf"  # ImageDescription
    small.save(root / "small leaf.png", exif=exif, dpi=(300, 300))
    large = rng.integers(0, 256, (_LARGE[1], _LARGE[0], 3), dtype=np.uint8)
    Image.fromarray(large).save(root / "large.png")
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    # Its header says 60000 by 60000.
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    content = (root / "large.png").read_bytes()
    (root / "huge.png").write_bytes(content[:8] + chunk + content[33:])
    return root


@contextlib.contextmanager
def serving(workdir, folder, *flags, port=0, **environment):
    """Starts the command; yields its server and its folder of files."""
    files = pathlib.Path(tempfile.mkdtemp(dir=folder))
    given = (f"--workdir={workdir}", f"--port={port}", *flags)
    log = files.parent / "demo.log"
    with page_server.Server("demo", log, *given, TMPDIR=str(files), **environment) as server:
        yield server, files
    # Nothing of anybody's picture is left behind.
    assert not list(files.iterdir())


@pytest.fixture(scope="module")
def server(workdir, tmp_path_factory):
    with serving(workdir, tmp_path_factory.mktemp("server")) as (server, files):
        yield server.address, files


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.started(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def element(browser, name):
    return browser.find_element(By.ID, name)


def status(browser, *texts):
    """Waits until the status has one of the texts."""

    def has():
        return any(text in element(browser, "status").text for text in texts)

    until(has, f"{texts} in the status, which is {element(browser, 'status').text!r}")
    return element(browser, "status").text


def ask(browser, address, picture, **numbers):
    """Opens the page, chooses a picture, and asks for it to be upscaled."""
    if not browser.current_url.startswith(address):
        browser.get(address)
    until(lambda: element(browser, "steps").get_attribute("value"), "the connection")
    element(browser, "file").send_keys(str(picture))
    for name, number in numbers.items():
        element(browser, name).clear()
        element(browser, name).send_keys(str(number))
    element(browser, "start").click()


def fetched(browser, path):
    """Returns what the page's own server sends, as the browser gets it."""
    script = """
        const [path, done] = arguments;
        fetch(path).then(async answer => {
          const bytes = new Uint8Array(await answer.arrayBuffer());
          done([answer.status, answer.headers.get("content-disposition"), Array.from(bytes)]);
        });
    """
    code, name, values = browser.execute_async_script(script, path)
    assert code == 200
    return name, bytes(values)


def test_the_page_gives_what_the_command_writes(browser, server, workdir, pictures, tmp_path):
    """Two samples, at full depth and with metadata; views, zoom, and the slider."""
    address, _ = server
    ask(browser, address, pictures / "small leaf.png", steps=3, seed=5, samples=2)
    assert "36×24 pixels" in status(browser, "pixels in")
    links = element(browser, "files").find_elements(By.TAG_NAME, "a")
    assert [link.text.split(", ")[1] for link in links] == ["seed 5", "seed 6"]
    resolver = SuperResolver.from_workdir(workdir)
    for seed, link in zip((5, 6), links, strict=True):
        name, content = fetched(browser, link.get_attribute("href"))
        assert f"small%20leaf_4x_seed_{seed}.png" in name
        output = tmp_path / str(seed)
        made = resolver.upscale_file(pictures / "small leaf.png", output, 3, seed)
        there, here = Image.open(io.BytesIO(content)), Image.open(made)
        assert there.mode == here.mode == "RGBA" and there.info["dpi"] == here.info["dpi"]
        assert there.getexif()[0x010E] == "a leaf"
        # Compiled for other devices, sums are rounded otherwise.
        np.testing.assert_allclose(np.int16(there), np.int16(here), atol=1)
    names = [
        option.text for option in element(browser, "left").find_elements(By.TAG_NAME, "option")
    ]
    assert names == ["input", "bicubic", "sample 1", "sample 2", "deviation"]
    for side in ("left", "right"):
        image = element(browser, f"image_{side}")
        until(lambda image=image: browser.execute_script(LOADED, image), "the picture")
    browser.find_element(By.CSS_SELECTOR, "[data-zoom='4']").click()
    assert element(browser, "canvas").rect["width"] == 4 * 36
    browser.execute_script("document.getElementById('split').focus()")
    before = element(browser, "line").rect["x"]
    browser.switch_to.active_element.send_keys("\ue012" * 20)  # left
    assert element(browser, "line").rect["x"] < before
    legend = element(browser, "legend")
    assert not legend.is_displayed()
    element(browser, "left").send_keys("deviation")
    assert legend.is_displayed()


@pytest.mark.parametrize("size", chromium.SIZES)
def test_nothing_is_broken_or_cut_off(browser, server, size):
    chromium.resize(browser, size)
    wrong, _ = browser.execute_script(chromium.LAYOUT, chromium.SIZES[size][0])
    assert not wrong
    chromium.resize(browser, "desktop")


def test_a_broken_or_wrong_file_gets_a_sentence(browser, server, pictures):
    address, _ = server
    ask(browser, address, pictures / "broken.jpg", steps=3, seed=0, samples=1)
    assert "cannot" in status(browser, "cannot") and "Traceback" not in browser.page_source
    ask(browser, address, pictures / "huge.png", steps=3, seed=0, samples=1)
    assert "60000" in status(browser, "60000")
    assert element(browser, "start").is_enabled()
    ask(browser, address, pictures / "small leaf.png", steps=3, seed=0, samples=1)
    status(browser, "pixels in")


def test_a_picture_is_watched_stopped_and_makes_room(browser, server, pictures):
    """Two pages queue; one that is stopped, or closed, frees its work and its files."""
    address, files = server
    (folder,) = files.glob("sr3_demo_*")
    ask(browser, address, pictures / "large.png", steps=500, seed=0, samples=1)
    status(browser, " %")
    first = browser.current_window_handle
    right = "return document.getElementById('image_right').getAttribute('src')"
    seen = until(lambda: "refinement" in (browser.execute_script(right) or ""), "a refinement")
    assert seen
    browser.switch_to.new_window("tab")
    ask(browser, address, pictures / "large.png", steps=500, seed=0, samples=1)
    assert status(browser, "Waiting") == "Waiting: 1 before this one."
    second = browser.current_window_handle
    browser.switch_to.window(first)
    element(browser, "stop").click()
    status(browser, "Stopped")
    browser.switch_to.window(second)
    status(browser, " %")
    assert len(list(folder.iterdir())) == 2
    browser.close()
    browser.switch_to.window(first)
    until(lambda: len(list(folder.iterdir())) == 1, "the end of the closed page")
    # So does one that is left for another address; the back button brings a new one.
    ask(browser, address, pictures / "large.png", steps=500, seed=0, samples=1)
    status(browser, " %")
    browser.get("about:blank")
    until(lambda: not list(folder.iterdir()), "the end of the page that was left")
    browser.back()
    ask(browser, address, pictures / "small leaf.png", steps=3, seed=0, samples=1)
    status(browser, "pixels in")


def _answer(url, method="GET", **headers):
    request = urllib.request.Request(url, method=method, headers=headers, data=b"" or None)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers)


def test_other_sites_and_other_machines_are_kept_out(server):
    address, _ = server
    code, headers = _answer(address)
    assert code == 200 and "default-src 'none'" in headers["content-security-policy"]
    assert _answer(address, Host="other.example:80")[0] == 403
    assert _answer(f"{address}stop?page={'0' * 32}", "POST")[0] == 403
    assert _answer(f"{address}stop?page={'0' * 32}", "POST", **{"x-sr3": "1"})[0] == 200
    assert _answer(f"{address}pages/../serving.py")[0] == 404


def test_a_page_for_others_asks_for_a_password(workdir, tmp_path):
    with serving(workdir, tmp_path, "--listen", SR3_PASSWORD="früh:1") as (server, _):
        assert "früh:1" in server.text
        assert _answer(server.address)[0] == 401
        for password, code in (("wrong", 401), ("früh:1", 200)):
            given = base64.b64encode(f"me:{password}".encode()).decode()
            assert _answer(server.address, Authorization=f"Basic {given}")[0] == code


def test_a_page_outlives_its_server(browser, workdir, pictures, tmp_path):
    """And a server that is ended while a page is open and a picture is refined says no more."""
    with serving(workdir, tmp_path) as (server, _):
        ask(browser, server.address, pictures / "large.png", steps=500, seed=0, samples=1)
        status(browser, " %")
        server.end()
        assert "Traceback" not in (tmp_path / "demo.log").read_text()
    status(browser, "connection to the server is lost")
    with serving(workdir, tmp_path, port=server.port):
        status(browser, "started anew")
        element(browser, "start").click()
        element(browser, "stop").click()


def test_a_taken_port_is_named(server, workdir):
    port = server[0].rstrip("/").rpartition(":")[2]
    command = [sys.executable, "-m", "sr3_jax.main", "--mode=demo", f"--workdir={workdir}"]
    ended = subprocess.run([*command, f"--port={port}"], capture_output=True, text=True)
    assert ended.returncode == 2 and f"--port={port} cannot be opened" in ended.stderr


def test_names_of_files_stay_in_their_folder():
    names = {
        "../../etc/passwd": "passwd",
        "C:\\a\\b.png": "b.png",
        "..": "picture",
        "": "picture",
        "naïve photo [1] 'b' & c.jpeg": "naïve photo [1] 'b' & c.jpeg",
        "漢" * 100 + ".png": "漢" * 48 + ".png",
        "x\n\0y.png": "x__y.png",
    }
    assert {name: demo_jobs.safe_name(name) for name in names} == names
