"""Ablations: real, tiny trainings; what is done once, what goes on, what fails, what is said."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import forked_run
import pytest
import small_run
from absl import flags
from ml_collections import config_flags

from configs import imagenet_64_256
from sr3_jax.config import read
from sr3_jax.tools.ablate import __main__ as ablate
from sr3_jax.tools.ablate import plan as ablation_plan
from sr3_jax.tools.ablate import table as ablation_table

FILENAME = "configs/quickstart.py"
TINY = small_run.OVERRIDES | {
    "train.num_steps": 2,
    "train.num_warmup_steps": 1,
    "train.num_decay_steps": 1,
    "train.sample_every_steps": 0,
    "evaluation.image_size": 16,
    "sampling.tile_size": 16,
}
# Trained in a moment; enough steps for a signal to meet it at work.
LONG = TINY | {"method": "srcnn", "train.num_steps": 150, "checkpoint.every_steps": 50}


class ForkedMain:
    """Returns the same as `_start`, without importing everything anew."""

    def __init__(self, main_flags, log):
        self.process = forked_run.start(list(main_flags), pathlib.Path(log.name))

    def poll(self):
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.process.pid, number)


def runs_of(workdir, *vary, overrides=TINY, seeds=1):
    """Returns the runs of the tiny config, without its values of options that vary."""
    varied = [given.partition("=")[0] for given in vary]
    overrides = {key: value for key, value in overrides.items() if key not in varied}
    config = small_run.config()
    config.update_from_flattened_dict(overrides)
    return ablation_plan.combinations(config, FILENAME, overrides, vary, seeds, workdir)


def never(*_):
    raise AssertionError("a run was started")


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows(text):
    head, _, *body = text.splitlines()
    return [dict(zip(cells(head), cells(line), strict=True)) for line in body]


def test_a_network_is_trained_once_for_all_samplings_and_failures_are_told(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(ablate, "_start", ForkedMain)
    photos, both = "data.source=photos", "data.source=photos,folder"
    runs = runs_of(tmp_path, "sampling.num_steps=2,4", both)
    assert ablate.run_all(runs, tmp_path) == 1
    two, no_two, four, no_four = runs
    assert small_run.read_checkpoint(four.folder, 2)  # by the link
    assert (four.folder / "checkpoints").readlink().parts[1] == two.folder.name
    assert sum(ablation_plan.has_training(run.folder) for run in runs) == 1
    assert not list(four.folder.glob("events*")) and list(two.folder.glob("events*"))

    table = (tmp_path / "ablation.md").read_text()
    assert table in capsys.readouterr().out
    *own, bicubic = rows(table)
    assert [row["status"].split(":")[0] for row in own] == [
        "done",
        "failed",
        "done",
        "failed",
    ]
    assert "config.data.path is empty" in own[1]["status"]
    assert str(no_two.folder / "log.txt") in own[1]["status"]
    assert f"{no_two.folder} is not trained" in own[3]["status"] and not no_four.folder.exists()
    psnr = set()
    for row, run in ((own[0], two), (own[2], four)):
        scores = json.loads((run.folder / "evaluation" / "metrics.json").read_text())
        assert float(row["PSNR (dB)"]) == pytest.approx(scores["sr3"]["psnr"], rel=1e-3)
        psnr.add(scores["sr3"]["psnr"])
        assert row["sampling.num_steps"] == str(run.config.sampling.num_steps)
        assert row["n"] == "8" and row["training steps"] == "2"
        assert float(bicubic["PSNR (dB)"]) == pytest.approx(scores["bicubic"]["psnr"], rel=1e-3)
    assert len(psnr) == 2  # another number of steps gives other pictures
    assert bicubic["method"] == "bicubic" and bicubic["sampling.num_steps"] == ""
    kept = json.loads((tmp_path / "ablation.json").read_text())
    assert [row["status"] for row in kept] == ["done", "failed", "done", "failed"]

    # What is done is not done again, in whatever order it is asked for.
    monkeypatch.setattr(ablate, "_start", never)
    assert ablate.run_all(runs_of(tmp_path, "sampling.num_steps=4,2", photos), tmp_path) == 0
    more = runs_of(tmp_path, "sampling.num_steps=3,2", photos)
    for _ in range(3):  # also after a kill in the middle of it
        assert ablation_plan.next_step(more[0], more) == ("evaluate", two.folder)
        ablation_plan.borrow_training(more[0], two.folder)
    # Unless the evaluation's images choose the checkpoint, and were others.
    best = TINY | {"evaluation.checkpoint": "best"}
    for size, step in ((16, "evaluate"), (32, "train")):
        sized = best | {"evaluation.image_size": size}
        others = runs_of(tmp_path, "sampling.clip=false", overrides=sized)
        assert ablation_plan.next_step(others[0], others)[0] == step
    ablation_plan.check_folders(more)
    changed = runs_of(tmp_path, "sampling.num_steps=3,2", photos, overrides=TINY | {"seed": 5})
    with pytest.raises(ValueError, match=r"num_steps=3,.*config\.seed was 0 and is now 5"):
        ablation_plan.check_folders(changed)


def wait_for_checkpoint(workdir, beyond, alive=lambda: True):
    deadline = time.monotonic() + 200
    while True:
        steps = [int(p.name) for p in workdir.glob("*/checkpoints/*") if p.name.isdigit()]
        if max(steps, default=0) > beyond:
            return max(steps)
        assert alive() and time.monotonic() < deadline
        time.sleep(0.01)


def test_signals_reach_the_run_and_the_same_command_goes_on(tmp_path, monkeypatch):
    vary = "evaluation.crop_border=0"
    command = [sys.executable, "-m", "sr3_jax.tools.ablate", f"--config={FILENAME}"]
    runs = runs_of(tmp_path, vary, overrides=LONG)
    command += [f"--workdir={tmp_path}", f"--vary={vary}", *runs[0].flags[1:-1]]
    with (tmp_path / "said.txt").open("wb") as said:
        runner = subprocess.Popen(command, cwd=small_run.ROOT, stdout=said, stderr=said)
    wait_for_checkpoint(tmp_path, 0, lambda: runner.poll() is None)
    with pytest.raises(ValueError, match="still at work"):
        ablate.run_all(runs, tmp_path)
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(60) == 75
    said = (tmp_path / "said.txt").read_text()
    assert "is saved" in said and said.endswith("stopped; the same command goes on\n"), said
    assert rows((tmp_path / "ablation.md").read_text())[0]["status"] == "pending"
    step = wait_for_checkpoint(tmp_path, 0)
    assert step < 150 and ablation_plan.next_step(runs[0], runs) == ("train", runs[0].folder)

    monkeypatch.setattr(ablate, "_start", ForkedMain)
    assert ablate.run_all(runs, tmp_path) == 0
    assert f"resuming at step {step}" in (runs[0].folder / "log.txt").read_text()
    assert runs[0].is_done and wait_for_checkpoint(tmp_path, 0) == 150


END = "import os, signal, sys, time; "


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("sys.exit(75)", 75, "pending"),
        ("sys.exit(143)", 75, "pending"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 75, "pending"),
        ("sys.exit(130)", 130, "pending"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 1, "failed: ended by SIGKILL; see"),
        (
            "print('error: a \\rb', 'error: a | b', sep='\\n'); sys.exit(1)",
            1,
            "error: a \\| b; see",
        ),
        ("print('so'); raise OSError('it ends')", 1, "failed: OSError: it ends; see"),
    ],
)
def test_what_the_end_of_a_run_means(tmp_path, monkeypatch, code, status, said):
    begun = []

    def start(_, log):
        begun.append(log.name)
        return subprocess.Popen([sys.executable, "-c", END + code], stdout=log, stderr=log)

    monkeypatch.setattr(ablate, "_start", start)
    runs = runs_of(tmp_path, "train.loss=l1,l2")
    assert ablate.run_all(runs, tmp_path) == status
    # After a failure the others are run; after a stop none.
    assert len(begun) == (2 if status == 1 else 1)
    assert said in (tmp_path / "ablation.md").read_text()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_may_end_as_it_likes(tmp_path, monkeypatch, number, status):
    """It gets the signal once, whatever it then does; no other run is begun."""
    own = f"{{{int(number)}}}"
    code = f"signal.pthread_sigmask(signal.SIG_BLOCK, {own}); print('up', flush=True); "
    code += f"signal.sigwait({own}); time.sleep(0.5); sys.exit(len(signal.sigpending()))"

    def start(_, log):
        command = [sys.executable, "-c", END + code]
        child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

        def interrupt():
            while not pathlib.Path(log.name).read_bytes():
                time.sleep(0.01)
            os.kill(os.getpid(), number)

        threading.Thread(target=interrupt).start()
        return child

    monkeypatch.setattr(ablate, "_start", start)
    runs = runs_of(tmp_path, "train.loss=l1,l2")
    assert ablate.run_all(runs, tmp_path) == status
    assert runs[0].folder.exists() and not runs[1].folder.exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("train.loss=l1,l2", ["l1", "l2"]),
        ("train.flip=true,False", [True, False]),
        ("train.num_steps=3,1000", [3, 1000]),
        ("train.blur_probability=0,0.5,1e-7", [0.0, 0.5, 1e-7]),
        ("model.multipliers=1:2:4,1", [(1, 2, 4), (1,)]),
        ("train.blur_sigma=0.1:1,0.25:1", [(0.1, 1.0), (0.25, 1.0)]),
        ("model.attention_resolutions=,16,16:16", [(), (16,), (16, 16)]),
        ("seed=1,2", [1, 2]),
    ],
)
def test_the_flags_of_a_run_give_it_its_values(given, expected, tmp_path):
    """As `sr3_jax.main` reads its command line, to the last bit."""
    key = given.partition("=")[0]
    runs = runs_of(tmp_path, given)
    assert [run.values[key] for run in runs] == expected
    assert [type(run.values[key]) for run in runs] == [type(value) for value in expected]
    assert len({run.folder for run in runs}) == len(runs)
    for run in runs:
        argv = ["main", *run.flags]
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
        values(argv)
        assert read(values.config) == run.config


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (["train.num_stpes=3"], 'no config.train.num_stpes: .*Did you mean "num_steps"'),
        (["trian.loss=l1"], 'Did you mean "train"'),
        (["train.loss.x=1"], "no config.train.loss.x"),
        (["train=1"], "config.train is a section"),
        (["train.loss"], "give KEY=V1,V2"),
        (["train.num_steps=3,many"], "config.train.num_steps = 'many' is not of its type, int"),
        (["train.num_steps=1.5"], "config.train.num_steps = '1.5' is not of its type, int"),
        (["train.flip=perhaps"], "config.train.flip = 'perhaps' is not of its type, bool"),
        (["model.multipliers=1:x"], "config.model.multipliers = '1:x' .* tuple of int"),
        (["train.learning_rate=0.5,0.50"], "config.train.learning_rate has 0.5 twice"),
        (["train.loss=l1", "train.loss=l2"], "config.train.loss is given twice"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_keys_and_values_are_named(vary, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        runs_of(tmp_path, *vary)


def test_the_files_of_ablations_work_together_with_a_config_of_the_paper(tmp_path):
    files = sorted((small_run.ROOT / "configs" / "ablations").iterdir())
    given = flags.FlagValues()
    flags.DEFINE_multi_string("vary", [], "", flag_values=given)
    given(["ablate", *(f"--flagfile={path}" for path in files)])
    assert len(given.vary) == len(files) == 4
    config, filename = imagenet_64_256.get_config(), "configs/imagenet_64_256.py"
    runs = ablation_plan.combinations(config, filename, {}, given.vary, 1, tmp_path)
    assert len(runs) == 2 * 2 * 4 * 5
    ablation_plan.check({run.folder.name: run.config for run in runs})


def test_what_is_varied_is_not_set_besides(tmp_path):
    given = {"train.batch_size": 4}
    with pytest.raises(ValueError, match="config.train.batch_size is given twice"):
        ablation_plan.combinations(
            small_run.config(), FILENAME, given, ["train.batch_size=8"], 1, tmp_path
        )
    with pytest.raises(ValueError, match="both vary config.seed"):
        runs_of(tmp_path, "seed=1,2", seeds=2)


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ("train.loss=l1,l3", r"train\.loss=l3: config\.train\.loss = 'l3' is unknown"),
        ("diffusion.num_steps=2000,50", r"diffusion\.num_steps=50: config\.diffusion"),
        ("sampling.num_steps=4,0", r"sampling\.num_steps=0: config\.sampling"),
        ("sampling.tile_size=16,17", "config.sampling.tile_size = 17|does not divide"),
        ("data.low_resolution=4,64", "data.low_resolution=64: .*at most as large"),
        ("parallel.model=1,3", r"parallel\.model=3: config\.parallel"),
        ("train.clip_norm=1,-1", r"clip_norm=-1: config\.train\.clip_norm"),
    ],
)
def test_every_combination_is_checked_before_the_first_begins(vary, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        runs = runs_of(tmp_path, vary, overrides=TINY | {"model.multipliers": (1, 2)})
        ablation_plan.check({runs[0].folder.name: runs[0].config})
        ablation_plan.check({run.folder.name: run.config for run in runs})


def test_the_command_checks_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "sr3_jax.tools.ablate", f"--config={FILENAME}"]
    command += [f"--workdir={tmp_path}", "--vary=sampling.num_steps=5,1", "--seeds=2"]
    plan = subprocess.run(
        [*command, "--dry_run", "--config.sampling.schedule=respaced"],
        cwd=small_run.ROOT,
        capture_output=True,
        text=True,
    )
    assert plan.returncode == 0, plan.stderr
    first, second = "sampling.num_steps=5", "sampling.num_steps=1"
    assert plan.stdout.splitlines() == [
        f"to train: {first}",
        f"to train: {first},seed=1",
        f"to evaluate: {second}, of the training of {first}",
        f"to evaluate: {second},seed=1, of the training of {first},seed=1",
    ]
    assert not list(tmp_path.iterdir())


def result(values, seed, psnr, failure="", bicubic=10.0):
    scores = None
    if psnr is not None:
        time = {"seconds_per_image": 0.5}
        scores = {"bicubic": {"psnr": bicubic} | time, "sr3": {"psnr": psnr, "n": 50_000} | time}
    return ablation_table.Result(values, seed, "folder", "sr3", 7, scores, failure)


def test_seeds_give_means_and_deviations():
    a, b = {"train.loss": "l1"}, {"train.loss": "l2"}
    results = [result(a, 0, 20.0), result(a, 1, 22.0), result(b, 0, 21.0), result(b, 1, None)]
    one, two, bicubic = rows(ablation_table.table(results))
    # Of 20 and 22: mean 21, sample standard deviation sqrt(2).
    assert one["PSNR (dB)"] == "21.00 ± 1.4" and one["n"] == "50000" and one["status"] == "done"
    assert two["PSNR (dB)"] == "21.00" and two["status"] == "1 of 2 done"
    assert bicubic["PSNR (dB)"] == "10.00 ± 0"
    # Equal images in one seed make the mean infinite, and leave no deviation.
    results = [result(a, 0, 20.0), result(a, 1, float("inf"))]
    assert rows(ablation_table.table(results))[0]["PSNR (dB)"] == "inf"


def test_scores_of_older_evaluations_are_read_under_todays_names(tmp_path):
    path = tmp_path / "metrics.json"
    assert ablation_table.read_scores(path) is None
    path.write_text('{"sr3": {"psnr": "Infinity", "detail": 0.5, "detail_std": 0.1, "n": 3}}')
    scores = ablation_table.read_scores(path)
    expected = {"psnr": "Infinity", "gradient_energy": 0.5, "gradient_energy_std": 0.1, "n": 3}
    assert scores == {"sr3": expected}


def test_bicubic_has_a_row_for_each_way_to_measure_it():
    keys = ["evaluation.crop_border", "train.loss"]
    results = [
        result(dict(zip(keys, (border, loss), strict=True)), 0, psnr, failure, 10.0 + border)
        for border, loss, psnr, failure in [
            (0, "l1", 20.0, ""),
            (0, "l2", None, "a | b"),
            (2, "l1", 21.0, ""),
            (2, "l2", float("inf"), ""),
        ]
    ]
    text = ablation_table.table(results).replace("\\|", "/")
    *own, first, second = rows(text)
    assert [row["status"] for row in own] == ["done", "failed: a / b", "done", "done"]
    assert own[3]["PSNR (dB)"] == "inf"
    for row, border in ((first, 0), (second, 2)):
        assert row["method"] == "bicubic" and row["train.loss"] == ""
        assert row["evaluation.crop_border"] == str(border)
        assert float(row["PSNR (dB)"]) == 10.0 + border
