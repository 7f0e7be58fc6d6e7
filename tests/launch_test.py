"""The launchers: the commands they print, and what they do when a slice is taken away.

`gcloud` and `kubectl` are stood in for by scripts: the first keeps a slice's state in files and
runs here what is sent to hosts.
"""

import importlib.util
import json
import os
import shlex
import stat
import subprocess

import pytest
import small_run
import yaml

GCLOUD = """#!/usr/bin/env bash
echo "$@" >> "$FAKE/calls"
home=$FAKE/host
case "$*" in
  *"queued-resources create"*) mkdir -p "$home"; echo ACTIVE > "$FAKE/state" ;;
  *"queued-resources delete"*) rm -rf "$home" "$FAKE/state" ;;
  *"queued-resources list"*) cat "$FAKE/state" 2> /dev/null || true ;;
  *"tpu-vm scp"*) cp "$5" "$home/sr3_jax.tar.gz" ;;
  *"tpu-vm ssh"*)
    for last; do :; done
    command=${last#--command=}
    case $command in *"pip install"*) command=${command%%python3 -m pip*} ;; esac
    cd "$home" && HOME=$home bash -c "$command" ;;
esac
"""
# Stands in for the installed Python: the first time the slice goes away under it.
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$@" >> "$FAKE/trained"
if [ ! -e "$FAKE/preempted" ]; then
  touch "$FAKE/preempted"
  echo SUSPENDED > "$FAKE/state"
  kill -9 $PPID  # what had started it is on the same machine
  exit 75
fi
[ -e "$FAKE/lost" ] || { touch "$FAKE/lost"; exit 75; }
exit "${FAKE_STATUS:-0}"
"""


# Finds this test's training alone.
PGREP = """#!/usr/bin/env bash
for file in /proc/[0-9]*/cmdline; do
  if tr '\\0' ' ' 2> /dev/null < "$file" | grep -q "^bash -c while.*$FAKE"; then exit 0; fi
done
exit 1
"""


def launch(*arguments, script="launch/tpu_pod.sh", **variables):
    return subprocess.run(
        ["bash", script, *arguments],
        cwd=small_run.ROOT,
        env=os.environ | {"NAME": "sr3", "ZONE": "zone-a", "TYPE": "v3-128"} | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


@pytest.fixture
def fake(tmp_path):
    """Variables under which `gcloud` is the stand-in."""
    executable(tmp_path / "bin" / "gcloud", GCLOUD)
    executable(tmp_path / "bin" / "pgrep", PGREP)
    executable(tmp_path / "bin" / "sleep", "#!/bin/sh\nexec /bin/sleep 0.2\n")
    return tmp_path, {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "FAKE": str(tmp_path),
        "POLL_SECONDS": "1",
    }


@pytest.mark.parametrize("status", ["0", "1", "2"])
def test_a_preempted_slice_is_asked_for_anew_and_the_run_goes_on(fake, status):
    folder, variables = fake
    executable(folder / "python", PYTHON)
    # What `uv venv` would have made, wherever the code is unpacked.
    unpack = '#!/usr/bin/env bash\n/bin/tar "$@"; mkdir -p sr3_jax/.venv/bin\n'
    unpack += 'cp "$FAKE/python" sr3_jax/.venv/bin/python\n'
    executable(folder / "bin" / "tar", unpack)
    flags = ["--config=configs/x.py", f"--workdir={folder}/run", "--config.data.path=a 'b' c"]
    result = launch("run", *flags, **variables, FAKE_STATUS=status)
    assert result.returncode == int(status), result.stderr
    assert f"training ended with status {status}" in result.stderr
    calls = (folder / "calls").read_text()
    # Once because there was none, once because it was taken away.
    assert calls.count("queued-resources create sr3") == 2
    assert calls.count("queued-resources delete sr3") == 1
    trained = (folder / "trained").read_text().splitlines()
    # Preempted; lost another host, started again on the same slice; done.
    assert trained == ["-m", "sr3_jax.main", *flags] * 3


def test_dry_run_prints_commands_that_a_shell_takes_and_runs_none(fake):
    folder, variables = fake
    for action in ("create", "run", "logs", "delete"):
        flags = ["--config=configs/x.py", "--workdir=gs://b"] if action == "run" else []
        result = launch(action, *flags, **variables, DRY_RUN="1", SPOT="1", PROJECT="mine")
        assert result.returncode == 0, result.stderr
        lines = [line for line in result.stdout.splitlines() if not line.startswith("#")]
        commands = [shlex.split(line) for line in lines]
        assert commands and all(command[0] in ("gcloud", "git") for command in commands)
        for command in commands:
            if command[0] == "gcloud":
                assert "--zone=zone-a" in command and "--project=mine" in command
        if action == "create":
            assert "--accelerator-type=v3-128" in commands[0] and "--spot" in commands[0]
        if action == "run":
            (install,) = [c for c in commands if "requirements.txt" in c[-1]]
            pinned = (small_run.ROOT / "requirements.txt").read_text().split("\njax==")[1]
            assert f"'jax[tpu]=={pinned.split()[0]}'" in install[-1] and "--worker=all" in install
    assert not (folder / "calls").exists()


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["start"], {}, "'start' is none of create, run, logs, delete"),
        (["create"], {"NAME": ""}, "NAME is not set"),
        (["create"], {"TYPE": ""}, "TYPE is not set"),
        (["logs"], {"ZONE": ""}, "ZONE is not set"),
        (["run"], {}, "run needs the training command's flags"),
    ],
)
def test_wrong_use_is_named(arguments, variables, message):
    result = launch(*arguments, **variables)
    assert result.returncode == 2 and message in result.stderr


GKE = {
    "REPOSITORY": "https://example.org/sr3_jax.git",
    "ACCELERATOR": "tpu-v5-lite-podslice",
    "TOPOLOGY": "4x8",
    "SLICES": "2",
}


def gke(*arguments, **variables):
    return launch(*arguments, script="launch/gke.sh", **variables)


def test_gke_applies_a_manifest_with_a_pod_for_each_host_and_the_flags_as_given(tmp_path):
    executable(
        tmp_path / "kubectl", '#!/bin/sh\necho "$@" > "$FAKE/args"; cat > "$FAKE/manifest"\n'
    )
    flags = ["--config=configs/x.py", "--config.data.path=a 'b' $HOME \\ \"c\" {d} & |"]
    path = f"{tmp_path}:{os.environ['PATH']}"
    result = gke("create", *flags, **GKE, PATH=path, FAKE=str(tmp_path), COMMIT="abc")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "args").read_text().split() == ["apply", "-f", "-"]
    manifest = yaml.safe_load((tmp_path / "manifest").read_text())
    assert manifest["kind"] == "JobSet" and manifest["metadata"]["name"] == "sr3"
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert job["replicas"] == 2 and spec["parallelism"] == spec["completions"] == 8
    (container,) = spec["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [1, 2] and rule["action"] == "FailJob"
    # The shell of the pod makes of FLAGS what was typed.
    script = container["command"][2]
    assert 'git clone --quiet "https://example.org/sr3_jax.git"' in script and '"abc"' in script
    end = script[script.index("eval") :].replace("exec python -m sr3_jax.main", "printf '%s\\n'")
    (variable,) = container["env"]
    said = subprocess.run(
        ["bash", "-c", end], env=os.environ | {"FLAGS": variable["value"]}, capture_output=True
    )
    assert said.stdout.decode().splitlines() == flags


def test_gke_dry_runs_and_wrong_use():
    result = gke("create", "--config=x", **GKE, DRY_RUN="1")
    assert result.stdout.startswith("kubectl apply -f - <<") and "kind: JobSet" in result.stdout
    assert gke("delete", DRY_RUN="1").stdout.split() == ["kubectl", "delete", "jobset", "sr3"]
    assert gke("logs", DRY_RUN="1").stdout.startswith("kubectl logs --follow")
    for arguments, variables, message in (
        (["create", "--config=x"], GKE | {"TOPOLOGY": "2x3"}, "6 chips, which hosts of CHIPS=4"),
        (["create", "--config=x"], {}, "REPOSITORY is not set"),
        (["create"], GKE, "create needs the training command's flags"),
        (["start"], GKE, "'start' is none of create, logs, delete"),
    ):
        result = gke(*arguments, **variables)
        assert result.returncode == 2 and message in result.stderr


def _upscale_job(tmp_path, statuses: list[int]):
    """Runs the job with a Python that ends with each status in turn."""
    fake = tmp_path / "python"
    fake.write_text(
        f'#!/usr/bin/env bash\necho "$@" >> "{tmp_path}/calls"\n'
        f'left=$(cat "{tmp_path}/left"); echo "${{left#* }}" > "{tmp_path}/left"\n'
        'exit "${left%% *}"\n'
    )
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "left").write_text(" ".join(map(str, statuses)) + " end")
    sleep = tmp_path / "sleep"
    sleep.write_text("#!/usr/bin/env bash\n")
    sleep.chmod(sleep.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {
        "PYTHON": str(fake),
        "HOME": str(tmp_path),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    script = ["bash", "launch/upscale_job.sh", "RUN", "IN", "OUT", "--steps=20"]
    done = subprocess.run(script, env=environment, cwd=small_run.ROOT, capture_output=True)
    return done.returncode, (tmp_path / "calls").read_text().splitlines()


def test_the_upscaling_job_goes_on_until_nothing_is_missing(tmp_path):
    status, calls = _upscale_job(tmp_path, [75, 143, 0])
    assert status == 0 and len(calls) == 3 and len(set(calls)) == 1
    assert calls[0] == (
        "-m sr3_jax.main --mode=upscale --workdir=RUN --input=IN --output=OUT --steps=20"
    )


def test_the_upscaling_job_ends_where_another_try_would_not_help(tmp_path):
    status, calls = _upscale_job(tmp_path, [2, 0])
    assert status == 2 and len(calls) == 1


def test_on_the_head_of_a_ray_cluster_the_cluster_does_it(tmp_path):
    (tmp_path / "ray_bootstrap_config.yaml").touch()
    _, calls = _upscale_job(tmp_path, [0])
    assert "--engine=ray --ray_address=auto" in calls[0]


def test_the_cluster_file_is_what_ray_expects():
    jsonschema = pytest.importorskip("jsonschema", reason="ray[data] is not installed")
    # Found, not imported: imported early, Ray would not take the settings of the engine.
    spec = importlib.util.find_spec("ray")
    if spec is None:
        pytest.skip("ray is not installed")
    folder = os.path.join(os.path.dirname(spec.origin), "autoscaler")
    with open(os.path.join(folder, "ray-schema.json"), encoding="utf-8") as file:
        schema = json.load(file)
    with open(small_run.ROOT / "launch" / "ray_cluster.yaml", encoding="utf-8") as file:
        cluster = yaml.safe_load(file)
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
