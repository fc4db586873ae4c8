"""The public data sets that Castor knows: where they live, under what terms, and their checksums.

No data set is shipped: their licences differ, and two have none. A data set is a few files of one
public repository at one commit; a named trace is one file of it, read by one importer.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache

from castor_configs.errors import InputError

_LANL_SYSTEMS = (20, 18, 19, *(n for n in range(2, 25) if n not in (18, 19, 20)))
_TITAN_YEARS = range(2014, 2020)


@dataclass(frozen=True, slots=True)
class DataFile:
    """One published file.

    Attributes:
        name: what it is called in a folder of data sets.
        path: where it stands in its repository.
        sha256: of the published bytes, in hexadecimal.
        size_bytes: how many those are.
    """

    name: str
    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class NamedTrace:
    """A trace that a name stands for.

    Attributes:
        name: such as "lanl-20".
        file: the `DataFile.name` that it is made of.
        format: the importer, a key of `importers.FORMATS`.
        options: that importer's arguments.
    """

    name: str
    file: str
    format: str
    options: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class DataSet:
    """A public data set.

    Attributes:
        name: also the folder that holds its files.
        title: what it is, in one line.
        repository: its public home, owner/name.
        commit: of that repository, all 40 digits.
        licence: the terms, or that there are none.
        citation: whom to cite or credit.
        files: what is fetched.
        traces: what can be made of it; the first is what the data set's own name stands for.
    """

    name: str
    title: str
    repository: str
    commit: str
    licence: str
    citation: str
    files: tuple[DataFile, ...]
    traces: tuple[NamedTrace, ...]

    def file(self, name: str) -> DataFile:
        """Return the file of that name.

        Raises:
            KeyError: there is none.
        """
        for file in self.files:
            if file.name == name:
                return file
        raise KeyError(name)


_INFINITEHBD = DataSet(
    name="infinitehbd",
    title="faults of 400 GPU servers of a pre-training cluster, 348 days from March 2024",
    repository="stepfun-ai/InfiniteHBD-Trace",
    commit="7aacdc8c3d2352c5b784bc0ea31756e1620daed1",
    licence="Apache-2.0",
    citation="Shou et al., InfiniteHBD, SIGCOMM 2025 (arXiv 2502.03885)",
    files=(
        DataFile(
            "fault_trace.json",
            "fault_trace.json",
            "5871b881b341c9526223c025eda3a9bd2f0f875cf8d53441688ccd953e11b80d",
            339_053,
        ),
    ),
    traces=(NamedTrace("infinitehbd", "fault_trace.json", "infinitehbd"),),
)

_BAMBOO = DataSet(
    name="bamboo-spot",
    title="preemptions of spot instances, 11 to 27 hours",
    repository="uclasystem/bamboo",
    commit="80809293289419d40a870b4a9ccb8df0082ce3fb",
    licence="MIT",
    citation="Thorpe et al., Bamboo, NSDI 2023",
    files=(
        DataFile(
            "p3-trace.csv",
            "traces/p3-trace.csv",
            "0b7828fcd4637799590578287415d4d4bbb5e3cfef5fbaf23ca8e5b3ef6bdd68",
            7_617,
        ),
        DataFile(
            "g4dn-trace.csv",
            "traces/g4dn-trace.csv",
            "6a21d2003cfa16acfb65fb87b5521dd995c72f49a37900979eea177e853592eb",
            3_335,
        ),
        DataFile(
            "a100x1-east1b.txt",
            "traces/gcloud/a100x1-east1b.txt",
            "cbd874201d07901a0bd3df1c4b5981b3193b51d45620b34802b28dca4f0e01b5",
            6_700,
        ),
        DataFile(
            "v100x1-east1c.txt",
            "traces/gcloud/v100x1-east1c.txt",
            "3d8f0c0c8c088b38883913579e47c9d2823c0c739ba27dc81c7ab4c7ae783d35",
            36_925,
        ),
    ),
    traces=(
        NamedTrace("bamboo-p3", "p3-trace.csv", "bamboo"),
        NamedTrace("bamboo-g4dn", "g4dn-trace.csv", "bamboo"),
        NamedTrace("gcloud-a100", "a100x1-east1b.txt", "bamboo-counts"),
        NamedTrace("gcloud-v100", "v100x1-east1c.txt", "bamboo-counts"),
    ),
)

_LANL_FILE = "LA-UR-05-7318-failure-data-1996-2005.csv.xz"
_LANL = DataSet(
    name="lanl-2005",
    title="node outages of 23 systems of 1 to 1,024 nodes, 1995 to 2005",
    repository="Derek-Jones/ESEUR-code-data",
    commit="1a49d102b38680531cb1d79ca131510b11b64e06",
    licence="public release without a licence text; the repository has none either",
    citation="credit Los Alamos (LA-UR-05-7318); Schroeder and Gibson, DSN 2006",
    files=(
        DataFile(
            _LANL_FILE,
            f"reliability/{_LANL_FILE}",
            "ed32fd254a013df79f5f475f4eac85980f7229735e100ac427343ef449a75140",
            253_144,
        ),
    ),
    traces=tuple(
        NamedTrace(f"lanl-{number}", _LANL_FILE, "lanl", (("system", number),))
        for number in _LANL_SYSTEMS
    ),
)

_TITAN = DataSet(
    name="titan-gpu-life",
    title="failures of 18,688 K20X GPUs of one machine, 2013 to 2019",
    repository="olcf/TitanGPULife",
    commit="f3303559ff63d341eb913ac530267b412d30ed7e",
    licence="none stated",
    citation="Ostrouchov et al., GPU lifetimes on Titan, SC20",
    files=(
        DataFile(
            "gc_full.csv",
            "data/gc_full.csv",
            "a1f29b9b9b67c1e8ef2370cbaf783e4eeb7ba9ccadc5511ca7056d8feeeefed8",
            3_024_995,
        ),
    ),
    traces=(
        NamedTrace("titan", "gc_full.csv", "titan"),
        *(
            NamedTrace(f"titan-{year}", "gc_full.csv", "titan", (("year", year),))
            for year in _TITAN_YEARS
        ),
    ),
)


def catalog() -> tuple[DataSet, ...]:
    """Return the data sets, in the order of their names."""
    return (_BAMBOO, _INFINITEHBD, _LANL, _TITAN)


@cache
def _by_trace() -> dict[str, tuple[DataSet, NamedTrace]]:
    return {trace.name: (data, trace) for data in catalog() for trace in data.traces}


def is_known(name: str) -> bool:
    """Return whether `name` is a named trace or a data set."""
    return name in _by_trace() or any(data.name == name for data in catalog())


def find(name: str) -> tuple[DataSet, NamedTrace]:
    """Return what `name` stands for; a data set's name stands for the first of its traces.

    Raises:
        InputError: nothing has that name; the nearest ones are suggested.
    """
    if name in _by_trace():
        return _by_trace()[name]
    for data in catalog():
        if data.name == name:
            return data, data.traces[0]
    known = [*_by_trace(), *(data.name for data in catalog())]
    near = get_close_matches(name, known, n=3)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    else:
        hint = f"known are {', '.join(data.traces[0].name for data in catalog())} and more"
    raise InputError(f"no data set is called {name!r}; {hint}", key="trace")
