"""`castor placement`: its JSON, its tables, and what it says to wrong input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from castor.app import app
from castor.commands.placement_drawing import drawing
from castor_configs.errors import InputError
from castor_policy.placement import place

RUNNER = CliRunner(env={"COLUMNS": "80", "TERM": "dumb"})


def run(*options: str) -> str:
    result = RUNNER.invoke(app, ["placement", *options], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def as_json(*options: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run(*options, "--json"))
    return answer


def test_group_of_sixteen() -> None:
    answer = as_json("--machines", "16", "--replicas", "2", "--failures", "2")
    assert answer["placement"] == "group"
    assert answer["groups"] == [[machine, machine + 1] for machine in range(0, 16, 2)]
    assert answer["replicas"][:2] == [[0, 1], [1, 0]]
    assert answer["failures"] == 2
    assert answer["recovery_probability"] == pytest.approx(14 / 15)
    assert answer["recovery_probability_exact"] == "14/15"
    assert answer["corollary1_bound"] == pytest.approx(14 / 15)
    assert "published_ring_formula" not in answer
    three = as_json("--machines", "16", "--replicas", "2", "--failures", "3")
    assert three["recovery_probability"] == 0.8


def test_ring_has_the_exact_and_the_published_value() -> None:
    answer = as_json("--machines", "16", "--replicas", "2", "-k", "3", "--placement", "ring")
    assert answer["recovery_probability"] == pytest.approx(22 / 35)
    assert answer["published_ring_formula"] == 0.6
    assert answer["recovery_probability_method"] == "exact"


@pytest.mark.long
def test_large_random_placement_comes_with_its_interval() -> None:
    options = ("-n", "80", "-m", "4", "--placement", "random", "-k", "16", "--samples", "300")
    answer = as_json(*options, "--seed", "3")
    assert answer["recovery_probability_method"] == "monte-carlo"
    low, high = answer["recovery_probability_ci95"]
    assert low < answer["recovery_probability"] < high
    assert "recovery_probability_exact" not in answer
    assert answer == as_json(*options, "--seed", "3")
    assert answer["replicas"] != as_json(*options, "--seed", "4")["replicas"]


def test_domains_by_count_sizes_and_file(tmp_path: Path) -> None:
    named = tmp_path / "racks.txt"
    named.write_text("\n".join(["left"] * 4 + ["right"] * 4) + "\n", encoding="utf-8")
    by_file = as_json("-n", "8", "--domains", str(named))
    assert by_file["placement"] == "domains"
    assert by_file["domains"] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert by_file["domains_of_a_shard"] == {"2": 8}
    assert by_file == as_json("-n", "8", "--domains", "2")
    assert by_file == as_json("-n", "8", "--domains", "4,4")


def test_domains_that_fail_whole() -> None:
    options = ("-n", "8", "--domains", "2", "--domain-probability", "0.01")
    assert as_json(*options)["window_recovery_probability_exact"] == "9999/10000"
    assert as_json(*options, "--placement", "group")["window_recovery_probability"] == 0.9801


def test_tables_show_the_asked_failures_and_fit_eighty_columns() -> None:
    text = run("-n", "16", "-m", "2", "-k", "9", "--placement", "ring")
    assert "0.628571" in text
    assert "0.600000" in text
    assert any("9 " in line and "0.000000" in line for line in text.splitlines())
    with_domains = run("-n", "16", "-m", "3", "--domains", "9,4,3", "--machine-probability", "0.01")
    assert "4 shards in 2, 12 shards in 3" in with_domains
    assert max(map(len, (text + with_domains).splitlines())) <= 80


def test_drawings() -> None:
    assert drawing(place("mixed", 5, 2), None) == ["[0 1]", "(2 > 3 > 4 >)"]
    assert drawing(place("domains", 4, 2, domains=[0, 0, 1, 1]), [0, 0, 1, 27]) == [
        "[0:a 2:b]",
        "[1:a 3:ab]",
    ]
    assert drawing(place("group", 4096, 2), None) == ["linked machines: 2048 x 2"]
    # A machine without a partner in another domain attaches to a pair.
    attached = drawing(place("domains", 3, 2, domains=[0, 0, 1]), None)
    assert attached == ["0 -> 2", "1 -> 2", "2 -> 0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-n", "0"), "--machines: .*at least 1"),
        (("-n", "3", "-m", "4"), "--replicas: .*1 to 3"),
        (("-n", "4", "-k", "5"), "--failures: .*0 to 4"),
        (
            ("-n", "4", "--placement", "star"),
            "--placement: unknown placement 'star'; use one of group",
        ),
        (("-n", "4", "--placement", "domains"), "needs --domains"),
        (("-n", "4", "--domains", "9"), "--domains: .*1 to 4"),
        (("-n", "4", "--domains", "3,2"), "add up to 5 machines"),
        (("-n", "4", "--domains", "no-such-file"), "nor a readable file"),
        (("-n", "4", "--domain-probability", "0.1"), "needs --domains as well"),
        (("-n", "4", "--machine-probability", "1.5"), "use 0 to 1"),
        (("-n", "4", "--samples", "0"), "--samples: .*at least 1"),
    ],
)
def test_wrong_input_names_the_option(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RUNNER.invoke(app, ["placement", *options], catch_exceptions=False)


def test_an_empty_line_in_a_domains_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "racks.txt"
    file.write_text("a\n\nb\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"racks\.txt:2: empty line"):
        RUNNER.invoke(app, ["placement", "-n", "3", "--domains", str(file)], catch_exceptions=False)


def test_help_fits_eighty_columns() -> None:
    text = run("--help")
    assert "--replicas" in text
    assert max(map(len, text.splitlines())) <= 80
