"""How to run a job: replicas, placement, periods and standbys, and why."""
