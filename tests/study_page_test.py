"""The page of a study, served by the command, with simulated subjects in Chromium."""

import contextlib
import io
import signal
import subprocess
import sys
import time

import browser as chromium
import numpy as np
import page_server
import pytest
import small_run
import study_example
from page_server import until
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from sr3_jax.study import analysis, design, report
from sr3_jax.study.answers import Answers
from sr3_jax.study.design import REFERENCE, Options

pytestmark = chromium.needed


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.started(tmp_path_factory.mktemp("profile")) as driver:
        chromium.resize(driver, "desktop")
        yield driver


@pytest.fixture
def make(tmp_path):
    """Makes a study of pictures of 48 pixels."""

    def made(**options):
        root = tmp_path / "pictures"
        outputs = study_example.write_pictures(root, methods=("sharp",))
        low = str(root / "input") if options.get("task") == 1 else ""
        reference = str(root / REFERENCE)
        return design.make(tmp_path / "study", reference, outputs, low, Options(**options))

    return made


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A study that is served for several tests."""
    root = tmp_path_factory.mktemp("shared")
    outputs = study_example.write_pictures(root / "pictures", methods=("sharp",))
    options = Options(seconds=0, trials=3, practice=0, checks=0)
    reference = str(root / "pictures" / REFERENCE)
    study = design.make(root / "study", reference, outputs, "", options)
    with served(study) as server:
        yield study, server.address


def test_studies_of_one_machine_have_subjects_of_their_own(browser, shared, make):
    """The cookies of both are kept, and a made-up code of an open study is no code."""
    _, address = shared
    begin(browser, address + "?code=made-up")
    browser.find_element(By.CSS_SELECTOR, ".left button").click()
    after(browser, "1 of 3")
    study = make(seconds=0, trials=4, practice=0, checks=0)
    with served(study) as other:
        browser.get(other.address)
        until(lambda: "I agree" in text(browser), "the consent")
        press(browser)
        go_on(browser)
        assert number(browser) == "1 of 4"
        browser.get(address)
        go_on(browser)
        assert number(browser) == "2 of 3"


def test_one_command_makes_and_serves_and_goes_on(browser, make, tmp_path):
    outputs = study_example.write_pictures(tmp_path / "pictures", methods=("sharp",))
    flags = [
        f"--study={tmp_path / 'made'}",
        f"--reference={tmp_path / 'pictures' / REFERENCE}",
        f"--outputs=sharp={outputs['sharp']}",
        "--serve",
        "--port=0",
        "--practice=0",
        "--seconds=0",
    ]
    with page_server.Server("study_new", tmp_path / "log", *flags) as server:
        begin(browser, server.address)
        count = number(browser)
        browser.find_element(By.CSS_SELECTOR, ".left button").click()
        after(browser, count)
        server.end(signal.SIGKILL)
    flags[4] = f"--port={server.port}"
    with page_server.Server("study_new", tmp_path / "log", *flags) as server:
        browser.get(server.address)
        go_on(browser)
        assert number(browser).startswith("2 of")
    assert len(rows(design.load(tmp_path / "made"))) == 1
    command = [sys.executable, "-m", "sr3_jax.main", "--mode=study_new", *flags, "--seed=1"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=small_run.ROOT)
    assert ended.returncode == 2 and "other options or methods" in ended.stderr


@contextlib.contextmanager
def served(study, *flags, port=0):
    log = study.folder.parent / "log"
    given = (f"--study={study.folder}", f"--port={port}", *flags)
    with page_server.Server("study_serve", log, *given) as server:
        yield server


def rows(study):
    answers = Answers(study)
    found = answers.all()
    answers.close()
    return found


def text(browser):
    """The text of the page; none while it is loaded."""
    script = "const stage = document.getElementById('stage'); return stage ? stage.innerText : ''"
    return browser.execute_script(script)


def press(browser):
    browser.find_element(By.CSS_SELECTOR, ".text button").click()


def begin(browser, address):
    """As a new subject: agrees, reads on, and comes to the first pair."""
    browser.get(address)
    browser.delete_all_cookies()
    browser.get(address)
    until(lambda: "I agree" in text(browser), "the consent")
    press(browser)
    go_on(browser)


def go_on(browser):
    until(lambda: "Begin" in text(browser) or "Go on" in text(browser), "the instructions")
    press(browser)
    pair(browser)


def pair(browser):
    """Waits for a pair that can be answered; returns the files on both sides."""
    script = """
        const sides = ["left", "right"].map(side => document.querySelector(`.${side} img`));
        if (sides.some(image => !image || image.classList.contains("hidden"))) return null;
        return sides.map(image => image.getAttribute("src").split("/").pop());
    """
    return until(lambda: browser.execute_script(script), f"a pair in {text(browser)!r}")


def number(browser):
    return browser.find_element(By.CSS_SELECTOR, ".count").text


def after(browser, before):
    """Waits for what comes after the pair of a number."""

    def changed():
        return browser.execute_script(
            "const count = document.querySelector('.count'); return count ? count.textContent : '-'"
        )

    until(lambda: changed() != before, f"what comes after {before}")


def test_simulated_subjects_are_found_again(browser, make):
    """By keys, by buttons and by pictures; what they chose is what the report counts."""
    study = make(seconds=0, trials=7, practice=1, checks=2, break_every=6)
    of_file = {file: method for files in study.files.values() for method, file in files.items()}
    rng, fooled = np.random.default_rng(0), []
    with served(study) as server:
        for subject in range(4):
            begin(browser, server.address)
            while True:
                until(lambda: text(browser), "the next page")
                if "Thank you" in text(browser):
                    break
                if "Rest" in text(browser):
                    press(browser)
                    continue
                shown, count = pair(browser), number(browser)
                methods = [of_file[file] for file in shown]
                side = methods.index(REFERENCE)
                if "degraded" not in methods and rng.random() < 0.4:
                    side = 1 - side
                    fooled.append(1)
                elif "degraded" not in methods:
                    fooled.append(0)
                target = f".{('left', 'right')[side]}"
                if subject % 3 == 0:
                    keys = (Keys.ARROW_LEFT, Keys.ARROW_RIGHT)
                    browser.find_element(By.TAG_NAME, "body").send_keys(keys[side])
                else:
                    part = "button" if subject % 3 == 1 else ".frame"
                    browser.find_element(By.CSS_SELECTOR, f"{target} {part}").click()
                if count == "Practice":
                    until(lambda: "Yes, that is the photograph" in text(browser), "the feedback")
                after(browser, count)
    found = rows(study)
    assert len(fooled) == 28 and len(found) == 40
    assert {(a.subject, a.trial) for a in found} == {(a.subject, a.trial) for a in found}
    rate = analysis.analyse(study, found).fool_rates["sharp"]
    assert rate.trials == 28 and rate.share.value == np.mean(fooled)
    assert rate.share.low <= 0.4 <= rate.share.high
    for one in found:
        trial = study.trials(one.number)[one.trial]
        assert (one.image, one.left, one.right) == trial[1:]
        assert 0 < one.answered_ms < 60_000 and one.shown_ms >= one.answered_ms - 50


def test_pictures_are_shown_for_the_time_and_answered_after(browser, make):
    study = make(seconds=0.5, trials=3, practice=0, checks=0)
    hidden = "return document.querySelectorAll('.frame img.hidden').length"
    with served(study) as server:
        begin(browser, server.address)
        until(lambda: browser.execute_script(hidden) == 2, "the end of the pictures")
        browser.find_element(By.CSS_SELECTOR, ".left button").click()
        after(browser, "1 of 3")
    (one,) = rows(study)
    assert 450 < one.shown_ms < 900 and one.answered_ms > one.shown_ms


def test_a_reload_a_double_click_and_two_tabs(browser, make):
    study = make(seconds=0, trials=6, practice=0, checks=0)
    with served(study) as server:
        begin(browser, server.address)
        assert number(browser) == "1 of 6"
        button = browser.find_element(By.CSS_SELECTOR, ".left button")
        ActionChains(browser).double_click(button).perform()
        after(browser, "1 of 6")
        pair(browser)
        assert number(browser) == "2 of 6" and len(rows(study)) == 1
        browser.refresh()
        go_on(browser)
        assert number(browser) == "2 of 6"
        browser.get("about:blank")
        browser.back()
        go_on(browser)
        assert number(browser) == "2 of 6"
        first = browser.current_window_handle
        browser.switch_to.new_window("tab")
        browser.get(server.address)
        go_on(browser)
        browser.find_element(By.CSS_SELECTOR, ".left button").click()
        after(browser, "2 of 6")
        browser.close()
        browser.switch_to.window(first)
        # This tab still shows what is answered: its answer is not taken, and it goes on.
        browser.find_element(By.CSS_SELECTOR, ".right button").click()
        go_on(browser)
        assert number(browser) == "3 of 6"
    assert [(a.trial, a.side) for a in rows(study)] == [(0, "left"), (1, "left")]


def test_a_killed_server_loses_no_answer(browser, make):
    study = make(seconds=0, trials=4, practice=0, checks=0)
    notice = "return document.getElementById('notice').textContent"
    with served(study) as server:
        begin(browser, server.address)
        server.end(signal.SIGKILL)
        browser.find_element(By.CSS_SELECTOR, ".right button").click()
        until(lambda: "connection is lost" in browser.execute_script(notice), "the notice")
        assert rows(study) == []
    with served(study, port=server.port):
        after(browser, "1 of 4")
        pair(browser)
        assert number(browser) == "2 of 4" and not browser.execute_script(notice)
        assert [(a.trial, a.side) for a in rows(study)] == [(0, "right")]


@pytest.mark.parametrize("task", [1, 2])
@pytest.mark.parametrize("size", chromium.SIZES)
def test_pages_on_a_phone_and_a_desktop(browser, make, task, size):
    """Nothing is cut off, and a pixel of a picture is a whole number of pixels of the screen."""
    study = make(task=task, seconds=0, trials=3, practice=0, checks=0, scale=2)
    chromium.resize(browser, size)
    width = chromium.SIZES[size][0]
    with served(study) as server:
        browser.get(server.address)
        browser.delete_all_cookies()
        browser.get(server.address)
        until(lambda: "I agree" in text(browser), "the consent")
        assert not browser.execute_script(chromium.LAYOUT, width)[0]
        begin(browser, server.address)
        assert not browser.execute_script(chromium.LAYOUT, width)[0]
        images = browser.find_elements(By.CSS_SELECTOR, ".frame img")
        assert len(images) == (3 if task == 1 else 2)
        assert {(image.rect["width"], image.rect["height"]) for image in images} == {(96, 96)}
        names = {image.get_attribute("alt") for image in images}
        assert names >= {"Left picture", "Right picture"}
        left, right = (image.rect for image in images if "picture" in image.get_attribute("alt"))
        assert left["y"] == right["y"] and left["x"] + 96 < right["x"]
    chromium.resize(browser, "desktop")


@pytest.mark.parametrize("ratio", [1, 1.25, 1.75, 2, 2.625, 3])
def test_pictures_lie_on_pixels_of_the_screen(browser, shared, ratio):
    """Where a pixel of the browser is a whole number of them, each is drawn as it is."""
    study, address = shared
    metrics = {"width": 411, "height": 731, "deviceScaleFactor": ratio, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    begin(browser, address)
    time.sleep(0.2)  # until it is drawn
    screen = np.asarray(Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB"))
    box = "const r = document.querySelector(arguments[0]).getBoundingClientRect(); return [r.x,r.y]"
    for side in ("left", "right"):
        at = ratio * np.array(browser.execute_script(box, f".{side} img"))
        np.testing.assert_allclose(at, at.round(), atol=0.05)
        if ratio == int(ratio):
            x, y = at.round().astype(int)
            image = browser.find_element(By.CSS_SELECTOR, f".{side} img").get_attribute("src")
            picture = np.asarray(Image.open(study.folder / "images" / image.split("/")[-1]))
            wanted = picture.repeat(ratio, 0).repeat(ratio, 1)
            shown = screen[y : y + len(wanted), x : x + len(wanted)]
            np.testing.assert_array_equal(shown, wanted)
    chromium.resize(browser, "desktop")


@pytest.mark.parametrize("size", chromium.SIZES)
def test_the_report_is_not_cut_off(browser, make, size):
    study = make(trials=6, pairs="all")
    subjects = study_example.Subjects(study, {"sharp": -1.0})
    report.write(study, subjects.answers(8))
    chromium.resize(browser, size)
    browser.get((study.folder / "report.html").as_uri())
    assert not browser.execute_script(chromium.LAYOUT, chromium.SIZES[size][0])[0]
    chromium.resize(browser, "desktop")


def test_who_is_not_let_in(browser, make, tmp_path):
    study = make(seconds=0, trials=3, practice=0, checks=0, invitations=1)
    with served(study) as server:
        browser.get(server.address)
        browser.delete_all_cookies()
        browser.get(server.address)
        until(lambda: "invited people" in text(browser), "the refusal")
        invited = f"{server.address}?code={study.codes[0]}"
        begin(browser, invited)
        browser.find_element(By.CSS_SELECTOR, ".left button").click()
        after(browser, "1 of 3")
        # From another browser, which has no cookie of it, the same subject goes on.
        browser.delete_all_cookies()
        browser.get(invited)
        go_on(browser)
        assert number(browser) == "2 of 3" and len(rows(study)) == 1
        browser.find_element(By.ID, "withdraw").click()
        browser.switch_to.alert.accept()
        until(lambda: "withdrawn" in text(browser), "the withdrawal")
        browser.refresh()
        until(lambda: "withdrawn" in text(browser), "the withdrawal")
    assert rows(study) == []
    path = study.folder / "study.json"
    path.write_text(path.read_text().replace('"until": ""', '"until": "2020-01-01"'))
    with served(study) as server:
        browser.delete_all_cookies()
        browser.get(server.address)
        until(lambda: "This study is over" in text(browser), "the end")
