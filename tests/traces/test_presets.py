import csv
import os
from pathlib import Path

import pytest

from castor_traces.failure_stream import to_trace
from castor_traces.presets import LLAMA3_CAUSES, PRESETS

DAY_NS = 86_400 * 10**9
SHARED = Path(
    os.environ.get("CASTOR_TRACES", "") or Path(__file__).resolve().parents[3] / "shared" / "traces"
)


@pytest.mark.parametrize(
    ("name", "machines", "per_machine_day"),
    [
        ("opt-175b", 124, 0.015),
        ("llama3-405b", 2048, 419 / 54 / 2048),
        ("meta-rsc-1", 2000, 0.0065),
        ("meta-rsc-2", 1000, 0.00234),
    ],
)
def test_a_preset_has_its_published_rate(name, machines, per_machine_day):
    preset = PRESETS[name]
    assert preset.machines == machines
    assert preset.rate_per_s * 86_400 == pytest.approx(per_machine_day, rel=1e-12)
    assert preset.source
    assert preset.confidence in ("primary", "secondary")
    trace = to_trace(preset.process(), 1, int(preset.days) * DAY_NS, name=name)
    expected = machines * per_machine_day * preset.days
    assert abs(len(trace.failures) - expected) < 4 * expected**0.5


def test_llama3_causes_sum_to_the_419_interruptions_and_their_hardware_share():
    assert sum(cause.weight for cause in LLAMA3_CAUSES) == 419
    assert sum(cause.weight for cause in LLAMA3_CAUSES if cause.hardware) == 356
    # The paper's text: about 78 % are hardware; host maintenance is listed by itself.
    hardware = sum(
        cause.weight for cause in LLAMA3_CAUSES if cause.hardware and "maint" not in cause.name
    )
    assert hardware / 419 == pytest.approx(0.78, abs=0.01)


@pytest.mark.skipif(
    not (SHARED / "published-rates").is_dir(), reason="the published rates are not on this computer"
)
def test_llama3_causes_are_those_of_the_published_table():
    path = SHARED / "published-rates" / "llama3_405b_interruptions.csv"
    with path.open(encoding="utf-8", newline="") as file:
        published = {row["component"]: int(row["count"]) for row in csv.DictReader(file)}
    assert {cause.name: cause.weight for cause in LLAMA3_CAUSES} == published
