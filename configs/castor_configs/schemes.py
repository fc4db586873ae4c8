"""The schemes by which checkpoint traffic may be sent: the policy's, and those from outside."""

from __future__ import annotations

from castor_configs.plugins import Registry
from castor_policy import interleaving
from castor_policy.interleaving import Scheme

SCHEMES: Registry[Scheme] = Registry(
    "schemes", interleaving.SCHEMES, callable, "function such as castor_policy.interleaving.Scheme"
)
"""Both twins choose by it; how a stranger adds one: CONTRIBUTING.md."""
