"""The report of an evaluation: its numbers, its pictures, and that nothing in names breaks it."""

import html.parser
import math
import re
import subprocess
import warnings

import numpy as np
import pytest
import report_example
from PIL import Image

from sr3_jax.evaluation.report import (
    gallery,
    histograms,
    intervals,
    page,
    paper,
    provenance,
)
from sr3_jax.metrics import registry


@pytest.fixture(scope="module")
def example():
    return report_example.make()


@pytest.fixture(scope="module")
def folder(example, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    report_example.write(folder, example)
    return folder


class Page(html.parser.HTMLParser):
    """Collects the tags, addresses and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.words = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "xlink:href")]

    def handle_data(self, data):
        self.words.append(data)


def test_the_interval_is_the_normal_one_for_many_normal_numbers():
    numbers = np.random.default_rng(1).normal(30.0, 2.0, 400)
    found = intervals.of_mean(numbers.tolist())
    half = 1.959964 * numbers.std(ddof=1) / math.sqrt(400)
    assert found.mean == pytest.approx(numbers.mean())
    assert found.low == pytest.approx(numbers.mean() - half, abs=0.05 * half)
    assert found.high == pytest.approx(numbers.mean() + half, abs=0.05 * half)
    assert found == intervals.of_mean(numbers.tolist())


@pytest.mark.parametrize("draw, share", [("normal", 0.95), ("exponential", 0.895)])
def test_how_often_the_interval_of_eight_images_covers_the_mean(draw, share):
    """Intervals of skewed numbers hold less often than stated: docs/evaluation.md.

    The sets are 4000; the standard error of the share is at most 0.5 %.
    """
    rng = np.random.default_rng(0)
    sets = {"normal": rng.normal(1.0, 1.0, (4000, 8)), "exponential": rng.exponential(1, (4000, 8))}
    found = [intervals.of_mean(numbers) for numbers in sets[draw].tolist()]
    covered = np.mean([each.low <= 1.0 <= each.high for each in found])
    assert covered == pytest.approx(share, abs=0.015)


def test_differences_are_paired():
    rng = np.random.default_rng(2)
    images = rng.normal(30.0, 5.0, 200)  # vary far more than the methods do
    gain = rng.normal(0.3, 0.5, 200)
    found = intervals.of_difference((images + gain).tolist(), images.tolist())
    half = 1.959964 * gain.std(ddof=1) / math.sqrt(200)
    assert found.interval.high - found.interval.low == pytest.approx(2 * half, rel=0.06)
    assert found.interval.low > 0
    assert found.num_higher == (gain > 0).sum() and found.num_lower == (gain < 0).sum()
    with pytest.raises(ValueError, match="3 numbers of one method and 2"):
        intervals.of_difference([1.0, 2.0, 3.0], [1.0, 2.0])


def test_a_number_that_is_not_zero_is_not_written_as_zero():
    texts = [registry.write(x, ".2f", signed=True) for x in (0.0018, -0.0018, 0.0, -0.0, -1.304)]
    assert texts == ["+0.002", "−0.002", "+0.00", "+0.00", "−1.30"]


def test_numbers_that_are_not_finite_are_counted_and_break_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = intervals.of_mean([1.0, math.inf, 2.0, math.nan, 4.0, -math.inf])
        clean = intervals.of_mean([1.0, 2.0, 4.0])
        assert found[:4] == clean[:4]
        assert (found.num_finite, found.num_infinite, found.num_nan) == (3, 2, 1)
        alone = intervals.of_mean([math.inf, 5.0])
        assert alone.mean == 5.0 and math.isnan(alone.low) and math.isnan(alone.high)
        assert math.isnan(intervals.of_mean([math.nan]).mean)
        # Two equal images, one that only the first method has equal, and one ordinary.
        pair = intervals.of_difference([math.inf, math.inf, 3.0], [math.inf, 9.0, 2.0])
        assert (pair.num_higher, pair.num_lower, pair.interval.num_finite) == (2, 0, 1)


@pytest.mark.parametrize(
    "values",
    [
        {"a": [1.0, 2.0, 2.5, math.inf, math.nan], "b": [9.0, 1.0]},
        {"a": [3.0] * 7, "b": [3.0]},
        {"a": [0.0] * 3, "b": [math.nan]},
        {"a": list(np.geomspace(0.1, 3000, 90)), "b": [5.0] * 40},
        {"a": list(np.random.default_rng(0).normal(0.7, 0.1, 5000))},
    ],
    ids=["inf", "equal", "zero", "wide", "many"],
)
def test_a_histogram_shows_each_finite_number_once_on_common_axes(values):
    found = histograms.panel(values)
    for row, numbers in zip(found.rows, values.values(), strict=True):
        finite = np.isfinite(numbers).sum()
        assert sum(count for count, _ in row.bars) == finite
        assert row.num_hidden == len(numbers) - finite
        assert max(count for count, _ in row.bars) <= found.most
        assert len(row.bars) == len(found.rows[0].bars)
        assert row.mean is None if finite == 0 else 0 <= row.mean <= 1
    assert found.ticks and all(0 <= share <= 1 for share, _ in found.ticks)
    assert len({text for _, text in found.ticks}) == len(found.ticks) <= 7


def test_no_finite_number_no_histogram():
    assert histograms.panel({"a": [math.nan, math.inf]}) is None


@pytest.mark.parametrize("factor", [None, 1, 3, 4])
def test_the_square_is_where_the_error_is_largest(factor):
    rng = np.random.default_rng(3)
    reference, *outputs = rng.integers(0, 256, (3, 72, 84, 3), dtype=np.uint8)
    found = gallery.patch_of(reference, outputs, factor)
    step = factor or 1
    assert found.side == {3: 30}.get(factor, 32)
    assert found.top % step == found.left % step == 0
    error = sum(((o.astype(int) - reference) ** 2).sum(axis=-1) for o in outputs)

    def total(top, left):
        return error[top : top + found.side, left : left + found.side].sum()

    corners = [
        (y, x)
        for y in range(0, 72 - found.side + 1, step)
        for x in range(0, 84 - found.side + 1, step)
    ]
    assert total(found.top, found.left) == max(total(y, x) for y, x in corners)


def test_an_inputs_square_shows_what_the_outputs_shows():
    low = np.random.default_rng(4).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    high = low.repeat(4, axis=0).repeat(4, axis=1)
    factor = gallery.factor_between(low.shape, high.shape)
    assert factor == 4 and gallery.factor_between(low.shape, high[:-1].shape) is None
    patch = gallery.Patch(16, 40, 32)
    small = gallery.cut(low, patch, factor)
    large = gallery.cut(high, patch)
    np.testing.assert_array_equal(small.repeat(4, axis=0).repeat(4, axis=1), large)


def test_the_worst_the_best_and_the_middle_are_shown_once():
    psnr = [30.0, 10.0, math.inf, 20.0, math.nan, 25.0, 24.0, 11.0, 12.0, 29.0, 23.0, 22.0]
    lpips = [0.5] * 4 + [0.01, 0.0] + [0.5] * 5 + [0.9]
    found, notes = gallery.choose({"psnr": psnr, "lpips": lpips}, num_columns=5)
    by_group = {}
    for choice in found:
        by_group.setdefault(choice.group, []).append(choice.index)
    assert by_group["Worst by PSNR (dB)"] == [1, 7, 8]
    assert by_group["Best by PSNR (dB)"] == [2, 0, 9]
    assert by_group["Middle by PSNR (dB)"] == [11, 10]
    (middle,) = [choice for choice in found if choice.index == 11]
    assert middle.reasons == ["Middle by PSNR (dB), 1 of 2", "Worst by LPIPS, 1 of 3"]
    assert by_group["Best by LPIPS"] == [5, 4]  # the third is shown already
    indices = [choice.index for choice in found]
    assert len(set(indices)) == len(indices)
    assert notes == ["Without a rank by PSNR (dB), which is nan: 1."]
    few, notes = gallery.choose({"psnr": psnr, "lpips": lpips}, num_columns=60)
    assert [c.index for c in few] == [1, 7] and "more images would be shown" in notes[-1]


def test_the_page_needs_nothing_besides_itself(folder):
    text = (folder / "report.html").read_text()
    page = Page(text)
    outside = {a for a in page.addresses if not a.startswith(("data:", "#"))}
    assert outside == {paper.LINK}
    assert "script" not in page.tags and "b" not in page.tags and "link" in page.tags
    style = re.search("<style>(.*?)</style>", text, re.DOTALL).group(1)
    assert "url(" not in style and "@import" not in style
    words = "".join(page.words)
    for name in (*report_example.METHODS, report_example.NAME, report_example.TITLE):
        assert name in words
    # Numbers that are not finite are shown and explained.
    assert "∞" in words and "of 12 numbers 1 infinite; the interval is of the other 11" in words
    assert "of 12 numbers 1 nan" in words
    # Nor do they make a method the best: PSNR and LPIPS have none, and SSIM, consistency, gradient
    # energy, FID and the shares of detail have one.
    assert text.count('<span class="best">') == 7
    assert "no interval, since it is not the mean of the images' numbers" in words


def test_the_papers_numbers_are_the_papers_and_apart(folder):
    text = (folder / "report.html").read_text()
    start = text.index('<section id="paper">')
    section = text[start : text.index("</section>", start)]
    for method, row in paper.table("1").rows.items():
        (line,) = re.findall(rf"<tr>.*{method}</span>.*</tr>", section)
        assert '<span class="tag">paper</span>' in line
        for number in row.values():
            assert f"<td>{number}</td>" in line
            assert f">{number}<" not in text.replace(section, "")
    lines = (folder / "report.md").read_text().splitlines()
    assert all(line.startswith("| paper: ") for line in lines if "161.1" in line or "23.04" in line)
    with pytest.raises(ValueError, match="no table '6' of the paper"):
        paper.table("6")


def test_markdown_is_whole_and_its_pictures_are_there(folder):
    markdown_it = pytest.importorskip("markdown_it")
    tokens = (
        markdown_it.MarkdownIt("commonmark")
        .enable("table")
        .parse((folder / "report.md").read_text())
    )
    inline = [child for token in tokens if token.children for child in token.children]
    html_blocks = [token.content for token in tokens if token.type == "html_block"]
    assert not [token for token in inline if token.type == "html_inline"]
    assert all(re.match("</?details>", block) for block in html_blocks)
    (code,) = [token.content for token in tokens if token.type == "fence"]
    assert code == report_example.CONFIG + "\n"
    columns = cells = 0
    for token in tokens:
        columns = 0 if token.type == "thead_open" else columns + (token.type == "th_open")
        cells = 0 if token.type == "tr_open" else cells + (token.type == "td_open")
        assert token.type != "tr_close" or cells in (0, columns)
    text = "\n".join(token.content for token in inline if token.type == "text")
    for name in (*report_example.METHODS, report_example.NAME, report_example.TITLE):
        assert name in text.replace("\n", "") or name in text
    pictures = [token.attrs["src"] for token in inline if token.type == "image"]
    assert len(pictures) == 8
    for path in pictures:
        with Image.open(folder / path) as picture:
            assert picture.size[0] > 5 * 64


def test_without_inputs_and_without_numbers_of_images(example, tmp_path):
    report_example.write(tmp_path / "a", example, with_input=False, paper_table="")
    text = (tmp_path / "a" / "report.html").read_text()
    assert "<figcaption>input" not in text and paper.LINK not in text
    sets = page.Results({"x": {"fid": 7.5}, "y": {"fid": 6.5}}, [], {})
    report_example.write(tmp_path / "b", example, results=sets)
    text = (tmp_path / "b" / "report.html").read_text()
    assert '<span class="best">6.50</span>' in text and "<figure>" not in text


def test_what_does_not_fit_is_named(example, tmp_path):
    def refuses(message, **changes):
        with pytest.raises(ValueError, match=message):
            report_example.write(tmp_path, example, **changes)

    refuses("of no method", results=page.Results({}, [], {}))
    short = page.Results({"a": {"psnr": 1.0}}, ["1", "2"], {"a": {"psnr": [1.0]}})
    refuses("psnr of 'a' has 1 numbers for 2 images", results=short)
    unknown = page.Results({"a": {"psnr": 1.0}}, ["1"], {"a": {"ssim": [1.0]}})
    refuses("its mean is not in means", results=unknown)
    refuses("called 'input'", results=page.Results({"input": {"psnr": 1.0}}, [], {}))

    def cropped(kind, i):
        image = example.picture(kind, i)
        return image[1:] if kind == "sr3" else image

    refuses("'sr3' is .*, where the reference is", picture=cropped)
    refuses("no table '9' of the paper", paper_table="9")
    assert not list(tmp_path.iterdir())


def test_the_commit_is_of_the_packages_own_checkout(tmp_path):
    def git(*arguments):
        name = ["-c", "user.name=n", "-c", "user.email=e@x"]
        command = ["git", "-C", str(tmp_path), *name, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package, installed = tmp_path / "package", tmp_path / "lib" / "package"
    for path in (package, installed):
        path.mkdir(parents=True)
        (path / "a.py").write_text("a = 1\n")
    assert provenance.commit(package) == "unknown, not a git checkout"
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message=x")
    (tmp_path / "notes.txt").write_text("not of the package")
    name = git("rev-parse", "HEAD")
    assert provenance.commit(package) == name
    assert provenance.commit(installed) == "unknown, not a git checkout"
    (package / "b.py").write_text("b = 2\n")
    assert provenance.commit(package).startswith(f"{name} (modified")
