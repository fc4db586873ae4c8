"""`castor kubernetes`: manifests that Kubernetes' own schemas take, and the pod's shell line."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from castor.app import app
from castor_configs.errors import InputError


def printed(tmp_path: Path, *line: str) -> dict[str, dict[str, Any]]:
    (tmp_path / "secret").write_bytes(b"known to agents")
    own = ("--image", "lab/train:7", "--shared-memory", "60GiB", "--memory", "4GiB", "--gpus", "8")
    job = ("--job", "gpt2_a", "--store", "etcd://etcd:2379", "--secret", str(tmp_path / "secret"))
    done = CliRunner().invoke(app, ["kubernetes", *own, *job, *line], catch_exceptions=False)
    assert done.exit_code == 0
    return {one["kind"]: one for one in yaml.safe_load_all(done.output)}


def test_manifests_are_valid_and_say_what_the_job_needs(tmp_path: Path) -> None:
    found = printed(
        tmp_path, "--nnodes", "4:6", "--replicas", "3", "train.py", "--text", 'it\'s "x"'
    )
    for manifest in found.values():
        kubernetes_validate.validate(manifest, "1.31", strict=True)
    assert base64.b64decode(found["Secret"]["data"]["secret"]) == b"known to agents"
    assert found["Service"]["spec"]["clusterIP"] == "None"
    assert found["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 2
    spec = found["StatefulSet"]["spec"]
    assert (spec["replicas"], spec["podManagementPolicy"]) == (6, "Parallel")
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"memory": 64 << 30, "nvidia.com/gpu": 8}
    assert pod["volumes"][0]["emptyDir"] == {"medium": "Memory", "sizeLimit": 60 << 30}
    assert container["volumeMounts"][0]["mountPath"] == "/dev/shm"
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    assert [one["containerPort"] for one in container["ports"]] == [7000, 9464]
    line = container["command"][2]
    assert str(tmp_path) not in line
    assert '\ncastor run --name "$POD" --listen "$ADDRESS" --ports 7000-7019 ' in line
    assert " --metrics-port 9464 " in line
    assert """--replicas 3 train.py --text 'it'"'"'s "x"' &""" in line


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (("x.py",), "--nnodes: say how many pods"),
        (("--nnodes", "2", "--listen", "10.0.0.1", "x.py"), "--listen: is the pod's own to say"),
        (("--nnodes", "3:2", "x.py"), "--nnodes: expected MIN or MIN:MAX"),
    ],
)
def test_what_a_pod_cannot_be_given_is_refused(
    tmp_path: Path, line: tuple[str, ...], why: str
) -> None:
    with pytest.raises(InputError, match=why):
        printed(tmp_path, *line)


@pytest.mark.parametrize(("code", "stays"), [(93, True), (3, False)])
def test_a_pod_is_begun_anew_only_where_that_helps(tmp_path: Path, code: int, stays: bool) -> None:
    container = printed(tmp_path, "--nnodes", "2", "x.py")["StatefulSet"]["spec"]["template"][
        "spec"
    ]["containers"][0]
    program = tmp_path / "castor"
    program.write_text(f"#!/bin/sh\necho $*\nexit {code}\n")
    program.chmod(0o755)
    environment = {"JOB": "j", "POD": "gpt2-a-1", "ADDRESS": "10.1.2.3"}
    pod = subprocess.Popen(
        container["command"],
        env=environment | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert pod.stdout is not None
    assert pod.stdout.readline().startswith("run --name gpt2-a-1 --listen 10.1.2.3 --ports ")
    if stays:
        assert "ended with code 93; when done: kubectl delete" in pod.stdout.readline()
        assert pod.poll() is None
        os.kill(pod.pid, signal.SIGTERM)
    assert pod.wait(60) == code
    pod.stdout.close()
    if stays:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pod.pid, signal.SIGKILL)  # its sleep, which a container takes along
