"""The alert rules and the dashboard: by promtool, and against a Prometheus that scrapes agents."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from castor.app import app
from castor_lab.one_process import Cluster, TrainerThread, small_job
from castor_lab.one_process.failures import die_settled
from castor_policy.membership import WatchLimits
from castor_records.run_record import RunRecord
from castor_runtime.metrics.families import FAMILIES, HISTOGRAM

DEPLOY = Path(str(files("castor_runtime"))) / "deploy"
RULES, DASHBOARD = DEPLOY / "castor-rules.yml", DEPLOY / "castor-dashboard.json"
CASES = Path(__file__).with_name("castor-rules-test.yml")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "watching.md"
WAIT_S = 60.0

NAMES = {
    name
    for one in FAMILIES
    for name in (
        [f"{one.name}{end}" for end in ("_bucket", "_sum", "_count")]
        if one.kind == HISTOGRAM
        else [one.name]
    )
}


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["promtool", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_rules_are_right_and_each_alert_is_raised_by_a_case(
    needs: Callable[..., None],
) -> None:
    needs("promtool")
    checked = promtool("check", "rules", str(RULES))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = promtool("test", "rules", str(CASES))
    assert tested.returncode == 0, tested.stdout + tested.stderr
    alerts = re.findall(r"alert: (\w+)", RULES.read_text())
    raised = re.findall(r'alertname="(\w+)"', CASES.read_text())
    raised += re.findall(r"alertname: (\w+)\n +exp_alerts:\n", CASES.read_text())
    assert set(alerts) == set(raised)
    rows = re.findall(r"^\| `(Castor\w+)` \|", PAGE.read_text(encoding="utf-8"), re.M)
    assert rows == alerts


def named(text: str) -> set[str]:
    return set(re.findall(r"\bcastor_[a-z_]+", text))


def test_rules_and_dashboard_ask_for_metrics_that_agents_tell() -> None:
    asked = named(RULES.read_text()) | named(DASHBOARD.read_text())
    assert sorted(asked - NAMES) == []


def queries() -> dict[str, str]:
    """The dashboard's queries by "panel: which"."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return {f"{p['title']}: {t['refId']}": t["expr"] for p in panels for t in p["targets"]}


def test_the_dashboards_panels_do_not_cover_each_other() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        assert panel["description"].endswith(".")
        taken |= cells


class Prometheus:
    """A real one that scrapes what it is told to."""

    def __init__(self, folder: Path, targets: list[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "500ms"},
            "rule_files": [str(RULES)],
            "scrape_configs": [
                {"job_name": "castor", "static_configs": [{"targets": targets}]},
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self._port}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def ask(self, query: str, at_s: float | None = None) -> list[dict[str, Any]]:
        """Return what it answers, as of now or of a moment before."""
        words = {"query": query} if at_s is None else {"query": query, "time": str(at_s)}
        url = f"http://127.0.0.1:{self._port}/api/v1/query?{urllib.parse.urlencode(words)}"
        with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
            found = json.load(answer)
        assert found["status"] == "success"
        result: list[dict[str, Any]] = found["data"]["result"]
        return result

    def wait_for(self, query: str) -> list[dict[str, Any]]:
        give_up_s = time.monotonic() + WAIT_S
        while True:
            try:
                if found := self.ask(query):
                    return found
            except OSError:
                assert self._process.poll() is None, "it ended"
            assert time.monotonic() < give_up_s, query
            time.sleep(0.05)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def test_a_real_prometheus_answers_every_query_of_the_dashboard(
    needs: Callable[..., None], tmp_path: Path
) -> None:
    needs("prometheus")
    spec = small_job(machines=2, replicas=((0, 1), (1, 0)), limits=WatchLimits())
    cluster = Cluster(spec, tmp_path, iterations=8, standby=1, metrics=True)
    running: list[Prometheus] = []
    asked_s: list[float] = []

    def meanwhile(step: int, what: Callable[[], None]) -> None:
        """Have both ranks wait before an update: one alone would be waited for a while only."""
        done = threading.Event()

        def first(_: TrainerThread) -> None:
            try:
                what()
            finally:
                done.set()

        cluster.at(0, step, first)
        cluster.at(1, step, lambda _: done.wait())

    def start() -> None:
        addresses = [cluster.agent(f"node-{i}")._metrics.address for i in range(3)]
        running.append(Prometheus(tmp_path, addresses))
        running[0].wait_for('castor_agent_info{machine="1"}')

    def look() -> None:
        # Two scrapes since the recovery, and rules that were evaluated on them.
        running[0].wait_for("castor_recoveries_total > 0 and on (agent) castor_iteration > 5")
        running[0].wait_for("castor:checkpoint_stall:ratio_rate5m > 0")
        (all_up,) = running[0].wait_for("count(up == 1) == 3")
        asked_s.append(float(all_up["value"][0]))

    meanwhile(2, start)
    cluster.at(1, 4, die_settled)
    meanwhile(7, look)
    try:
        outcome = cluster.run()
        assert outcome.iteration == 8
        answers = partial(running[0].ask, at_s=asked_s[0])
        found = {
            which: answers(
                expression.replace("$training", spec.job).replace("$__rate_interval", "1m")
            )
            for which, expression in queries().items()
        }
        assert len(answers("up == 1")) == 3
        # What has to last for a quarter of an hour may be pending in so short a job.
        assert not answers('ALERTS{alertstate="firing"}')
    finally:
        for one in running:
            one.close()
        cluster.remove_memory()
    # Nothing is wrong with this job; what an agent reads of itself may be a second old.
    empty = {which for which, result in found.items() if not result}
    assert empty <= {"Agents that are not ready: A"}
    shown = {which: float(result[0]["value"][1]) for which, result in found.items() if result}
    assert shown["Iteration: A"] in (6, 7)
    assert shown["Machines: filled, empty, standby: A"] == 2
    assert shown["Machines: filled, empty, standby: C"] == 1


@pytest.mark.parametrize(("what", "file"), [("rules", RULES), ("dashboard", DASHBOARD)])
def test_a_user_gets_them_from_the_command_line(what: str, file: Path, tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["metrics", what])
    assert (printed.exit_code, printed.stdout) == (0, file.read_text())


def test_a_runs_machines_are_listed_as_prometheus_reads_them(tmp_path: Path) -> None:
    def targets() -> Result:
        return CliRunner().invoke(app, ["metrics", "targets", str(tmp_path)])

    assert "is no run folder" in str(targets().exception)
    (tmp_path / "run.json").write_text(json.dumps(RunRecord(job="j").to_json()))
    assert "castor train --metrics" in str(targets().exception)
    for name, where in (("node-0", "127.0.0.1:1"), ("node-1", ""), ("node-2", "127.0.0.1:2")):
        (tmp_path / "agents" / name).mkdir(parents=True)
        record = json.dumps({"name": name, "metrics": where})
        (tmp_path / "agents" / name / "agent.json").write_text(record)
    (tmp_path / "agents" / "node-3").mkdir()
    assert json.loads(targets().stdout) == [{"targets": ["127.0.0.1:1", "127.0.0.1:2"]}]


def test_the_command_lists_what_agents_tell() -> None:
    printed = CliRunner().invoke(app, ["metrics", "list"])
    assert printed.exit_code == 0
    assert all(f"{one.name} " in printed.stdout for one in FAMILIES)
