"""Kubernetes: a StatefulSet of pods with an agent each, spares included, and what it needs.

A pod that is lost comes back by its old name with another address and nothing in memory: as a
spare. A StatefulSet begins whatever ends anew, so an agent whose job is over waits to be deleted.
"""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from castor_configs.errors import InputError
from castor_policy.agents.exit_codes import SETTLED
from castor_runtime.deployment.run_line import draining, value_of, without
from castor_runtime.deployment.told_agent import told_agent
from castor_runtime.ports import Ports

PORTS: Final = "7000-7019"
METRICS_PORT: Final = "9464"
KERNEL_PORTS: Final = "7100 7999"
SECRET: Final = "/etc/castor/secret"  # noqa: S105 - where it is mounted
_GRACE_S: Final = 120
_OF_THE_POD: Final = ("--secret", "--name", "--listen", "--interface", "--folder")

_AGENT = """\
{castor} run --name "$POD" --listen "$ADDRESS" --ports {ports} \
--metrics-port {metrics} --folder /var/log/castor --secret {secret} {words}"""

_POD_LINE = """\
{agent}trap 'exit "$code"' TERM
case $told$code in
  {ended})
    echo "castor: ended with code $code; when done: kubectl delete statefulset $JOB"
    sleep infinity & wait;;
esac
exit "$code"
"""

_MANIFESTS = """\
# {total} pods of job {job}: {train} train, {spares} are spares. Made by `castor kubernetes`.
apiVersion: v1
kind: Secret
metadata: {{name: {name}, labels: {labels}}}
type: Opaque
data: {{secret: {secret_data}}}
---
# Without an address of its own: pods are reached one by one, also before they are ready.
apiVersion: v1
kind: Service
metadata: {{name: {name}, labels: {labels}}}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {labels}
  ports: [{{name: peers, port: {port}}}]
---
# Copies of a shard are in {replicas} pods: so many may not be drained at once.
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{name: {name}, labels: {labels}}}
spec:
  maxUnavailable: {disruptions}
  selector: {{matchLabels: {labels}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: {name}, labels: {labels}}}
spec:
  serviceName: {name}
  replicas: {total}
  podManagementPolicy: Parallel
  # A changed image goes to a pod when that is deleted: all at once would take every copy away.
  updateStrategy: {{type: OnDelete}}
  selector: {{matchLabels: {labels}}}
  template:
    metadata:
      labels: {labels}
      annotations: {{prometheus.io/scrape: "true", prometheus.io/port: "{metrics}"}}
    spec:
      terminationGracePeriodSeconds: {grace_s}
      securityContext:
        # gloo and NCCL listen at ports of this range; Kubernetes counts the setting as safe.
        sysctls: [{{name: net.ipv4.ip_local_port_range, value: "{kernel_ports}"}}]
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            - topologyKey: kubernetes.io/hostname
              labelSelector: {{matchLabels: {labels}}}
      containers:
        - name: castor
          image: {image}
          command: ["/bin/bash", "-c", {line}]
          env:
            - {{name: JOB, value: {name}}}
            - {{name: POD, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
            - {{name: ADDRESS, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}
          ports:
            - {{name: peers, containerPort: {port}}}
            - {{name: metrics, containerPort: {metrics}}}
          # A spare that waits is ready. While replicas are missing a pod is not: no drain then.
          readinessProbe: {{httpGet: {{path: /readyz, port: metrics}}, periodSeconds: 5}}
          resources:
            # Checkpoint memory counts as the container's.
            requests: {{memory: {memory_bytes}{gpus}}}
            limits: {{memory: {memory_bytes}{gpus}}}
          volumeMounts:
            - {{name: checkpoints, mountPath: /dev/shm}}
            - {{name: secret, mountPath: /etc/castor, readOnly: true}}
            - {{name: logs, mountPath: /var/log/castor}}
      volumes:
        - {{name: checkpoints, emptyDir: {{medium: Memory, sizeLimit: {shared_bytes}}}}}
        - {{name: secret, secret: {{secretName: {name}, defaultMode: 0400}}}}
        - {{name: logs, emptyDir: {{}}}}
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the pods are to be.

    Attributes:
        job: name of the job.
        image: that has Castor and the script.
        castor: the program in it.
        words: of the line, after `castor run`.
        train: pods that train.
        total: with the spares.
        secret: of the job.
        shared_bytes: checkpoint memory of a pod.
        memory_bytes: what the pod needs besides.
        gpus: of a pod.
        replicas: pods that hold a copy of a shard.
    """

    job: str
    image: str
    castor: str
    words: Sequence[str]
    train: int
    total: int
    secret: bytes
    shared_bytes: int
    memory_bytes: int
    gpus: int
    replicas: int


def manifests(wanted: Wanted) -> str:
    """Return the YAML documents that `kubectl apply -f -` takes.

    Raises:
        InputError: the line says what the pod has to say.
    """
    words = without(wanted.words, "--secret")
    for option in _OF_THE_POD[1:]:
        if value_of(words, option):
            raise InputError("is the pod's own to say: leave it out", key=option)
    ports = value_of(words, "--ports")
    metrics = value_of(words, "--metrics-port") or METRICS_PORT
    words = without(without(words, "--ports"), "--metrics-port")
    name = _name(wanted.job)
    gpus = f", nvidia.com/gpu: {wanted.gpus}" if wanted.gpus else ""
    agent = _AGENT.format(
        castor=shlex.quote(wanted.castor),
        ports=ports or PORTS,
        metrics=metrics,
        secret=SECRET,
        words=shlex.join(draining(words, _GRACE_S)),
    )
    line = _POD_LINE.format(agent=told_agent(agent, {"TERM": 1}), ended="|".join(map(str, SETTLED)))
    return _MANIFESTS.format(
        job=wanted.job,
        name=json.dumps(name),
        labels=json.dumps({"app.kubernetes.io/name": "castor", "castor/job": name}),
        secret_data=base64.b64encode(wanted.secret).decode(),
        port=Ports.parse(ports or PORTS).first,
        metrics=metrics,
        kernel_ports=KERNEL_PORTS,
        grace_s=_GRACE_S,
        replicas=wanted.replicas,
        disruptions=max(1, wanted.replicas - 1),
        train=wanted.train,
        spares=wanted.total - wanted.train,
        total=wanted.total,
        image=json.dumps(wanted.image),
        line=json.dumps(line),
        memory_bytes=wanted.shared_bytes + wanted.memory_bytes,
        shared_bytes=wanted.shared_bytes,
        gpus=gpus,
    )


def _name(job: str) -> str:
    """Return a job's name as Kubernetes takes one.

    Raises:
        InputError: it takes none such.
    """
    name = job.lower().replace("_", "-").replace(".", "-")
    if not name[0].isalpha() or name.endswith("-"):
        raise InputError("has to begin with a letter and end with a letter or digit", key="--job")
    return name
