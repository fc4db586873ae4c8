"""`ec2:GROUP`: an Auto Scaling group of EC2 brings the machines.

The group's launch template starts the job's own line of `castor run`, as a service (its user data;
docs/deploy/ec2.md). What the group replaces by itself is not asked for again: only where all of its
machines are there, or on their way, does it get one more.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final
from urllib.parse import parse_qsl

from castor_configs.errors import InputError
from castor_runtime.operators.protocol import JobToJoin, OperatorError, Request

_ALIVE: Final = frozenset({"InService", "Pending", "Pending:Wait", "Pending:Proceed"})
_KEYS: Final = ("region", "endpoint")
_CONNECT_S: Final = 5.0
_READ_S: Final = 20.0


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
            retries={"mode": "standard", "max_attempts": 3},
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

        try:
            found = self._client.describe_auto_scaling_groups(AutoScalingGroupNames=[self._group])
        except (BotoCoreError, ClientError) as error:
            raise OperatorError(f"{self._group} cannot be looked at: {error}") from error
        if not found["AutoScalingGroups"]:
            raise OperatorError(f"there is no Auto Scaling group {self._group}")
        group = found["AutoScalingGroups"][0]
        wanted, most = int(group["DesiredCapacity"]), int(group["MaxSize"])
        alive = sum(
            one["LifecycleState"] in _ALIVE and one["HealthStatus"] == "Healthy"
            for one in group["Instances"]
        )
        if alive < wanted:
            return f"{self._group} has {alive} of {wanted} machines, and replaces what is missing"
        if wanted >= most:
            raise OperatorError(f"{self._group} is as large as it may be, MaxSize {most}")
        try:
            self._client.set_desired_capacity(
                AutoScalingGroupName=self._group, DesiredCapacity=wanted + 1, HonorCooldown=False
            )
        except (ReadTimeoutError, ConnectionClosedError) as error:
            return f"{self._group} did not say whether it grows to {wanted + 1}: {error}"
        except (BotoCoreError, ClientError) as error:
            raise OperatorError(f"{self._group} does not grow: {error}") from error
        return f"{self._group} grows from {wanted} to {wanted + 1} machines"
