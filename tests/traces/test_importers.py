"""Importers on small files of the exact published formats, good rows and bad ones."""

import gzip
import json
import lzma

import pytest

from castor_configs.errors import InputError
from castor_traces.importers import (
    FORMATS,
    import_acme,
    import_bamboo,
    import_bamboo_counts,
    import_infinitehbd,
    import_lanl,
    import_philly,
    import_titan,
)

S = 10**9
MINUTE = 60 * S
HOUR = 3600 * S
DAY = 24 * HOUR

LANL_HEADER = (
    "System,machine type,nodes,procstot,procsinnode,nodenum,nodenumz,node install,node prod,"
    "node decom,fru type,mem,cputype,memtype,num intercon,purpose,Prob Started,Prob Fixed,"
    "Down Time,Facilities,Hardware,Human Error,Network,Undetermined,Software,Same Event"
)


def lanl_row(
    start, fixed, down, node="0", cause="Hardware", text="CPU", system="20", nodes="8", prod="1-Dec"
):
    names = ("Facilities", "Hardware", "Human Error", "Network", "Undetermined", "Software")
    causes = ",".join(text if name == cause else "" for name in names)
    return (
        f"{system},cluster,{nodes},32,4,{node},{node},1-Oct,{prod},current,part,4,1,1,2,compute,"
        f"{start},{fixed},{down},{causes},No"
    )


def write(tmp_path, lines, name="f.csv"):
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n")
    return path


def test_lanl_rows_become_failures(tmp_path):
    path = write(
        tmp_path,
        [
            LANL_HEADER,
            lanl_row("1/3/2002 9:00", "1/3/2002 9:45", 45, node="7"),
            lanl_row("12/20/2001 8:00", "12/20/2001 8:00", 0, cause="Software", text="OS"),
            lanl_row("1/3/2002 9:30", "5/15/2002 9:30", 131 * 1440 + 1380, node="7", cause=""),
            lanl_row(
                "1/3/2002 9:00", "1/3/2002 9:10", 10, node="1", cause="Facilities", text="UPS"
            ),
            lanl_row("1/1/2000 0:00", "1/1/2000 0:01", 1, system="2", nodes="49", prod="Jan-97"),
        ],
    )
    imported = import_lanl(path)
    trace = imported.trace
    assert (trace.name, trace.machines, imported.rows_read) == ("lanl-20", 8, 5)
    start = 33 * DAY + 9 * HOUR  # from 1 December 2001, the month of production
    assert [(f.time_ns, f.machine, f.kind, f.duration_ns, f.cause) for f in trace.failures] == [
        (19 * DAY + 8 * HOUR, 0, "software", 0, "Software: OS"),
        (start, 1, "hardware", 10 * MINUTE, "Facilities: UPS"),
        (start, 7, "hardware", 45 * MINUTE, "Hardware: CPU"),
        (start + 30 * MINUTE, 7, "hardware", (131 * 1440 + 1380) * MINUTE, ""),
    ]
    assert trace.span_ns == start + 30 * MINUTE
    assert import_lanl(path, system=2).trace.machines == 49
    with pytest.raises(InputError, match=r"no outage of system 3; the file has 2, 20"):
        import_lanl(path, system=3)


def test_lanl_starts_with_the_first_outage_where_production_is_unknown(tmp_path):
    row = lanl_row("1/3/2002 9:00", "1/3/2002 9:10", 10, node="", nodes="", prod="before tracking")
    trace = import_lanl(write(tmp_path, [LANL_HEADER, row])).trace
    assert trace.machines == 1
    assert [(f.time_ns, f.machine) for f in trace.failures] == [(0, None)]


def test_lanl_nodes_numbered_beyond_their_count_get_free_numbers(tmp_path):
    rows = [
        lanl_row(f"1/{day}/2002 0:00", f"1/{day}/2002 0:01", 1, node=node, nodes="4")
        for day, node in ((1, "578"), (2, "0"), (3, "2"), (4, "578"), (5, "300"))
    ]
    trace = import_lanl(write(tmp_path, [LANL_HEADER, *rows])).trace
    assert trace.machines == 4
    assert [f.machine for f in trace.failures] == [3, 0, 2, 3, 1]


def test_lanl_clock_changes_are_no_malformed_rows_but_wrong_down_times_are(tmp_path):
    # Across the end of daylight saving time the readings are one hour further apart.
    good = lanl_row("10/31/2004 0:16", "10/31/2004 2:35", 199)
    trace = import_lanl(write(tmp_path, [LANL_HEADER, good])).trace
    assert trace.failures[0].duration_ns == 199 * MINUTE
    no_down_time = lanl_row("10/31/2004 0:16", "10/31/2004 2:35", "")
    trace = import_lanl(write(tmp_path, [LANL_HEADER, no_down_time])).trace
    assert trace.failures[0].duration_ns == 139 * MINUTE


TITAN_HEADER = "SN,location,insert,remove,duration,out,event"


def test_titan_rows_become_failures_in_the_order_of_the_machine_room(tmp_path):
    path = tmp_path / "gc_full.csv.gz"
    rows = [
        TITAN_HEADER,
        "1,c10-0c0s0n0,2013-12-31 23:00:00,2014-01-01 01:00:00,7200,FALSE,DBE",
        "2,c9-0c0s0n0,2013-12-31 22:00:00,2015-06-01 00:00:00,1,FALSE,",
        "3,c9-0c0s0n0,,2014-01-01 01:00:00,,,OTB",
        "4,c9-1c0s0n0,2015-01-01 00:00:00,2015-02-01 00:00:00,1,TRUE,DBE",
    ]
    path.write_bytes(gzip.compress("\n".join(rows).encode()))
    trace = import_titan(path).trace
    assert trace.machines == 3
    assert [(f.time_ns, f.machine) for f in trace.failures] == [
        (3 * HOUR, 0),  # c9-0 comes before c9-1, and both before c10-0
        (3 * HOUR, 2),
        (2 * HOUR + (365 + 31) * DAY, 1),
    ]
    assert all(f.kind == "hardware" and f.duration_ns is None for f in trace.failures)
    assert trace.failures[0].cause == "OTB (off the bus) at c9-0c0s0n0"
    year = import_titan(path, 2014).trace
    assert (year.name, year.span_ns, len(year.failures)) == ("titan-2014", 365 * DAY, 2)
    assert year.failures[0].time_ns == HOUR
    assert year.machines == 3
    with pytest.raises(InputError, match=r"expected 2013\.\.2015, not 2016"):
        import_titan(path, 2016)


def event(node, day, what, kind=("Hardware Failure", "GPU", "GPU Lost")):
    level, group, description = kind
    return {
        "node_id": node,
        "event_time": day,
        "event_type": f"fault_{what}",
        "fault_type": {"Level": level, "Class": group, "Desc": description},
    }


SOFTWARE = ("Software Failure", "File System", "FS Readonly")
OTHER = ("Other Failure", "Change", "x")


def test_infinitehbd_joins_starts_and_ends(tmp_path):
    path = tmp_path / "fault_trace.json"
    events = [
        event("b", 2.5, "end"),  # not sorted
        event("a", 3.8955, "start"),
        event("a", 4, "start", SOFTWARE),  # overlaps the first
        event("a", 5, "end", SOFTWARE),
        event("a", 134.8591, "end"),
        event("b", 2.5, "start", OTHER),
        event("b", 2.5, "end", OTHER),  # lasts no time
        event("b", 1, "start"),
        event("c", 347.0001, "start"),  # never ends
    ]
    path.write_text(json.dumps(events))
    trace = import_infinitehbd(path).trace
    assert trace.machines == 400
    assert trace.span_ns == 348 * DAY
    eight_s = 8_640_000_000  # 0.0001 days
    assert [(f.time_ns, f.machine, f.kind, f.duration_ns) for f in trace.failures] == [
        (DAY, 0, "hardware", 3 * DAY // 2),
        (5 * DAY // 2, 0, "hardware", 0),
        (38955 * eight_s, 1, "hardware", (1348591 - 38955) * eight_s),
        (4 * DAY, 1, "software", DAY),
        (3470001 * eight_s, 2, "hardware", 9999 * eight_s),
    ]
    assert "1 faults without an end" in dict(trace.notes)["unfinished"]


def test_infinitehbd_takes_faults_of_one_type_in_turn(tmp_path):
    path = tmp_path / "fault_trace.json"
    days = [(1, "start"), (2, "start"), (3, "end"), (5, "end")]
    path.write_text(json.dumps([event("a", day, what) for day, what in days]))
    failures = import_infinitehbd(path, machines=1).trace.failures
    assert [(f.time_ns, f.duration_ns) for f in failures] == [(DAY, 2 * DAY), (2 * DAY, 3 * DAY)]


def test_infinitehbd_refuses_an_end_without_a_start_and_too_many_nodes(tmp_path):
    path = tmp_path / "fault_trace.json"
    events = [event("a", 1, "start"), event("b", 2, "end"), event("c", 3, "start")]
    path.write_text(json.dumps(events))
    with pytest.raises(InputError, match=r"json:2: fault_end without a fault_start of node b"):
        import_infinitehbd(path)
    imported = import_infinitehbd(path, skip_bad=True)
    assert [bad.line for bad in imported.bad_rows] == [2]
    assert imported.rows_read == 3
    with pytest.raises(InputError, match="2 servers fail, but there are to be 1"):
        import_infinitehbd(path, skip_bad=True, machines=1)


def test_infinitehbd_survives_an_empty_trace(tmp_path):
    path = tmp_path / "fault_trace.json"
    path.write_text("[]")
    trace = import_infinitehbd(path).trace
    assert (trace.machines, trace.span_ns, trace.failures) == (400, 348 * DAY, ())


def test_bamboo_instances_take_the_lowest_free_slot(tmp_path):
    rows = ["0,add,n1", "0,add,n2", "0,add,n3", "1000,remove,n2", "1000,remove,n1"]
    rows += ["4000,add,n4", "5000,remove,n3", "5000,add,n5", "6000,remove,n4"]
    path = write(tmp_path, rows, "p3-trace.csv")
    imported = import_bamboo(path)
    trace = imported.trace
    assert (trace.name, trace.machines, trace.span_ns) == ("bamboo-p3", 3, 6 * S)
    assert imported.rows_read == 9
    assert [(f.time_ns, f.machine, f.duration_ns) for f in trace.failures] == [
        (S, 0, 3 * S),
        (S, 1, 4 * S),
        (5 * S, 2, S),  # not taken again: out to the end
        (6 * S, 0, None),  # gone at the very end
    ]
    assert {f.kind for f in trace.failures} == {"hardware"}
    shuffled = write(tmp_path, [*rows[5:], *rows[:5]], "p3-trace.csv")
    assert import_bamboo(shuffled).trace == trace


def test_bamboo_refuses_impossible_moves(tmp_path):
    path = write(tmp_path, ["0,add,n1", "1,add,n1", "2,remove,n9", "3,remove,n1"])
    with pytest.raises(InputError, match=r":2: add of n1, which is live already"):
        import_bamboo(path)
    imported = import_bamboo(path, skip_bad=True)
    assert [bad.line for bad in imported.bad_rows] == [2, 3]
    assert imported.rows_read == 4
    assert len(imported.trace.failures) == 1


def test_a_drop_in_the_count_is_that_many_failures_at_one_instant(tmp_path):
    rows = ["2021-12-10, 13:07:45, 80", "2021-12-10, 13:09:45, 80", "2021-12-10, 13:08:45, 70"]
    rows += ["2021-12-10, 13:09:45, 70", "2021-12-10, 13:10:45, 75", "2021-12-10, 13:11:45, 72"]
    trace = import_bamboo_counts(write(tmp_path, rows, "v100x1-east1c.txt")).trace
    assert (trace.name, trace.machines) == ("gcloud-v100x1-east1c", 80)
    assert [f.time_ns for f in trace.failures] == [MINUTE] * 10 + [4 * MINUTE] * 3
    assert {f.machine for f in trace.failures} == {None}
    assert {f.duration_ns for f in trace.failures} == {None}


def philly_job(attempts, status="Failed", submitted="2017-10-07 01:11:39"):
    return {
        "status": status,
        "vc": "ee9e8c",
        "jobid": "application_1506638472019_14199",
        "attempts": attempts,
        "submitted_time": submitted,
        "user": "ce2f4c",
    }


def attempt(start, end, *servers):
    detail = [{"ip": server, "gpus": ["gpu0", "gpu1"]} for server in servers]
    return {"start_time": start, "end_time": end, "detail": detail}


def test_philly_attempts_that_were_tried_again_failed(tmp_path):
    path = tmp_path / "cluster_job_log"
    jobs = [
        philly_job(
            [
                attempt("2017-10-07 01:12:39", "2017-10-07 01:13:39", "m47"),
                attempt("2017-10-07 01:13:40", None, "m412"),
                attempt("2017-10-07 01:13:50", "2017-10-07 02:11:39", "m412", "m9"),
            ],
            "Pass",
        ),
        philly_job([attempt("2017-10-07 01:14:00", "2017-10-07 01:21:39", "m9", "m47")]),
        philly_job([attempt("2017-10-07 01:14:00", "2017-10-07 01:31:39", "m9")], "Killed"),
        philly_job([], "Failed"),
    ]
    path.write_text(json.dumps(jobs))
    imported = import_philly(path)
    trace = imported.trace
    assert imported.rows_read == 4
    assert trace.machines == 3  # m9, m47, m412
    assert [(f.time_ns, f.machine, f.kind, f.duration_ns) for f in trace.failures] == [
        (2 * MINUTE, 1, "software", None),
        (10 * MINUTE, None, "software", None),
    ]
    assert trace.failures[1].cause == "application_1506638472019_14199 on 2 servers, 4 GPUs"
    assert trace.span_ns == HOUR
    assert dict(trace.notes)["without_end"].startswith("1 ")


def test_philly_malformed_jobs_are_named_by_their_number(tmp_path):
    path = tmp_path / "cluster_job_log"
    good = philly_job([attempt("2017-10-07 01:14:00", "2017-10-07 01:21:39", "m9")])
    bad = [
        philly_job([attempt("2017-10-07 01:14", None, "m9")]),
        philly_job([], status="Lost"),
        philly_job({}),
        philly_job([attempt("2017-10-07 01:14:00", "2017-10-06 01:14:00", "m9")]),
        philly_job([], submitted=None),
        philly_job([{"start_time": None, "end_time": None, "detail": [{"gpus": []}]}]),
        philly_job([{"start_time": 7, "end_time": None, "detail": []}]),
        philly_job([[]]),
        "job",
    ]
    path.write_text(json.dumps([good, *bad]))
    with pytest.raises(InputError, match=r"cluster_job_log:2: start_time: expected"):
        import_philly(path)
    imported = import_philly(path, skip_bad=True)
    assert [row.line for row in imported.bad_rows] == list(range(2, 11))
    assert len(imported.trace.failures) == 1


SEREN_HEADER = (
    "job_id,user,node_num,gpu_num,cpu_num,type,state,submit_time,start_time,end_time,duration,"
    "queue,gpu_time"
)
KALOS_HEADER = (
    "job_id,user,node_num,gpu_num,cpu_num,mem_per_pod_GB,shared_mem_per_pod,type,state,"
    "submit_time,start_time,end_time,fail_time,stop_time,duration,queue,gpu_time"
)


def test_acme_seren_failures(tmp_path):
    rows = [
        SEREN_HEADER,
        "1,u1,1,8,128,Other,FAILED,2023-03-01 00:18:22+08:00,2023-03-01 00:18:54+08:00,"
        "2023-03-01 00:20:51+08:00,117,32,936.0",
        "2,u1,4,32,512,Pretrain,NODE_FAIL,2023-02-28 16:18:00+00:00,2023-03-01 00:18:54+08:00,"
        "2023-03-01 01:18:00+08:00,117,32,936.0",
        "3,u1,1,8,128,Other,COMPLETED,2023-03-01 00:23:58+08:00,2023-03-01 00:24:11+08:00,"
        "2023-03-01 02:18:00+08:00,2693,13,21544.0",
        "4,u1,1,0,128,Other,FAILED,2023-03-01 00:23:58+08:00,2023-03-01 00:24:11+08:00,"
        "2023-03-01 01:00:00+08:00,2693,13,0.0",
        "5,u1,1,8,128,Other,CANCELLED,2023-03-01 00:23:58+08:00,,,,,",
    ]
    path = write(tmp_path, rows, "trace_seren.csv")
    trace = import_acme(path).trace
    assert (trace.name, trace.machines, trace.span_ns) == ("acme-seren", 286, 2 * HOUR)
    assert [(f.time_ns, f.kind, f.machine) for f in trace.failures] == [
        (171 * S, "software", None),
        (HOUR, "hardware", None),
    ]
    assert trace.failures[1].cause == "NODE_FAIL: Pretrain, 4 nodes, 32 GPUs, job 2"
    assert len(import_acme(path, gpu_jobs_only=False).trace.failures) == 3


def test_acme_kalos_failures_fall_at_their_fail_time(tmp_path):
    rows = [
        KALOS_HEADER,
        "dlctk,uf,8,64,960,1000,100.0,Other,FAILED,2023-05-17 11:00:00+00:00,"
        "2023-05-17 11:01:08+00:00,2023-05-17 11:03:00+00:00,2023-05-17 11:02:00+00:00,,18,10.0,1",
    ]
    trace = import_acme(write(tmp_path, rows, "trace_kalos.csv")).trace
    assert (trace.machines, trace.span_ns) == (302, 3 * MINUTE)
    assert [f.time_ns for f in trace.failures] == [2 * MINUTE]
    unnamed = write(tmp_path, rows, "mine.csv")
    assert import_acme(unnamed, machines=7).trace.machines == 7
    with pytest.raises(InputError, match="say how many"):
        import_acme(unnamed)


LANL_GOOD = lanl_row("1/3/2002 9:00", "1/3/2002 9:45", 45)
TITAN_GOOD = "1,c1-0c0s0n0,2013-12-31 23:00:00,2014-01-01 01:00:00,7200,FALSE,DBE"
CSV_HEADER = "node,start_day,end_day,level,class,desc"
CSV_GOOD = "0,1.5,2.5,Hardware Failure,GPU,GPU Lost"
ACME_GOOD = (
    "1,u,1,8,9,Other,FAILED,2023-03-01 00:18:22+08:00,2023-03-01 00:18:54+08:00,"
    "2023-03-01 00:20:51+08:00,117,32,936.0"
)


@pytest.mark.parametrize(
    ("form", "name", "good", "bad", "what"),
    [
        ("lanl", "f.csv", [LANL_HEADER, LANL_GOOD], "20,cluster", "expected 26 fields, found 2"),
        ("lanl", "f.csv", [LANL_HEADER, LANL_GOOD], LANL_GOOD.replace("20,", "x,", 1), "System"),
        (
            "lanl",
            "f.csv",
            [LANL_HEADER, LANL_GOOD],
            lanl_row("13/3/2002 9:00", "1/3/2002 9:45", 45),
            "Prob Started",
        ),
        (
            "lanl",
            "f.csv",
            [LANL_HEADER, LANL_GOOD],
            lanl_row("1/3/2002 9:46", "1/3/2002 9:45", 45),
            "before it started",
        ),
        (
            "lanl",
            "f.csv",
            [LANL_HEADER, LANL_GOOD],
            lanl_row("1/3/2002 9:00", "1/3/2002 9:45", 450),
            "Down Time: 450 minutes, but 45",
        ),
        (
            "lanl",
            "f.csv",
            [LANL_HEADER, LANL_GOOD],
            lanl_row("1/3/2002 9:00", "1/3/2002 9:45", 45, prod="Dez-01"),
            "node prod",
        ),
        (
            "lanl",
            "f.csv",
            [LANL_HEADER, LANL_GOOD],
            lanl_row("1/3/2002 9:00", "1/3/2002 9:45", 45, node="-1"),
            "nodenumz",
        ),
        (
            "lanl",
            "f.csv",
            [LANL_HEADER, LANL_GOOD],
            LANL_GOOD.replace("CPU,,", "CPU,Person,", 1),
            "one cause at most",
        ),
        ("titan", "f.csv", [TITAN_HEADER, TITAN_GOOD], TITAN_GOOD + ",x", "found 8"),
        (
            "titan",
            "f.csv",
            [TITAN_HEADER, TITAN_GOOD],
            TITAN_GOOD.replace("c1-0", "c1"),
            "location",
        ),
        ("titan", "f.csv", [TITAN_HEADER, TITAN_GOOD], TITAN_GOOD.replace("DBE", "SBE"), "event"),
        (
            "titan",
            "f.csv",
            [TITAN_HEADER, TITAN_GOOD],
            TITAN_GOOD.replace("2013-12-31", "2014-12-31"),
            "before it was inserted",
        ),
        ("infinitehbd", "f.csv", [CSV_HEADER, CSV_GOOD], "0,2.5,1.5,a,b,c", "no earlier"),
        ("infinitehbd", "f.csv", [CSV_HEADER, CSV_GOOD], "0,nan,1.5,a,b,c", "finite"),
        ("infinitehbd", "f.csv", [CSV_HEADER, CSV_GOOD], "0,-1,1.5,a,b,c", "at least 0"),
        ("infinitehbd", "f.csv", [CSV_HEADER, CSV_GOOD], ",1,1.5,a,b,c", "node"),
        ("infinitehbd", "f.csv", [CSV_HEADER, CSV_GOOD], '0,1,2,a,b,"c', "quotes"),
        ("bamboo", "f.csv", ["0,add,n1", "9,remove,n1"], "0,kill,n1", "add|remove"),
        ("bamboo", "f.csv", ["0,add,n1", "9,remove,n1"], "0.5,add,n2", "time_ms"),
        ("bamboo", "f.csv", ["0,add,n1", "9,remove,n1"], "add,n2", "add|remove"),
        (
            "bamboo-counts",
            "f.txt",
            ["2021-12-11, 11:11:30, 55", "2021-12-11, 11:12:30, 54"],
            "2021-12-11, 25:11:30, 55",
            "date and time",
        ),
        (
            "bamboo-counts",
            "f.txt",
            ["2021-12-11, 11:11:30, 55", "2021-12-11, 11:12:30, 54"],
            "2021-12-11, 11:13:30, -5",
            "live instances",
        ),
        ("acme", "trace_seren.csv", [SEREN_HEADER, ACME_GOOD], "1,2", "found 2"),
        (
            "acme",
            "trace_seren.csv",
            [SEREN_HEADER, ACME_GOOD],
            ACME_GOOD.replace("FAILED", "GONE"),
            "state",
        ),
        (
            "acme",
            "trace_seren.csv",
            [SEREN_HEADER, ACME_GOOD],
            ACME_GOOD.replace("+08:00", ""),
            "offset from UTC",
        ),
        (
            "acme",
            "trace_seren.csv",
            [SEREN_HEADER, ACME_GOOD],
            ACME_GOOD.replace("2023-03-01 00:20:51+08:00", ""),
            "no time of its end",
        ),
        (
            "acme",
            "trace_seren.csv",
            [SEREN_HEADER, ACME_GOOD],
            ACME_GOOD.replace("1,u,1,8,", "1,u,1,many,"),
            "gpu_num",
        ),
    ],
)
def test_a_malformed_row_is_named_by_its_line_and_skipped_on_request(
    tmp_path, form, name, good, bad, what
):
    path = write(tmp_path, [*good, "", bad], name)
    line = len(good) + 2
    with pytest.raises(InputError) as caught:
        FORMATS[form](path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert what in str(caught.value)
    imported = FORMATS[form](path, skip_bad=True)
    assert [row.line for row in imported.bad_rows] == [line]
    assert what in imported.bad_rows[0].reason
    assert len(imported.trace.failures) == 1


@pytest.mark.parametrize(
    "record",
    [
        [],
        {**event("a", 1, "start"), "node_id": None},
        {**event("a", 1, "start"), "event_type": "begin"},
        {**event("a", 1, "start"), "event_time": "soon"},
        {**event("a", 1, "start"), "event_time": float("nan")},
        {**event("a", 1, "start"), "event_time": -1},
        {**event("a", 1, "start"), "fault_type": "GPU"},
    ],
)
def test_infinitehbd_malformed_events_are_named_by_their_number(tmp_path, record):
    path = tmp_path / "fault_trace.json"
    path.write_text(json.dumps([event("a", 1, "start"), record, event("a", 2, "end")]))
    with pytest.raises(InputError, match=r"fault_trace\.json:2: "):
        import_infinitehbd(path)
    imported = import_infinitehbd(path, skip_bad=True)
    assert [row.line for row in imported.bad_rows] == [2]
    assert [f.duration_ns for f in imported.trace.failures] == [DAY]


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_files_of_another_kind_are_refused(tmp_path, form):
    path = tmp_path / "trace_seren.csv"
    with pytest.raises(InputError, match="cannot be read"):
        FORMATS[form](path)
    path.write_text("what,is,this\n1,2,3\n")
    with pytest.raises(InputError):
        FORMATS[form](path)
    path.write_text("\n")
    with pytest.raises(InputError):
        FORMATS[form](path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="expected UTF-8"):
        FORMATS[form](path)
    for packed in (gzip.compress(b"x" * 999), lzma.compress(b"x" * 999)):
        path.write_bytes(packed[:-9])
        with pytest.raises(InputError, match="damaged or cut short"):
            FORMATS[form](path)


@pytest.mark.parametrize(("form", "text"), [("philly", "[{]"), ("philly", "{}")])
def test_json_of_another_kind_is_refused(tmp_path, form, text):
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(InputError):
        FORMATS[form](path)
    with pytest.raises(InputError):
        import_infinitehbd(path)
