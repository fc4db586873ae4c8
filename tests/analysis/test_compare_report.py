"""What a report leaves out of its tables, and what it says of paced computing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from castor_analysis.compare.comparison import Comparison
from castor_analysis.compare.measured_run import MeasuredRun
from castor_analysis.compare.page import comparison_page
from castor_analysis.compare.points import Point, S, SettingValue
from castor_analysis.compare.report import compare_document, telling_keys
from castor_analysis.compare.settings import Setting
from castor_records.result import Result
from castor_runtime.launcher.run_folder import RunFolder

SETTING = Setting(
    link_bps=100 * 10**6,
    storage_bps=0,
    script="train.py",
    arguments=(),
    scheme="pipelined",
    nodes=2,
    ranks_per_node=1,
    replicas=2,
    mu=0.9,
    buffer_bytes=10**6,
    sub_buffers=4,
    shortest_span_s=0.0,
    paced_copy_bps=0,
)
LAYERS = (("--paced-layer-ms", "50"),)


def point(**setting: SettingValue) -> Point:
    return Point(
        quantity="iteration_s",
        setting=setting,
        unit=S,
        measured=1.0,
        spread=(1.0, 1.0),
        simulated=1.0,
    )


def page(*settings: Setting) -> str:
    runs = tuple(
        MeasuredRun(
            folder=RunFolder(Path(f"run-{number}")),
            setting=setting,
            result=Result(),
            entries=(),
            samples={},
            collectives=(),
            update_from_ns=0,
            checkpoint_bytes=0,
        )
        for number, setting in enumerate(settings)
    )
    compared = Comparison(
        held_out=(point(link="1"),),
        fitted=(),
        orders=(),
        cases=(),
        runs=runs,
        calibrated_on=(),
        left_out={},
    )
    return comparison_page(compared, compare_document(compared, command=["castor"], date="today"))


def test_what_follows_from_the_link_needs_no_column() -> None:
    plain = [point(link=link, scheme="none") for link in ("1", "2")]
    paired = [point(link=link, scheme="naive", copies=f"{link} x") for link in ("1", "2")]
    assert telling_keys([*plain, *paired]) == ["link", "scheme"]
    crossed = point(link="1", scheme="naive", copies="2 x")
    assert telling_keys([*plain, *paired, crossed]) == ["link", "scheme", "copies"]


def test_two_keys_that_follow_from_each_other_are_one_column() -> None:
    points = [point(scheme="naive", copies=value, mu=value) for value in ("1", "2")]
    assert len(telling_keys(points)) == 1


@pytest.mark.parametrize(
    ("settings", "layers", "copies"),
    [
        ([SETTING], "", ""),
        ([replace(SETTING, arguments=LAYERS)], "Layers were paced:", ""),
        ([replace(SETTING, paced_copy_bps=8)], "", "Copies to CPU memory were paced:"),
        (
            [SETTING, replace(SETTING, arguments=LAYERS, paced_copy_bps=8)],
            "Layers were paced in 1 of 2 runs:",
            "Copies to CPU memory were paced in 1 of 2 runs:",
        ),
    ],
)
def test_the_page_says_what_was_paced(settings: list[Setting], layers: str, copies: str) -> None:
    text = page(*settings)
    assert ("Layers were paced" in text) == bool(layers)
    assert ("Copies to CPU memory were paced" in text) == bool(copies)
    assert layers in text
    assert copies in text
