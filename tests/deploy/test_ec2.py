"""The operator of EC2 Auto Scaling groups, against a server that answers as AWS does (moto)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from castor_configs.errors import InputError
from castor_runtime.operators import open_operator
from castor_runtime.operators.protocol import JobToJoin, OperatorError, Request

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
REGION = "eu-central-1"


class Aws:
    """A group of two machines, at most three."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.scaling: Any = boto3.client("autoscaling", REGION, endpoint_url=endpoint)
        self.scaling.create_launch_configuration(
            LaunchConfigurationName="lab", ImageId="ami-12c6146b", InstanceType="p5.48xlarge"
        )
        self.scaling.create_auto_scaling_group(
            AutoScalingGroupName="training",
            LaunchConfigurationName="lab",
            AvailabilityZones=[f"{REGION}a"],
            MinSize=0,
            MaxSize=3,
            DesiredCapacity=2,
        )

    def group(self) -> dict[str, Any]:
        found: dict[str, Any] = self.scaling.describe_auto_scaling_groups()["AutoScalingGroups"][0]
        return found

    def provide(
        self, tmp_path: Path, times: int = 1, group: str = "training", endpoint: str = ""
    ) -> list[str]:
        job = JobToJoin("j", "ab" * 8, "etcd://h:1", tmp_path / "secret", tmp_path)
        url = f"ec2:{group}?region={REGION}&endpoint={endpoint or self.endpoint}"
        operator = open_operator(url, job)

        async def ask() -> list[str]:
            asked = (operator.provide(Request(f"1-{n}", f"spare-1-{n}")) for n in range(times))
            return await asyncio.gather(*asked)

        return asyncio.run(ask())


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    made = Aws(f"http://{host}:{port}")
    yield made
    server.stop()


def test_a_group_grows_by_what_it_does_not_replace_and_says_why_not(
    aws: Aws, tmp_path: Path
) -> None:
    assert aws.provide(tmp_path) == ["training grows from 2 to 3 machines"]
    assert len(aws.group()["Instances"]) == 3
    with pytest.raises(OperatorError, match="training is as large as it may be, MaxSize 3"):
        aws.provide(tmp_path)
    # A machine that is gone, the group replaces: asking for one more would bring two.
    aws.scaling.update_auto_scaling_group(AutoScalingGroupName="training", MaxSize=9)
    lost = aws.group()["Instances"][0]["InstanceId"]
    aws.scaling.set_instance_health(InstanceId=lost, HealthStatus="Unhealthy")
    (words,) = aws.provide(tmp_path)
    assert words == "training has 2 of 3 machines, and replaces what is missing"
    assert aws.group()["DesiredCapacity"] == 3
    aws.scaling.set_instance_health(InstanceId=lost, HealthStatus="Healthy")
    # Two requests at once are two machines.
    assert sorted(aws.provide(tmp_path, times=2)) == [
        "training grows from 3 to 4 machines",
        "training grows from 4 to 5 machines",
    ]

    # What brings no machine says so.
    with pytest.raises(OperatorError, match="there is no Auto Scaling group none"):
        aws.provide(tmp_path, group="none")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(OperatorError, match="cannot be looked at: Could not connect"):
            aws.provide(tmp_path, endpoint=nowhere)
    job = JobToJoin("j", "ab" * 8, "etcd://h:1", tmp_path / "secret", tmp_path)
    for url, why in [
        ("ec2:", "a group is not named"),
        ("ec2:g?zone=a", "not zone"),
        ("ec2:g?region=x y", "region"),
    ]:
        with pytest.raises(InputError, match=why):
            open_operator(url, job)
