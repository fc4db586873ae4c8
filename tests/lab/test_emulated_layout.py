"""Names, addresses and the use of hosts of an emulated cluster: what needs no root."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_configs.errors import InputError
from castor_lab.emulated_cluster import iproute
from castor_lab.emulated_cluster.layout import (
    MTU_BYTES,
    NETWORKS,
    Cluster,
    Host,
    Wanted,
    addresses,
    free_network,
    gateway_link,
    host_order,
    namespace_of,
    shape,
    split_namespace,
)
from castor_lab.emulated_cluster.network import Hosts

names = st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True)
subnets = st.builds(
    lambda index, length: list(NETWORKS.subnets(new_prefix=24))[index].supernet(new_prefix=length),
    st.integers(0, 511),
    st.integers(20, 24),
)


def wanted(
    name: str = "lab", nodes: int = 2, spares: int = 1, bps: int = 10**9, storage: int = 10**7
) -> Wanted:
    return Wanted(name, nodes, spares, bps, storage)


@given(names, st.integers(1, 30), st.integers(0, 5))
def test_everything_of_a_cluster_is_found_by_its_name(name: str, nodes: int, spares: int) -> None:
    hosts = [*wanted(name, nodes, spares).host_names(), "storage", "switch"]
    assert len(set(hosts)) == nodes + spares + 2
    assert [split_namespace(namespace_of(name, host)) for host in hosts] == [
        (name, host) for host in hosts
    ]
    assert len(gateway_link(name)) <= 15, "the kernel takes no longer name"
    assert sorted(hosts[:-1], key=host_order) == hosts[:-1]


@pytest.mark.parametrize(
    "namespace", ["castor-lab", "castor-lab-node-", "castor-LAB-node-0", "other", "castor-a-b-c"]
)
def test_what_is_not_ours_is_left_alone(namespace: str) -> None:
    assert split_namespace(namespace) is None


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"name": "Lab"}, "--name"),
        ({"name": "node-1"}, "--name"),
        ({"name": ""}, "--name"),
        ({"name": "ninechars"}, "--name"),
        ({"nodes": 0}, "--nodes"),
        ({"nodes": 199, "spares": 2}, "--nodes"),
        ({"spares": -1}, "--spares"),
        ({"bps": 99_999}, "--bandwidth"),
        ({"storage": 0}, "--storage-bandwidth"),
    ],
)
def test_what_cannot_be_is_refused_by_its_option(values: dict[str, int], part: str) -> None:
    with pytest.raises(InputError, match=part):
        wanted(**values)


@given(st.lists(subnets, max_size=40))
def test_a_network_is_free_and_the_first_that_is(taken: list[IPv4Network]) -> None:
    found = free_network(taken)
    assert not any(found.overlaps(one) for one in taken)
    for earlier in NETWORKS.subnets(new_prefix=24):
        if earlier == found:
            break
        assert any(earlier.overlaps(one) for one in taken)


def test_a_full_range_is_refused_and_everybody_elses_is_no_matter() -> None:
    with pytest.raises(InputError, match="in use"):
        free_network([IPv4Network("198.18.0.0/15")])
    assert str(free_network([IPv4Network("10.0.0.0/8")])) == "198.18.0.0/24"
    given_out = addresses(IPv4Network("198.18.3.0/24"), ["node-0", "spare-0"])
    assert {name: str(one) for name, one in given_out.items()} == {
        "": "198.18.3.1/24",
        "node-0": "198.18.3.2/24",
        "spare-0": "198.18.3.3/24",
        "storage": "198.18.3.4/24",
    }


@given(st.integers(100_000, 10**12))
def test_a_link_passes_a_packet_and_never_queues_long(bandwidth_bps: int) -> None:
    bucket = shape(bandwidth_bps)
    assert bucket.burst_bytes > MTU_BYTES + 14
    assert bucket.queue_bytes > bucket.burst_bytes
    fast = bandwidth_bps >= 144_000_000
    assert not fast or bucket.burst_bytes * 8 <= bandwidth_bps // 1000 + 8
    assert not fast or bucket.queue_bytes * 8 <= bandwidth_bps // 50 + 8


def hosts(nodes: int, spares: int, machines: int) -> Hosts:
    own = [Host("lab", name, "") for name in wanted(nodes=nodes, spares=spares).host_names()]
    return Hosts(Cluster("lab", "", tuple(own), Host("lab", "storage", "")), machines)


def test_agents_get_hosts_as_a_cloud_gives_machines() -> None:
    pool = hosts(nodes=3, spares=1, machines=2)
    assert [pool.place(f"node-{n}").name for n in (0, 1)] == ["node-0", "node-1"]
    assert pool.place("spare-0").name == "spare-0"
    assert pool.place("spare-1").name == "node-2", "a node that the job does not use"
    with pytest.raises(InputError, match="no host left for spare-2"):
        pool.place("spare-2")
    pool.release("node-1")
    assert pool.of("node-1") is None
    assert pool.place("spare-2").name == "node-1", "a machine that was lost is given out again"
    assert pool.place("spare-0").name == "spare-0", "a restarted agent is where it was"
    pool.release("nobody")
    with pytest.raises(InputError, match="castor cluster up --nodes 4"):
        hosts(nodes=3, spares=9, machines=4)


def test_a_missing_program_is_told_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iproute.os, "geteuid", lambda: 0)
    monkeypatch.setattr(iproute, "_PATH", "/nowhere")
    with pytest.raises(InputError, match="ip and tc is not installed: apt-get install iproute2"):
        iproute.require()
    monkeypatch.setattr(iproute.os, "geteuid", lambda: 1000)
    with pytest.raises(InputError, match="only root may make"):
        iproute.require()
