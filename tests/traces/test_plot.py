import struct

import pytest

from castor_traces.failure_stream import to_trace
from castor_traces.plot import plot_trace
from castor_traces.presets import PRESETS
from castor_traces.trace import Failure, make_trace

DAY_NS = 86_400 * 10**9


def plain(name):
    if name == "empty":
        return make_trace("empty", 4, 0, [])
    if name == "any":
        return make_trace(
            "any", 4, 10**9, [Failure(5, None, "software", 0), Failure(7, 1, "hardware")]
        )
    if name == "alike":
        return make_trace("alike", 1, 10**9, [Failure(10 * i, 0, "hardware", 5) for i in range(4)])
    return to_trace(PRESETS["opt-175b"].process(), 1, 30 * DAY_NS, name="opt-175b")


@pytest.mark.long
@pytest.mark.parametrize("name", ["empty", "any", "alike", "generated"])
def test_every_trace_can_be_drawn(tmp_path, name):
    png, pdf = plot_trace(plain(name), tmp_path / "deeper" / "picture.v1")
    assert [path.name for path in (png, pdf)] == ["picture.v1.png", "picture.v1.pdf"]
    content = png.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert 600 < width < 800 < height
    assert pdf.read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in png.parent.iterdir()) == [
        "picture.v1.pdf",
        "picture.v1.png",
    ]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return plot_trace(plain("generated"), tmp_path_factory.mktemp("pictures") / "a")


@pytest.mark.long
def test_the_same_trace_gives_the_same_files(pictures, tmp_path):
    second = plot_trace(plain("generated"), tmp_path / "b")
    for one, other in zip(pictures, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_letters_stay_letters_in_the_pdf(pictures):
    _, pdf = pictures
    assert b"/Type3" not in pdf.read_bytes()
    assert b"/CIDFontType2" in pdf.read_bytes()
