"""The schemes by which checkpoint traffic may be sent: the policy's, and those from outside."""

from __future__ import annotations

from castor_configs.plugins import Plugin, Registry, declared
from castor_policy import interleaving
from castor_policy.interleaving import Scheme

SCHEMES: Registry[Scheme] = Registry(
    "schemes", interleaving.SCHEMES, callable, "function such as castor_policy.interleaving.Scheme"
)
"""Both twins choose by it; how a stranger adds one: CONTRIBUTING.md."""


def plugin_of(scheme: str) -> Plugin | None:
    """Return the plugin that a scheme is; None: it is Castor's own, or is not here.

    Raises:
        InputError: the plugins cannot be told.
    """
    return declared("schemes", tuple(SCHEMES.built_in)).get(scheme)
