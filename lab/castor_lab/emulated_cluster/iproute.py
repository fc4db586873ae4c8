"""The programs `ip` and `tc` (iproute2): the only way in which this package changes the kernel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import Any, Final

from castor_configs.errors import InputError

_PATH: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
"""A user's PATH often lacks the folders of the administrator's programs."""

_TIMEOUT_S: Final = 20.0


class KernelRefusedError(InputError):
    """The kernel did not do what `ip` or `tc` asked of it; the message is theirs."""


def require() -> None:
    """Check that network namespaces can be made here.

    Raises:
        InputError: not root, or a program is missing; says what to do.
    """
    if os.geteuid() != 0:
        raise InputError(
            "an emulated cluster is made of network namespaces, which only root may make: "
            "run it with sudo, or train without --cluster"
        )
    missing = [name for name in ("ip", "tc") if shutil.which(name, path=_PATH) is None]
    if missing:
        raise InputError(
            f"the program {' and '.join(missing)} is not installed: "
            "apt-get install iproute2 (dnf install iproute iproute-tc)"
        )


def ip(*arguments: str, namespace: str = "") -> None:
    """Run `ip`, in a namespace if one is named.

    Raises:
        KernelRefusedError: it failed.
    """
    _run("ip", arguments, namespace)


def tc(*arguments: str, namespace: str) -> None:
    """Run `tc` in a namespace.

    Raises:
        KernelRefusedError: it failed, such as where the kernel lacks a queueing discipline.
    """
    _run("tc", arguments, namespace)


def ip_json(*arguments: str, namespace: str = "") -> list[dict[str, Any]]:
    """Return what `ip -json` prints.

    Raises:
        KernelRefusedError: it failed.
    """
    return _objects(_run("ip", ("-json", *arguments), namespace))


def tc_json(*arguments: str, namespace: str) -> list[dict[str, Any]]:
    """Return what `tc -json` prints.

    Raises:
        KernelRefusedError: it failed.
    """
    return _objects(_run("tc", ("-json", *arguments), namespace))


def _objects(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(text) if text.strip() else []
    # `ip` prints an empty object for each thing that a filter left out.
    return [one for one in found if one]


def _run(program: str, arguments: tuple[str, ...], namespace: str) -> str:
    inside = ("-netns", namespace) if namespace else ()
    command = [program, *inside, *arguments]
    done = subprocess.run(  # noqa: S603 - no shell, and names that this package has checked
        command,
        env={"PATH": _PATH, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise KernelRefusedError(f"`{' '.join(command)}` failed: {said}")
    return done.stdout
