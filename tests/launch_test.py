"""The launchers: the commands they print, and what they do when a slice is taken away.

`gcloud` and `kubectl` are stood in for by scripts: the first keeps a slice's state in files and
runs here what is sent to hosts.
"""

import importlib.util
import json
import os
import pathlib
import shlex
import shutil
import socket
import stat
import subprocess
import time

import pytest
import small_run
import yaml

GCLOUD = """#!/usr/bin/env bash
echo "$@" >> "$FAKE/calls"
case "$*" in
  *"queued-resources create"*)
    for host in $HOSTS; do mkdir -p "$FAKE/$host"; done
    echo ACTIVE > "$FAKE/state" ;;
  *"queued-resources delete"*)
    for host in $HOSTS; do rm -rf "${FAKE:?}/$host"; done
    rm "$FAKE/state" ;;
  *"queued-resources list"*) cat "$FAKE/state" 2> /dev/null || true ;;
  *"tpu-vm scp"*)
    # A connection that breaks off.
    [ ! -e "$FAKE/refuse" ] || { rm "$FAKE/refuse"; exit 255; }
    for host in $HOSTS; do cp "$5" "$FAKE/$host/sr3_jax.tar.gz"; done ;;
  *"tpu-vm ssh"*)
    for last; do :; done
    command=${last#--command=}
    case $command in *"pip install"*) command=${command%%python3 -m pip*} ;; esac
    case "$*" in *--worker=all*) ;; *) HOSTS=${HOSTS%% *} ;; esac
    for host in $HOSTS; do
      all="HOME=$FAKE/$host FAKE=$FAKE FAKE_STATUS=${FAKE_STATUS:-} PATH=$PATH"
      # The shell of the host has all of the command as one of its arguments, as sshd gives it.
      $SHELL_OF_HOST "export $all; cd && $command" || failed=1
    done
    exit ${failed:-0} ;;
esac
"""
# Stands in for the installed Python: the first time the slice goes away under it.
PYTHON = """#!/usr/bin/env bash
flags=$(printf '%s\\n' "$@")
printf '%s\\n' "$flags" | dd bs=64k oflag=append conv=notrunc of="$FAKE/trained" 2> /dev/null
if [ -e "$FAKE/broken" ]; then  # the second host fails, and so the first ends again and again
  case $HOME in *host) exit 75 ;; *) exit 1 ;; esac
fi
while [ -e "$FAKE/hold" ]; do /bin/sleep 0.1; done
if [ ! -e "$FAKE/preempted" ]; then
  touch "$FAKE/preempted"
  echo SUSPENDED > "$FAKE/state"
  kill -9 $PPID  # what had started it is on the same machine
  exit 75
fi
[ -e "$FAKE/lost" ] || { touch "$FAKE/lost"; exit 75; }
exit "${FAKE_STATUS:-0}"
"""
# What `uv venv` would have made, wherever the code is unpacked.
TAR = """#!/usr/bin/env bash
/bin/tar "$@"
mkdir -p sr3_jax/.venv/bin
cp "$FAKE/python" sr3_jax/.venv/bin/python
"""
FLAGS = ["--config=configs/x.py", "--workdir=gs://run", "--config.data.path=a 'b' c"]


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
    executable(tmp_path / "bin" / "tar", TAR)
    executable(tmp_path / "bin" / "sleep", "#!/bin/sh\nexec /bin/sleep 0.2\n")
    executable(tmp_path / "python", PYTHON)
    return tmp_path, {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "FAKE": str(tmp_path),
        "POLL_SECONDS": "1",
        "HOSTS": "host",
        "SHELL_OF_HOST": "bash -c",
    }


@pytest.fixture
def sshd(tmp_path):
    """How to reach a real sshd on this machine, which takes one key."""
    root = small_run.ROOT / ".venv" / "sshd"
    program = shutil.which("sshd", path=f"/usr/sbin:{root}/usr/sbin")
    if program is None or shutil.which("ssh") is None:
        pytest.skip("no sshd, which launch/test.sh fetches where there is Debian's apt")
    for key in ("host_key", "my_key"):
        subprocess.run(["ssh-keygen", "-q", "-N", "", "-f", str(tmp_path / key)], check=True)
    environment = dict(os.environ)
    if os.geteuid() == 0:
        pathlib.Path("/run/sshd").mkdir(exist_ok=True)
    if program.startswith(str(root)):
        # Without the user that installing it would have made.
        users = subprocess.run(["getent", "passwd"], capture_output=True, text=True, check=True)
        nobody = "sshd:x:22222:65534::/run/sshd:/usr/sbin/nologin\n"
        (tmp_path / "passwd").write_text(users.stdout + nobody)
        libraries = [str(path) for path in root.glob("**/*-linux-gnu")]
        environment |= {
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            "LD_PRELOAD": "libnss_wrapper.so",
            "NSS_WRAPPER_PASSWD": str(tmp_path / "passwd"),
            "NSS_WRAPPER_GROUP": "/etc/group",
        }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": tmp_path / "host_key",
        "AuthorizedKeysFile": tmp_path / "my_key.pub",
        "StrictModes": "no",
        "UsePAM": "no",
        "PidFile": "none",
    }
    server = subprocess.Popen(
        [program, "-D", "-e", "-f", "/dev/null"]
        + [part for name, value in options.items() for part in ("-o", f"{name}={value}")],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    known = f"-o UserKnownHostsFile={tmp_path / 'known'} -o StrictHostKeyChecking=no"
    client = f"ssh -q -F /dev/null -p {port} -i {tmp_path / 'my_key'} {known} 127.0.0.1"
    try:
        deadline = time.monotonic() + 20
        while subprocess.run([*client.split(), "true"]).returncode:
            assert server.poll() is None and time.monotonic() < deadline, "sshd does not answer"
            time.sleep(0.1)
        yield client
    finally:
        server.kill()
        server.wait()


def _trained(folder) -> list[list[str]]:
    """The flags of each training that was started."""
    text = (folder / "trained").read_text()
    return [flags.splitlines() for flags in text.split("-m\nsr3_jax.main\n")[1:]]


@pytest.mark.parametrize(("status", "by"), [("0", "sshd"), ("1", "bash"), ("2", "bash")])
def test_a_preempted_slice_is_asked_for_anew_and_the_run_goes_on(fake, request, status, by):
    folder, variables = fake
    if by == "sshd":
        variables["SHELL_OF_HOST"] = request.getfixturevalue("sshd")
    variables["FAKE_STATUS"] = status
    result = launch("run", *FLAGS, **variables)
    assert result.returncode == int(status), result.stderr
    assert f"training ended with status {status}" in result.stderr
    calls = (folder / "calls").read_text()
    # Once because there was none, once because it was taken away.
    assert calls.count("queued-resources create sr3") == 2
    assert calls.count("queued-resources delete sr3") == 1
    # Preempted; lost another host, started again on the same slice; done.
    assert _trained(folder) == [FLAGS] * 3
    # The same again: what has ended well has ended, and what has failed gets another try.
    again = launch("run", *FLAGS, **variables)
    assert again.returncode == int(status), again.stderr
    assert _trained(folder) == [FLAGS] * (3 if status == "0" else 4)
    other = [*FLAGS, "--config.seed=1"]
    assert launch("run", *other, **variables).returncode == int(status)
    assert _trained(folder)[-1] == other


def test_a_training_that_runs_is_watched_and_not_started_twice(fake):
    folder, variables = fake
    for name in ("preempted", "lost", "hold"):
        (folder / name).touch()
    command = ["bash", "launch/tpu_pod.sh", "run", *FLAGS]
    given = os.environ | {"NAME": "sr3", "ZONE": "zone-a", "TYPE": "v3-128"} | variables
    first = subprocess.Popen(command, cwd=small_run.ROOT, env=given, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not (folder / "trained").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        other = launch("run", *FLAGS, "--config.seed=1", **variables)
        assert other.returncode == 2 and "sr3 trains with other flags" in other.stderr
        first.kill()  # as Ctrl-C ends the watching alone
        second = subprocess.Popen(command, cwd=small_run.ROOT, env=given)
        asked = (folder / "calls").read_text().count("flock")
        while (folder / "calls").read_text().count("flock") < asked + 2:
            assert second.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        (folder / "hold").unlink()
        first.kill()
    assert second.wait(60) == 0
    assert _trained(folder) == [FLAGS]


def test_a_failure_on_one_host_ends_the_job_on_all_and_other_flags_then_train_on_all(fake):
    folder, variables = fake
    variables |= {"HOSTS": "host host2", "FAKE_STATUS": "0"}
    for name in ("preempted", "lost", "broken", "refuse"):
        (folder / name).touch()
    failed = launch("run", *FLAGS, **variables)
    assert failed.returncode == 1 and "training ended with status 1" in failed.stderr
    assert "could not be set up; trying again" in failed.stderr
    for host in ("host", "host2"):
        lock = ["flock", "--nonblock", str(folder / host / "sr3_jax.lock"), "true"]
        assert subprocess.run(lock).returncode == 0, "something trains on"
    (folder / "broken").unlink()
    (folder / "trained").unlink()
    other = [*FLAGS, "--config.seed=1"]
    assert launch("run", *other, **variables).returncode == 0
    assert _trained(folder) == [other] * 2


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
        (["create"], {"TYPE": "tpu7x-8"}, "GKE alone lends it: launch/gke.sh"),
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
    jsonschema = pytest.importorskip("jsonschema", reason="ray is not installed")
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
