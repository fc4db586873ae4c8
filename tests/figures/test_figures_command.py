"""`castor figures`: its files, its table, its JSON, and drawing again from a CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from castor.app import app, main
from castor.commands.figures import shortened_rows
from castor_configs.errors import InputError
from castor_traces.picture_style import COLUMN_WIDTH_IN, picture
from paper_figures.catalog import FIGURES, Drawn, chosen_figures, make_figure, redraw_figure
from paper_figures.figure_data import COLUMNS, Effort, FigureData, Row, read_csv, write_csv

pytestmark = pytest.mark.long  # together, not one by one

SMALL = Effort(seeds=2, days=12)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drawn]:
    folder = tmp_path_factory.mktemp("figures") / "deeper"
    return {name: make_figure(name, folder, SMALL) for name in FIGURES}


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["figures", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_is_a_vector_picture_a_bitmap_and_its_numbers(
    made: dict[str, Drawn], name: str
) -> None:
    drawn = made[name]
    pdf, png = drawn.pdf.read_bytes(), drawn.png.read_bytes()
    assert [path.name for path in (drawn.csv, drawn.png, drawn.pdf)] == [
        f"{name}.{kind}" for kind in ("csv", "png", "pdf")
    ]
    assert pdf.startswith(b"%PDF")
    assert b"/CreationDate" not in pdf
    assert b"/Subtype /Type3" not in pdf  # letters as letters, in TrueType
    width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
    assert png.startswith(b"\x89PNG")
    assert width == round(COLUMN_WIDTH_IN * 200)
    assert height > 0.5 * width
    with drawn.csv.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == len(drawn.data.rows)
    for row in rows:
        assert row["figure"].startswith(name)
        if row["paper"]:
            gap = float(row["ours"]) - float(row["paper"])
            assert float(row["difference"]) == pytest.approx(gap, abs=1e-12)
    assert any(row["paper"] for row in rows)
    # No part of a half-written file is left.
    assert not list(drawn.csv.parent.glob(".*"))


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_redrawn_from_its_csv_is_the_same_byte_for_byte(
    made: dict[str, Drawn], name: str, tmp_path: Path
) -> None:
    drawn = made[name]
    data = redraw_figure(name, drawn.csv, tmp_path / "again.v1")
    assert data == drawn.data
    assert (tmp_path / "again.v1.pdf").read_bytes() == drawn.pdf.read_bytes()
    assert (tmp_path / "again.v1.png").read_bytes() == drawn.png.read_bytes()


def test_the_same_seeds_give_the_same_numbers(made: dict[str, Drawn], tmp_path: Path) -> None:
    again = make_figure("fig10", tmp_path, SMALL)
    assert again.csv.read_bytes() == made["fig10"].csv.read_bytes()
    other = make_figure("fig10", tmp_path, Effort(seeds=2, days=12, first_seed=9))
    assert other.data != again.data


def test_only_what_is_asked_for_is_drawn(tmp_path: Path) -> None:
    shown = run("--only", "fig11", "--only", "fig09", "--out", str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}.{kind}" for name in ("fig09", "fig11") for kind in ("csv", "pdf", "png")
    ]
    assert max(map(len, shown.splitlines())) <= 80
    for text in ("fig09", "Gemini, k=2", "93.33 %", "62.86 %", "+2.86", "union bound", "272.00 x"):
        assert text in shown
    assert "fig15" not in shown
    assert "-0.00" not in shown


def test_json_holds_every_number_and_nothing_else_is_on_stdout(tmp_path: Path) -> None:
    document = json.loads(
        run("--only", "fig15", "--seeds", "3", "--quick", "--json", "--out", str(tmp_path))
    )
    assert (document["seeds"], document["days"]) == (3, 60)
    figure = document["figures"]["fig15"]
    assert Path(figure["csv"]).is_file()
    assert tuple(figure["rows"][0]) == COLUMNS
    assert FigureData(tuple(_row(row) for row in figure["rows"])) == read_csv(
        tmp_path / "fig15.csv"
    )
    series = {row["series"] for row in figure["rows"]}
    assert "Gemini, the paper's formula" in series
    assert "Strawman, simulated, Poisson" in series
    assert "Gemini, simulated, hardware, correlated, replicas across racks" in series


def _row(record: dict[str, object]) -> Row:
    return Row(**{name: record[name] for name in COLUMNS if name != "difference"})


def test_an_unknown_figure_is_told_with_the_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["castor", "figures", "--only", "fig19", "--out", str(out)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "castor: --only: expected one of table1, table2, fig07, fig08, fig09, fig10" in said.err
    assert "not 'fig19'" in said.err
    assert not out.exists()


def test_figures_come_in_the_paper_s_order_whatever_the_order_asked_for() -> None:
    assert chosen_figures(["fig15", "fig09", "fig15"]) == ("fig09", "fig15")
    assert chosen_figures([]) == tuple(FIGURES)


def test_a_long_simulated_line_is_shortened_to_its_ends_and_its_worst_point() -> None:
    gaps = (0.1, 0.0, -0.5, 0.2, 0.3, 0.0)
    simulated = [
        Row("f", "s", str(i), 1 + gap, "ratio", paper=1.0, low=0.0, high=2.0)
        for i, gap in enumerate(gaps)
    ]
    formula = [Row("f", "t", str(i), 1.0, "ratio", paper=1.0) for i in range(9)]
    assert [row.point for row in shortened_rows(simulated)] == ["0", "2", "5"]
    assert shortened_rows([*formula, *simulated[:5]]) == [*formula, *simulated[:5]]


numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), max_size=20)
rows = st.builds(
    Row,
    figure=texts,
    series=texts,
    point=texts,
    ours=numbers,
    unit=texts,
    paper=st.none() | numbers,
    note=texts,
    low=st.none() | numbers,
    high=st.none() | numbers,
)


@given(st.lists(rows, max_size=5))
def test_numbers_survive_the_csv_to_the_last_digit(
    tmp_path_factory: pytest.TempPathFactory, listed: list[Row]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    data = FigureData(tuple(listed))
    write_csv(data, path)
    assert read_csv(path) == data


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a,b\n", "rows.csv:1: expected the columns figure,series"),
        (f"{','.join(COLUMNS)}\nf,s,1,,much,,,min,,\n", "rows.csv:2: could not convert"),
        (f"{','.join(COLUMNS)}\nf,s\n", "rows.csv:2: could not convert"),
    ],
)
def test_a_faulty_csv_is_told_with_its_line(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=fault):
        read_csv(path)


def test_a_csv_that_is_not_there_or_of_another_figure_is_told(
    made: dict[str, Drawn], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_csv(tmp_path / "none.csv")
    with pytest.raises(InputError, match="holds no fig12"):
        redraw_figure("fig12", made["fig11"].csv, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_fails_half_way_leaves_the_older_one(tmp_path: Path) -> None:
    with picture(tmp_path / "p", 1.0):
        pass
    before = (tmp_path / "p.png").read_bytes()
    with pytest.raises(RuntimeError, match="half way"), picture(tmp_path / "p", 2.0):
        raise RuntimeError("half way")
    assert (tmp_path / "p.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.pdf", "p.png"]
