"""Differences between groups are found where they are, and seldom where they are not."""

import json
import subprocess
import sys

import numpy as np
import pytest
import small_run
from etils import epath
from PIL import Image

from sr3_jax.tools import measure_groups

NAMES = [f"faces/{i}.png" for i in range(60)]


def _csv(groups, header="name,age"):
    return "\n".join([header, *(f"{n},{g}" for n, g in zip(NAMES, groups, strict=True))]) + "\n"


def test_equal_groups_differ_as_seldom_as_the_test_says():
    """Groups of other sizes and spreads, and four comparisons at once."""
    rng, groups = np.random.default_rng(0), ["a"] * 12 + ["b"] * 18 + ["c"] * 30
    found = []
    for _ in range(150):
        scores = {name: (rng.normal(size=60) ** 3).tolist() for name in ("psnr", "consistency")}
        given = {"x": groups, "y": rng.permutation(groups).tolist()}
        found.append(measure_groups.compare(given, scores, 199))
    p_values = np.array([[each.p_value for each in one] for one in found])
    assert 0.02 <= (p_values <= 0.05).mean() <= 0.09
    adjusted = np.array([[each.adjusted for each in one] for one in found])
    assert (adjusted >= p_values).all() and (adjusted.min(axis=1) <= 0.05).mean() <= 0.1


def test_a_group_that_fares_worse_is_found_and_named():
    rng = np.random.default_rng(1)
    groups = ["young"] * 20 + ["old"] * 20 + ["middle"] * 20
    numbers = rng.normal(size=60) + np.repeat([0.0, 2.0, 1.0], 20)
    numbers[3] = np.inf  # left out and counted
    (one, other) = measure_groups.compare(
        {"age": groups},
        {"energy_score": numbers.tolist(), "consistency": rng.normal(size=60).tolist()},
    )
    assert one.largest == ("young", "old") and one.adjusted < 0.01 < other.p_value
    assert one.means["young"].num_finite == 19
    np.testing.assert_allclose(one.means["old"].mean, numbers[20:40].mean())
    text = measure_groups.table([one, other])
    assert "old less young" in text and "| young | 19 |" in text


def test_wrong_tables_and_vectors_are_named(tmp_path):
    tmp_file = epath.Path(tmp_path) / "a.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_file)
    good = ["a"] * 30 + ["b"] * 30
    assert measure_groups.read_groups(_csv(good), NAMES) == {"age": good}
    few = good[:-5] + ["c"] * 5
    assert measure_groups.read_groups(_csv(few), NAMES)["age"][-5:] == [""] * 5
    two = "\n".join(
        f"{line},{'empty' if i == 0 else ''}" for i, line in enumerate(_csv(good).split())
    )
    assert measure_groups.read_groups(two, NAMES) == {"age": good}
    for wrong in (np.zeros((60, 3)), np.full((60, 3), np.nan), np.zeros(60), ["a"] * 60):
        with pytest.raises(ValueError, match="--embedding"):
            measure_groups.identity_distances(
                lambda images, wrong=wrong: wrong[: len(images)], [tmp_file] * 2, [tmp_file] * 2
            )
    for text, message in (
        ("age\n3\n", "has the columns age"),
        (_csv(good) + "faces/0.png,a\n", "faces/0.png' twice"),
        (_csv(good) + "other.png,a\n", "such as 'other.png'"),
        (_csv(["a"] * 60), "no attribute of age has two groups of 10 images"),
        (_csv(good).replace("0.png,a", "0.png,a,more", 1), "line 2 has more cells"),
        (_csv(good).replace(",", ";"), "has the columns name;age; .* with commas between"),
    ):
        with pytest.raises(ValueError, match=message):
            measure_groups.read_groups(text, NAMES)


def test_an_evaluation_is_compared_with_an_embedding_of_ones_own(tmp_path):
    """The program itself; identities are means of colours, which the outputs of group b lack."""
    root, rng = epath.Path(tmp_path), np.random.default_rng(2)
    small_run.write_workdir(root / "run")
    folder = root / "run" / "evaluation"
    files = [f"{i:06d}.png" for i in range(60)]
    for name in ("reference", "sr3"):
        (folder / "images" / name).mkdir(parents=True)
    for i, file in enumerate(files):
        colour = rng.integers(40, 200, 3)
        image = np.broadcast_to(colour, (12, 12, 3)).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / "reference" / file)
        wrong = image if i < 30 else image[..., [1, 2, 0]]
        Image.fromarray(wrong).save(folder / "images" / "sr3" / file)
    scores = {"psnr": rng.normal(size=60).tolist(), "consistency": rng.normal(size=60).tolist()}
    content = {"names": NAMES, "files": files, "scores": {"bicubic": scores, "sr3": scores}}
    (folder / "images.json").write_text(json.dumps(content))
    (root / "groups.csv").write_text(_csv(["a"] * 30 + ["b"] * 30))
    (root / "own.py").write_text("def colours(images):\n    return images.mean(axis=(1, 2))\n")
    command = [sys.executable, "-m", "sr3_jax.tools.measure_groups", f"--workdir={root / 'run'}"]
    command += [f"--groups={root / 'groups.csv'}", f"--embedding={root / 'own.py'}:colours"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=small_run.ROOT)
    assert done.returncode == 0, done.stderr
    rows = json.loads((folder / "groups.json").read_text())
    found = {row["metric"]: row for row in rows}
    assert set(found) == {"psnr", "consistency", measure_groups.DISTANCE}
    distance = found[measure_groups.DISTANCE]
    assert distance["means"]["a"]["mean"] == pytest.approx(0.0, abs=1e-9)
    assert distance["largest"] == ["a", "b"] and distance["adjusted"] < 0.01
    assert "b less a" in (folder / "groups.md").read_text()
    done = subprocess.run(
        [*command[:-1], "--embedding=nothing.py:f"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2 and "--embedding=nothing.py:f" in done.stderr
