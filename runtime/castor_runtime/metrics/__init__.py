"""What one agent tells who watches it: Prometheus metrics, and whether it lives and is ready."""

from castor_runtime.metrics.agent_metrics import AgentMetrics
from castor_runtime.metrics.readings import Readings

__all__ = ["AgentMetrics", "Readings"]
