"""Fetching against a real server on this computer, finding, and caching what was imported."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import castor_traces.fetch as fetching
from castor_configs.errors import InputError
from castor_traces import catalog as catalog_module
from castor_traces import library
from castor_traces.catalog import DataFile, DataSet, NamedTrace, catalog, find
from castor_traces.fetch import cache_folder, fetch, locate
from castor_traces.importers import FORMATS
from castor_traces.library import format_of, import_file, load_any
from castor_traces.trace import Failure, make_trace
from castor_traces.write import write_trace

CONTENT = b"0,add,n1\n0,add,n2\n1000,remove,n1\n4000,add,n3\n"
SMALL = DataSet(
    name="small-set",
    title="two instances",
    repository="someone/something",
    commit="0123456789abcdef0123456789abcdef01234567",
    licence="MIT",
    citation="nobody",
    files=(
        DataFile("one.csv", "data/one.csv", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT)),
        DataFile("two.csv", "data/two.csv", hashlib.sha256(b"0,add,x\n").hexdigest(), 8),
    ),
    traces=(NamedTrace("small-one", "one.csv", "bamboo"), NamedTrace("two", "two.csv", "bamboo")),
)
PATH = "/someone/something/0123456789abcdef0123456789abcdef01234567/data/one.csv"


class Answers:
    """What the server says at each path, and what it was asked."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.promised: int | None = None
        self.status = 200
        self.location = ""
        self.asked: list[str] = []


@contextlib.contextmanager
def serving(answers: Answers) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.asked.append(self.path)
            body = answers.bodies.get(self.path)
            if answers.location and body is None:
                self.send_response(302)
                self.send_header("Location", answers.location)
                self.end_headers()
                return
            if body is None:
                self.send_error(404)
                return
            self.send_response(answers.status)
            length = len(body) if answers.promised is None else answers.promised
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def answers():
    return Answers()


@pytest.fixture
def server(answers):
    with serving(answers) as url:
        yield url


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """Keep this computer's data sets, cache and proxies out of the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CASTOR_TRACES", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetching, "__file__", str(tmp_path / "a" / "b" / "c" / "fetch.py"))


@pytest.fixture
def small(monkeypatch):
    """Put one small data set into the catalogue."""
    sets = (*catalog(), SMALL)
    monkeypatch.setattr(catalog_module, "catalog", lambda: sets)
    catalog_module._by_trace.cache_clear()
    yield SMALL
    monkeypatch.undo()
    catalog_module._by_trace.cache_clear()


def test_a_file_is_fetched_once_checked_and_found(small, server, answers, tmp_path):
    answers.bodies[PATH] = CONTENT
    assert locate("small-one") is None
    path = fetch("small-one", base_url=server)
    assert path == tmp_path / "cache" / "castor" / "traces" / "small-set" / "one.csv"
    assert path.read_bytes() == CONTENT
    assert fetch("small-one", base_url=server + "/") == path
    assert answers.asked == [PATH]
    assert locate("small-one") == path


def test_a_data_set_is_fetched_with_all_of_its_files(small, server, answers, tmp_path):
    answers.bodies[PATH] = CONTENT
    answers.bodies[PATH.replace("one.csv", "two.csv")] = b"0,add,x\n"
    path = fetch("small-set", folder=tmp_path / "mine", base_url=server)
    assert path == tmp_path / "mine" / "small-set" / "one.csv"
    assert sorted(p.name for p in path.parent.iterdir()) == ["one.csv", "two.csv"]


def test_redirections_are_followed(small, server, answers):
    answers.bodies["/moved"] = CONTENT
    answers.location = "/moved"
    assert fetch("small-one", base_url=server).read_bytes() == CONTENT


def test_a_damaged_copy_is_fetched_again(small, server, answers):
    answers.bodies[PATH] = CONTENT
    path = fetch("small-one", base_url=server)
    path.write_bytes(CONTENT[:-1] + b"x")
    assert fetch("small-one", base_url=server).read_bytes() == CONTENT
    assert len(answers.asked) == 2


@pytest.mark.parametrize(
    ("body", "promised", "what"),
    [
        (CONTENT.replace(b"n3", b"n4"), None, "not the published file"),
        (CONTENT[:20], None, f"expected {len(CONTENT)} bytes, received 20"),
        (CONTENT[:20], len(CONTENT), "20 bytes read|received 20|IncompleteRead"),
        (CONTENT + b"more", None, "received more"),
        (b"", None, "received 0"),
    ],
)
def test_a_wrong_file_is_refused_and_nothing_is_kept(
    small, server, answers, tmp_path, body, promised, what
):
    answers.bodies[PATH] = body
    answers.promised = promised
    with pytest.raises(InputError, match=what) as caught:
        fetch("small-one", base_url=server)
    assert "by hand" in str(caught.value)
    assert list(tmp_path.rglob("*.*")) == []
    assert locate("small-one") is None


def test_an_older_copy_stays_when_a_download_fails(small, server, answers, tmp_path):
    place = tmp_path / "cache" / "castor" / "traces" / "small-set" / "one.csv"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"old")
    answers.bodies[PATH] = b"new"
    with pytest.raises(InputError):
        fetch("small-one", base_url=server)
    assert place.read_bytes() == b"old"


def test_errors_of_the_server_and_of_the_network_say_what_to_do(small, answers):
    with serving(answers) as url, pytest.raises(InputError, match=r"404.*check the network"):
        fetch("small-one", base_url=url)
    with pytest.raises(InputError, match=r"[Rr]efused.*check the network.*by hand"):
        fetch("small-one", base_url=url)  # nobody listens there any more


def test_only_http_is_opened(small, tmp_path):
    file = tmp_path / PATH.removeprefix("/")
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    with pytest.raises(InputError, match="unknown url type"):
        fetch("small-one", base_url=tmp_path.as_uri())


def test_folders_are_searched_in_their_order(small, monkeypatch, tmp_path):
    stated = tmp_path / "stated"
    beside = tmp_path / "shared" / "traces"
    cached = cache_folder()
    repository = tmp_path / "house"
    repository.mkdir()
    (repository / "pyproject.toml").write_text("")
    monkeypatch.setattr(fetching, "__file__", str(repository / "traces" / "x" / "fetch.py"))
    monkeypatch.setenv("CASTOR_TRACES", str(stated))
    stated.mkdir()
    for folder in (cached, beside, stated):
        (folder / "small-set").mkdir(parents=True)
        (folder / "small-set" / "one.csv").write_bytes(CONTENT)
        assert locate("small-one") == folder / "small-set" / "one.csv"
    (stated / "small-set" / "one.csv").rename(stated / "one.csv")
    assert locate("small-one") == stated / "one.csv"
    (stated / "one.csv").rename(stated / "one.csv.gz")
    assert locate("small-one") == stated / "one.csv.gz"
    monkeypatch.setenv("CASTOR_TRACES", str(tmp_path / "none"))
    with pytest.raises(InputError, match="CASTOR_TRACES: expected a folder"):
        locate("small-one")


def test_a_relative_cache_home_is_ignored_and_no_home_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "castor" / "traces"

    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(InputError, match="set XDG_CACHE_HOME"):
        cache_folder()


@pytest.fixture
def kept(small, monkeypatch, tmp_path):
    """The small data set in a folder; counts how often its importer runs."""
    folder = tmp_path / "stated"
    folder.mkdir()
    (folder / "one.csv").write_bytes(CONTENT)
    monkeypatch.setenv("CASTOR_TRACES", str(folder))
    runs: list[str] = []

    def counted(path, form, **options):
        runs.append(form)
        return import_file(path, form, **options)

    monkeypatch.setattr(library, "import_file", counted)
    return folder, runs


def test_a_named_trace_is_imported_once_and_says_its_origin(kept, tmp_path):
    _, runs = kept
    first = load_any("small-one")
    assert load_any("small-one") == first
    assert load_any("small-set") == first  # by the name of the set: the first of its traces
    assert runs == ["bamboo"]
    assert first.rows_read == 4
    notes = dict(first.trace.notes)
    assert notes["sha256"] == SMALL.files[0].sha256
    assert notes["file"] == f"someone/something {SMALL.commit} one.csv"
    assert first.trace.failures == (
        Failure(10**9, 0, "hardware", 3 * 10**9, cause="spot preemption"),
    )


def test_the_cache_lapses_with_the_importers_and_survives_damage(kept, monkeypatch, tmp_path):
    _, runs = kept
    cache = tmp_path / "imported"
    first = load_any("small-one", cache=cache)
    (file,) = cache.iterdir()
    file.write_text(file.read_text().replace("hardware", "hardwore"))
    assert load_any("small-one", cache=cache) == first
    assert len(runs) == 2
    monkeypatch.setattr(library, "IMPORTER_VERSION", 10**6)
    assert load_any("small-one", cache=cache) == first
    assert len(runs) == 3
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache's folder should be")
    assert load_any("small-one", cache=blocked) == first


def test_a_named_trace_is_the_published_file_or_none(kept):
    folder, _ = kept
    (folder / "one.csv").write_bytes(CONTENT + b"5000,remove,n3\n")
    with pytest.raises(InputError, match="not the file published as small-one"):
        load_any("small-one")
    assert len(import_file(folder / "one.csv", "bamboo").trace.failures) == 2
    (folder / "one.csv").unlink()
    (folder / "one.csv.gz").write_bytes(CONTENT)
    with pytest.raises(InputError, match=r"damaged .*castor trace fetch small-one"):
        load_any("small-one")
    (folder / "one.csv.gz").unlink()
    with pytest.raises(InputError, match=r"castor trace fetch small-one.*CASTOR_TRACES"):
        load_any("small-one")


def test_paths_are_read_by_what_they_hold(tmp_path):
    trace = make_trace("mine", 3, 10, [Failure(1, 2, "hardware")])
    path = tmp_path / "p3-trace.csv"  # a Castor trace, whatever its name says
    write_trace(trace, path)
    assert load_any(path).trace == trace
    assert load_any(str(path)).rows_read == 1
    with pytest.raises(InputError, match="takes no system"):
        load_any(path, system=20)
    path.write_bytes(CONTENT)
    assert load_any(path).trace.name == "bamboo-p3"
    with pytest.raises(InputError, match="system: the importer of bamboo has no such option"):
        load_any(path, system=20)
    with pytest.raises(InputError, match="format: expected one of acme"):
        import_file(path, "csv")
    with pytest.raises(InputError, match="cannot be read"):
        load_any(tmp_path / "none.csv")


def test_bad_rows_of_a_path_are_counted(tmp_path):
    path = tmp_path / "t.csv"
    write_trace(make_trace("mine", 3, 10, [Failure(1, 2, "hardware")]), path)
    path.write_text(path.read_text() + "bad\n")
    with pytest.raises(InputError):
        load_any(path)
    imported = load_any(path, skip_bad=True)
    assert (imported.rows_read, len(imported.bad_rows)) == (2, 1)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("p3-trace.csv", "bamboo"),
        ("a100x1-east1b.txt", "bamboo-counts"),
        ("gc_full.csv.gz", "titan"),
        ("fault_trace.json.gz", "infinitehbd"),
        ("faults_flat.csv", "infinitehbd"),
        ("LA-UR-05-7318-failure-data-1996-2005.csv.xz", "lanl"),
        ("LA-UR-05-7318-failure-data-1996-2005.csv", "lanl"),
        ("cluster_job_log", "philly"),
        ("trace_kalos.csv", "acme"),
        ("other.csv", ""),
    ],
)
def test_formats_are_known_by_the_published_names(tmp_path, name, form):
    path = tmp_path / name
    path.write_text("x")
    assert format_of(path) == form


def test_the_catalogue_is_whole():
    names = [data.name for data in catalog()]
    assert names == sorted(names)
    traces = [trace.name for data in catalog() for trace in data.traces]
    assert len(set(traces)) == len(traces)
    assert {f"lanl-{n}" for n in range(2, 25)} <= set(traces)
    for data in catalog():
        assert data.licence
        assert data.citation
        assert len(data.commit) == 40
        for file in data.files:
            assert len(bytes.fromhex(file.sha256)) == 32
            assert file.size_bytes > 0
        for trace in data.traces:
            assert trace.format in FORMATS
            assert data.file(trace.file)
            assert find(trace.name) == (data, trace)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match=r"no data set is called 'lanl20'; did you mean lanl-20"):
        load_any("lanl20")
    with pytest.raises(InputError, match="known are"):
        load_any("zzz")
