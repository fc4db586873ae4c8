"""`ec2:GROUP`: an Auto Scaling group of EC2 brings the machines.

The group's launch template starts the job's own line of `castor run`, as a service (its user data;
docs/deploy/ec2.md). What the group replaces by itself is not asked for again: only where all of its
machines are there, or on their way for another request, does it get one more.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final
from urllib.parse import parse_qsl

from castor_configs.errors import InputError
from castor_runtime.operators.protocol import JobToJoin, OperatorError, Request

_ALIVE: Final = frozenset({"InService", "Pending", "Pending:Wait", "Pending:Proceed"})
_KEYS: Final = ("region", "endpoint")
_SERVERS_FAULT: Final = 500
_THROTTLED: Final = frozenset(
    {"Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestThrottled", "SlowDown"}
)
_CONNECT_S: Final = 5.0
_READ_S: Final = 20.0
_RETRIES: Final = 3
"""Of what was throttled or got no answer, after up to 1 s, 2 s and 4 s; then it is told, and the
request waits longer."""


class Ec2Operator:
    """Raises the desired capacity of an Auto Scaling group, one machine at a time.

    Credentials and region are found as the AWS programs find them, unless the URL names a region.

    Args:
        rest: GROUP, or GROUP?region=REGION&endpoint=URL.
        job: which machines come to.

    Raises:
        InputError: boto3 is not installed, or `rest` names no group, or something unknown.
    """

    patience_s = 900.0  # a machine boots, and fetches an image

    def __init__(self, rest: str, job: JobToJoin) -> None:
        self._group, _, query = rest.partition("?")
        given = dict(parse_qsl(query, keep_blank_values=True))
        if not self._group or (unknown := sorted(given.keys() - set(_KEYS))):
            what = f"not {', '.join(unknown)}" if self._group else "a group is not named"
            raise InputError(
                f"ec2: expected GROUP or GROUP?region=REGION&endpoint=URL, {what}", key="--operator"
            )
        try:
            import boto3  # noqa: PLC0415 - only who uses it needs it
            from botocore.config import Config  # noqa: PLC0415
            from botocore.exceptions import BotoCoreError  # noqa: PLC0415
        except ImportError as error:
            raise InputError("ec2: needs boto3: pip install boto3", key="--operator") from error
        settings = Config(
            connect_timeout=_CONNECT_S,
            read_timeout=_READ_S,
            retries={"mode": "standard", "max_attempts": _RETRIES},
        )
        try:
            self._client: Any = boto3.client(
                "autoscaling",
                region_name=given.get("region"),
                endpoint_url=given.get("endpoint"),
                config=settings,
            )
        except (BotoCoreError, ValueError) as error:
            raise InputError(f"ec2: {error}", key="--operator") from error
        self._job = job
        self._one_at_a_time = asyncio.Lock()
        # Until when a machine that was asked for may be on its way, the earliest first.
        self._until_s: list[float] = []

    async def provide(self, request: Request) -> str:  # noqa: ARG002 - the group names machines
        """See `Operator.provide`."""
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._provide)

    def _provide(self) -> str:
        from botocore.exceptions import (  # noqa: PLC0415
            BotoCoreError,
            ClientError,
            ConnectionClosedError,
            ReadTimeoutError,
        )

        group = self._look()
        wanted, most = int(group["DesiredCapacity"]), int(group["MaxSize"])
        alive = sum(
            one["LifecycleState"] in _ALIVE and one["HealthStatus"] == "Healthy"
            for one in group["Instances"]
        )
        missing = wanted - alive
        if missing > self._awaited(missing):
            self._await_one()
            return (
                f"{self._group} has {alive} of {wanted} machines, and replaces what is missing"
                f"{self._why_missing()}"
            )
        if wanted >= most:
            raise OperatorError(f"{self._group} is as large as it may be, MaxSize {most}")
        unsure = f"{self._group} did not say whether it grows to {wanted + 1}"
        try:
            self._client.set_desired_capacity(
                AutoScalingGroupName=self._group, DesiredCapacity=wanted + 1, HonorCooldown=False
            )
        except (ReadTimeoutError, ConnectionClosedError) as error:
            self._await_one()
            return f"{unsure}: {error}"
        except ClientError as error:
            if _may_be_done(error.response):
                self._await_one()
                return f"{unsure}: {error}"
            raise OperatorError(f"{self._group} does not grow: {error}") from error
        except BotoCoreError as error:
            raise OperatorError(f"{self._group} does not grow: {error}") from error
        self._await_one()
        return f"{self._group} grows from {wanted} to {wanted + 1} machines"

    def _look(self) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            found = self._client.describe_auto_scaling_groups(AutoScalingGroupNames=[self._group])
        except (BotoCoreError, ClientError) as error:
            raise OperatorError(f"{self._group} cannot be looked at: {error}") from error
        if not found["AutoScalingGroups"]:
            raise OperatorError(f"there is no Auto Scaling group {self._group}")
        group: dict[str, Any] = found["AutoScalingGroups"][0]
        return group

    def _awaited(self, missing: int) -> int:
        """Return for how many of the missing machines an earlier request waits already.

        A machine that has come is missing no longer; one that has not after our patience is
        asked for again, by the request that waits for it.
        """
        now_s = time.monotonic()
        alive = [until_s for until_s in self._until_s if until_s > now_s]
        self._until_s = alive[max(0, len(alive) - missing) :]
        return len(self._until_s)

    def _await_one(self) -> None:
        self._until_s.append(time.monotonic() + self.patience_s)

    def _why_missing(self) -> str:
        """Return why the group's last attempt at a machine brought none; "" if it does not say."""
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            found = self._client.describe_scaling_activities(
                AutoScalingGroupName=self._group, MaxRecords=1
            )
        except (BotoCoreError, ClientError):
            return ""  # that right is not asked for
        for last in found["Activities"]:
            if last["StatusCode"] == "Failed":
                return (
                    f"; its last attempt failed: {last.get('StatusMessage', 'it does not say why')}"
                )
        return ""


def _may_be_done(response: dict[str, Any]) -> bool:
    """Whether an error leaves open what became of the request: the server's own, but of load."""
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return status >= _SERVERS_FAULT and response.get("Error", {}).get("Code") not in _THROTTLED
