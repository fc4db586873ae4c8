"""The operator of EC2 Auto Scaling groups, against a server that answers as AWS does (moto).

What moto does not do, as AWS when it is overloaded, a proxy before it does.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from castor_configs.errors import InputError
from castor_lab.faulty_proxy import RESET, FaultyProxy
from castor_policy.agents.machine_request import Progress, Served, served_prefix
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.store_keys import requests_prefix
from castor_policy.store import Put, Txn
from castor_runtime.background_tasks import BackgroundTasks
from castor_runtime.operators import ec2, open_operator
from castor_runtime.operators.protocol import JobToJoin, Operator, OperatorError, Request
from castor_runtime.operators.serving import RequestServer
from castor_sim.model_store import ModelStore
from castor_sim.store_model import StoreModel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
REGION = "eu-central-1"
MOST = 9

NO_CAPACITY = b"""<DescribeScalingActivitiesResponse><DescribeScalingActivitiesResult><Activities>
<member><ActivityId>1</ActivityId><AutoScalingGroupName>training</AutoScalingGroupName>
<Cause>c</Cause><StartTime>2026-11-01T10:00:00Z</StartTime><StatusCode>Failed</StatusCode>
<StatusMessage>We currently do not have sufficient p5.48xlarge capacity</StatusMessage></member>
</Activities></DescribeScalingActivitiesResult></DescribeScalingActivitiesResponse>"""


class Aws:
    """A group of two machines, and a proxy before it."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        self.proxy = FaultyProxy(endpoint)
        self.folder = folder
        self.scaling: Any = boto3.client("autoscaling", REGION, endpoint_url=endpoint)
        self.scaling.create_launch_configuration(
            LaunchConfigurationName="lab", ImageId="ami-12c6146b", InstanceType="p5.48xlarge"
        )
        self.scaling.create_auto_scaling_group(
            AutoScalingGroupName="training",
            LaunchConfigurationName="lab",
            AvailabilityZones=[f"{REGION}a"],
            MinSize=0,
            MaxSize=MOST,
            DesiredCapacity=2,
        )

    @property
    def group(self) -> dict[str, Any]:
        found: dict[str, Any] = self.scaling.describe_auto_scaling_groups()["AutoScalingGroups"][0]
        return found

    @property
    def wanted(self) -> int:
        return int(self.group["DesiredCapacity"])

    @property
    def lost(self) -> str:
        """One of the machines."""
        return str(self.group["Instances"][0]["InstanceId"])

    def sick(self, machine: str, health: str = "Unhealthy") -> None:
        self.scaling.set_instance_health(InstanceId=machine, HealthStatus=health)

    def asked(self, action: str) -> int:
        return sum(f"Action={action}" in path for _, path in self.proxy.requests)

    def fail(self, action: str, fault: object, times: int = 99) -> None:
        """Have the next requests of that kind go wrong."""
        left = [fault] * times
        self.proxy.faults = lambda _, path: (
            left.pop() if left and f"Action={action}" in path else None
        )

    def operator(self, group: str = "training", endpoint: str = "") -> Operator:
        job = JobToJoin("j", "ab" * 8, "etcd://h:1", self.folder / "secret", self.folder)
        endpoint = endpoint or self.proxy.endpoint
        return open_operator(f"ec2:{group}?region={REGION}&endpoint={endpoint}", job)

    def provide(self, times: int = 1, operator: Operator | None = None) -> list[str]:
        operator = operator or self.operator()

        async def ask() -> list[str]:
            asked = (operator.provide(Request(f"1-{n}", f"spare-1-{n}")) for n in range(times))
            return await asyncio.gather(*asked)

        return asyncio.run(ask())


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Aws]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setattr(ec2, "_RETRIES", 1)  # they wait long
    made = Aws(endpoint, tmp_path)
    yield made
    made.proxy.close()
    made.scaling.delete_auto_scaling_group(AutoScalingGroupName="training", ForceDelete=True)
    made.scaling.delete_launch_configuration(LaunchConfigurationName="lab")


def test_a_group_grows_by_what_it_does_not_replace(aws: Aws) -> None:
    assert aws.provide() == ["training grows from 2 to 3 machines"]
    assert len(aws.group["Instances"]) == 3
    # A machine that is gone, the group replaces: asking for one more would bring two.
    lost = aws.lost
    aws.sick(lost)
    assert aws.provide() == ["training has 2 of 3 machines, and replaces what is missing"]
    assert aws.wanted == 3
    # But it replaces one, for one of two requests.
    assert sorted(aws.provide(times=2)) == [
        "training grows from 3 to 4 machines",
        "training has 2 of 3 machines, and replaces what is missing",
    ]
    aws.sick(lost, "Healthy")
    assert sorted(aws.provide(times=2)) == [
        "training grows from 4 to 5 machines",
        "training grows from 5 to 6 machines",
    ]
    aws.scaling.update_auto_scaling_group(AutoScalingGroupName="training", MaxSize=6)
    with pytest.raises(OperatorError, match="training is as large as it may be, MaxSize 6"):
        aws.provide()


def test_a_machine_that_was_detached_or_ended_is_the_groups_to_replace_or_not(aws: Aws) -> None:
    """Whether one is missing is what the group says: it may have been told to want one less."""
    detached = {"AutoScalingGroupName": "training", "InstanceIds": [aws.lost]}
    aws.scaling.detach_instances(**detached, ShouldDecrementDesiredCapacity=True)
    assert aws.provide() == ["training grows from 1 to 2 machines"]
    detached["InstanceIds"] = [aws.lost]
    aws.scaling.detach_instances(**detached, ShouldDecrementDesiredCapacity=False)
    assert len(aws.group["Instances"]) == 2  # it has replaced that one already
    aws.scaling.terminate_instance_in_auto_scaling_group(
        InstanceId=aws.lost, ShouldDecrementDesiredCapacity=False
    )
    (words,) = aws.provide()
    assert words in {  # as soon as moto has brought the other one
        "training grows from 2 to 3 machines",
        "training has 1 of 2 machines, and replaces what is missing",
    }


@pytest.mark.parametrize("code", [(400, "Throttling"), (503, "RequestLimitExceeded")])
def test_a_throttled_group_is_asked_again_and_then_told_of(aws: Aws, code: tuple[int, str]) -> None:
    aws.fail("SetDesiredCapacity", code, times=1)
    assert aws.provide() == ["training grows from 2 to 3 machines"]
    assert aws.asked("SetDesiredCapacity") == 2
    aws.fail("SetDesiredCapacity", code)
    with pytest.raises(OperatorError, match=rf"does not grow: .*{code[1]}.* was injected"):
        aws.provide()
    assert aws.asked("SetDesiredCapacity") == 2 + 2
    aws.fail("DescribeAutoScalingGroups", code)
    with pytest.raises(OperatorError, match=rf"cannot be looked at: .*{code[1]}"):
        aws.provide()
    assert aws.wanted == 3


def test_a_group_that_does_not_answer_in_time_is_taken_to_have_grown(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To ask for another machine might bring two; where nothing is asked for yet, none comes."""
    monkeypatch.setattr(ec2, "_RETRIES", 0)
    monkeypatch.setattr(ec2, "_READ_S", 0.5)
    aws.fail("DescribeAutoScalingGroups", 1.0)
    with pytest.raises(OperatorError, match="cannot be looked at: Read timeout"):
        aws.provide()
    monkeypatch.setattr(ec2, "_READ_S", 5.0)  # enough to look at the group on any machine
    aws.fail("SetDesiredCapacity", 6.0)
    (words,) = aws.provide()
    assert words.startswith("training did not say whether it grows to 3: Read timeout")
    while aws.wanted != 3:  # what was sent comes through, late
        time.sleep(0.05)


@pytest.mark.parametrize("fault", [RESET, (500, "InternalFailure")], ids=["reset", "error"])
def test_a_group_that_fails_while_it_grows_is_taken_to_have_grown(aws: Aws, fault: object) -> None:
    aws.fail("SetDesiredCapacity", fault)
    (words,) = aws.provide()
    assert words.startswith("training did not say whether it grows to 3: ")


def test_a_machine_that_is_never_delivered_is_told_of_with_the_reason(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.sick(aws.lost)  # and moto brings no other one, as AWS without capacity
    operator = aws.operator()
    aws.fail("DescribeScalingActivities", (200, NO_CAPACITY))
    replaces = "training has 1 of 2 machines, and replaces what is missing"
    assert aws.provide(operator=operator) == [
        f"{replaces}; its last attempt failed: We currently do not have sufficient p5.48xlarge "
        "capacity"
    ]
    # Who may not look at a group's activities does without.
    aws.fail("DescribeScalingActivities", (403, "AccessDenied"))
    monkeypatch.setattr(operator, "_until_s", [0.0])  # our patience has ended
    assert aws.provide(operator=operator) == [replaces]
    assert aws.wanted == 2


def test_a_request_is_withdrawn_when_the_machine_comes_another_way(aws: Aws) -> None:
    gathers = Plan(3, 7, Phase.GATHER, ("node-0", ""), ("node-0.1", ""))
    request = f"{requests_prefix('j')}3-1"
    said: list[str] = []

    async def serve() -> Served:
        store = ModelStore(StoreModel(), lambda: 0.0)
        tasks = BackgroundTasks()
        server = RequestServer(store, "j", aws.operator(), spawn=tasks.spawn, say=said.append)
        await store.transact(Txn((), (Put(request, "node-0"),)))
        server.serve([request], gathers, ())
        while not said:
            await asyncio.sleep(0.01)
        server.serve([], replace(gathers, phase=Phase.LOAD), ["node-9"])
        await asyncio.wait_for(tasks.wait(), 60)
        assert (await store.get_prefix(request))[0] == []
        ((record,), _) = await store.get_prefix(served_prefix("j"))
        return Served.from_json(record.value)

    aws.fail("SetDesiredCapacity", (400, "Throttling"))
    served = asyncio.run(serve())
    assert (served.progress, served.attempts) == (Progress.FAILED, 1)
    assert said[0].startswith("no machine could be asked for (request 3-1, attempt 1): training ")
    assert said[0].endswith("again in 1 s")
    assert (len(said), aws.wanted) == (1, 2)


def test_what_can_bring_no_machine_says_so(aws: Aws) -> None:
    with pytest.raises(OperatorError, match="there is no Auto Scaling group none"):
        aws.provide(operator=aws.operator(group="none"))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(OperatorError, match="cannot be looked at: Could not connect"):
            aws.provide(operator=aws.operator(endpoint=nowhere))
    job = JobToJoin("j", "ab" * 8, "etcd://h:1", aws.folder / "secret", aws.folder)
    for url, why in [
        ("ec2:", "a group is not named"),
        ("ec2:g?zone=a", "not zone"),
        ("ec2:g?region=x y", "region"),
    ]:
        with pytest.raises(InputError, match=why):
            open_operator(url, job)
