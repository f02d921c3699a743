import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axiond.manifest.spec import ModelSpec
from axiond.resources.cores import ANYWHERE, Claim, CorePlan, Slot, differences, plan_cores, reserved_cores
from axiond.resources.machine import Core, Topology, format_cpu_list, parse_cpu_list
from axiond.resources.place import exact_shares
from tests.fakes.machines import MACHINES, reader

LISTS = [("0", {0}), ("0-3", {0, 1, 2, 3}), ("0-1,8", {0, 1, 8}), ("0,2,4-5", {0, 2, 4, 5})]


@pytest.fixture(scope="session")
def topologies(tmp_path_factory):
    return {name: reader(tmp_path_factory.mktemp(name))(machine) for name, machine in MACHINES.items()}


def claims(text):
    """ "a b:2 c=0-3" is a with share 1, b with share 2, and c, whose manifest names CPUs 0 to 3."""
    return [claim(word) for word in text.split()]


def claim(word):
    name, _, cpus = word.partition("=")
    name, _, share = name.partition(":")
    return Claim(Slot(name), float(share or 1), parse_cpu_list(cpus) if cpus else None)


def shown(plans):
    """CPUs that compute, those that do not, and memory nodes, of each engine."""
    rows = {
        slot: (format_cpu_list(plan.compute), format_cpu_list(plan.others), format_cpu_list(plan.nodes)) for slot, plan in plans.items()
    }
    return {str(slot): " ".join(cell or "-" for cell in row) for slot, row in rows.items()}


@pytest.mark.parametrize(("text", "cores"), LISTS, ids=[text for text, _ in LISTS])
def test_cpu_lists_are_read_and_written_alike(text, cores):
    assert parse_cpu_list(text) == cores
    assert format_cpu_list(cores) == text


@pytest.mark.parametrize(
    ("machine", "wanted", "planned"),
    [
        ("vm", "a", {"a": "0-1 - -"}),
        ("vm", "a b", {"a": "0 - -", "b": "1 - -"}),
        ("vm", "a b c", {"a": "0 - -", "b": "1 - -", "c": "0 - -"}),
        ("vm", "a=1 b", {"a": "1 - -", "b": "0 - -"}),
        ("neoverse-v2", "a", {"a": "1-70 71 -"}),
        ("neoverse-v2", "a:2 b", {"a": "1-46 47 -", "b": "48-70 71 -"}),
        ("neoverse-v2", "a=64-71 b", {"a": "64-70 71 -", "b": "1-62 63 -"}),
        ("xeon", "a", {"a": "1-63 65-127 0-3"}),
        ("xeon", "a b c d", {"a": "16-31 80-95 1", "b": "32-47 96-111 2", "c": "48-63 112-127 3", "d": "1-15 65-79 0"}),
        ("xeon", "a b", {"a": "32-63 96-127 2-3", "b": "1-31 65-95 0-1"}),
        ("xeon", "a:3 b", {"a": "1-15,32-63 65-79,96-127 0,2-3", "b": "16-31 80-95 1"}),
        ("epyc", "a b c d", {"a": "8-15 40-47 -", "b": "16-23 48-55 -", "c": "24-31 56-63 -", "d": "1-7 33-39 -"}),
        ("altra", "a b:3", {"a": "96-126 127 -", "b": "1-94 95 -"}),
        ("cpuset", "a", {"a": "5-7,40-46 47 0-1"}),
        ("cpuset", "a:2 b", {"a": "40-46 47 1", "b": "5-7 - 0"}),
        ("container", "a", {"a": "0-1 - -"}),
        ("container", "a b c", {"a": "0 - -", "b": "1 - -", "c": "0 - -"}),
        ("apple", "a", {"a": "4-7 1-3 -"}),
        ("apple", "a b", {"a": "4-5 1-3 -", "b": "6-7 1-3 -"}),
        ("apple", "a=0-5 b", {"a": "4-5 0-3 -", "b": "7 0-3 -"}),
    ],
)
def test_plans_on_recorded_machines(topologies, machine, wanted, planned):
    """Four engines of the Xeon have a node each; of two, each a socket; memory follows. Only big cores compute."""
    assert shown(plan_cores(topologies[machine], claims(wanted), None)) == planned


@pytest.mark.parametrize(
    ("machine", "reserved", "wanted", "cores"),
    [
        ("vm", None, "a", ""),
        ("vm", 1, "a", "0"),
        ("vm", 5, "a", "0"),
        ("vm", 1, "a=0", "1"),
        ("vm", 1, "a=0-1", ""),
        ("neoverse-v2", None, "", "0"),
        ("neoverse-v2", 0, "", ""),
        ("neoverse-v2", 2, "a=0,2", "1,3"),
        ("xeon", None, "", "0,64"),
        ("container", None, "", ""),
        ("cpuset", None, "", "4"),
        ("apple", None, "", "0"),
        ("apple", 5, "", "0-4"),
    ],
)
def test_cores_are_left_to_the_daemon(topologies, machine, reserved, wanted, cores):
    """One physical core with its siblings from eight cores upward; little ones first, none that a manifest names, never all."""
    found = reserved_cores(topologies[machine], claims(wanted), reserved)
    assert format_cpu_list(cpu for core in found for cpu in core.cpus) == cores


@pytest.mark.parametrize(
    ("wanted", "notes"),
    [
        ("a b", {}),
        ("a=0 b=1", {}),
        ("a=0-1 b=1", {"a": "shares CPU 1 with b: both name it", "b": "shares CPU 1 with a: both name it"}),
        ("a b c", {"a": "shares CPU 0 with c: there are not enough cores", "c": "shares CPU 0 with a: there are not enough cores"}),
        ("a=0-1 b", {"a": "shares CPU 0-1 with b: there are not enough cores", "b": "shares CPU 0-1 with a: there are not enough cores"}),
    ],
)
def test_sharing_a_core_is_told(topologies, wanted, notes):
    plans = plan_cores(topologies["vm"], claims(wanted), None)
    assert {slot.model: " ".join(plan.notes) for slot, plan in plans.items() if plan.notes} == notes


def test_sharing_with_an_engine_that_cannot_move_is_told(topologies):
    before = plan_cores(topologies["vm"], claims("a"), None)
    plans = plan_cores(topologies["vm"], [replace(claim("a"), is_fixed=True), claim("b")], None, before)
    assert plans[Slot("b")].notes == ("shares CPU 0-1 with a: a cannot move before the next start",)


@pytest.mark.parametrize(
    ("cores", "bound", "said"),
    [
        ({0, 1, 64}, {0, 1}, []),
        ({0, 1}, {0}, []),
        (set(), set(), []),
        ({0, 5}, {0}, ["runs on CPU 0,5, planned was 0-1,64"]),
        ({0, 64}, {64}, ["computes on CPU 64, planned was 0-1"]),
    ],
    ids=["as planned", "fewer", "ended", "elsewhere", "on siblings"],
)
def test_what_differs_from_the_plan_is_said(cores, bound, said):
    assert list(differences(CorePlan((0, 1), (64,)), frozenset(cores), frozenset(bound))) == said
    assert list(differences(ANYWHERE, frozenset(cores), frozenset(bound))) == []


def test_cores_that_may_not_be_used_are_missing(topologies):
    plan = plan_cores(topologies["cpuset"], claims("a=6-9"), None)[Slot("a")]
    assert plan.missing == (8, 9)


@pytest.mark.parametrize(
    ("machine", "steps"),
    [
        ("vm", [("a", {"a": "0-1 - -"}), ("a b", {"a": "0 - -", "b": "1 - -"}), ("b", {"b": "0-1 - -"})]),
        (
            "neoverse-v2",
            [
                ("a b", {"a": "1-35 36 -", "b": "37-70 71 -"}),
                ("a b c", {"a": "1-23 24 -", "b": "37-59 60 -", "c": "25-36,61-70 71 -"}),
                ("a c", {"a": "1-24,37-47 48 -", "c": "25-36,49-70 71 -"}),
            ],
        ),
        (
            "cpuset",
            [
                ("a b", {"a": "40-44 45 1", "b": "5-7,46 47 0-1"}),
                ("b", {"b": "5-7,40-46 47 0-1"}),
                ("b c:2", {"b": "5-7 - 0", "c": "40-46 47 1"}),
            ],
        ),
        (
            "xeon",
            [
                ("a b:3", {"a": "16-31 80-95 1", "b": "1-15,32-63 65-79,96-127 0,2-3"}),
                ("b", {"b": "1-63 65-127 0-3"}),
                ("b a", {"a": "1-31 65-95 0-1", "b": "32-63 96-127 2-3"}),
            ],
        ),
    ],
    ids=["vm", "neoverse-v2", "cpuset", "xeon"],
)
def test_what_need_not_move_does_not(topologies, machine, steps):
    """Engines come and go: others grow and shrink where they are, but for sparing somebody a second node they move."""
    before = {}
    for wanted, planned in steps:
        before = plan_cores(topologies[machine], claims(wanted), None, before)
        assert shown(before) == planned


def test_a_fixed_engine_keeps_its_cores_and_the_others_share_the_rest(topologies):
    before = plan_cores(topologies["neoverse-v2"], claims("a"), None)
    fixed = replace(claim("a"), is_fixed=True)
    assert shown(plan_cores(topologies["neoverse-v2"], [fixed, claim("b")], 0, before)) == {"a": "1-70 71 -", "b": "0 - -"}


@st.composite
def topologies_of_any_kind(draw):
    packages, nodes, clusters = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    size, threads = draw(st.integers(1, 9)), draw(st.integers(1, 2))
    little = draw(st.sampled_from([0, 0, 2]))
    count = packages * nodes * clusters * size
    cores = tuple(
        Core(
            cpus=tuple(range(number, count * threads, count)),
            package=number // (nodes * clusters * size),
            node=number // (clusters * size),
            cluster=number // size * size,
            is_big=number >= little or count <= little,
            barred=draw(st.sampled_from(["", "", "", "not allowed", "isolated"])) if number else "",
        )
        for number in range(count)
    )
    if not any(core.is_big for core in cores if not core.barred):
        cores = tuple(replace(core, is_big=True) for core in cores)
    quota = draw(st.sampled_from([None, None, 0.5, 2.0, 5.5]))
    return Topology(cores, dict.fromkeys(range(packages * nodes), 1), quota)


WANTED = st.lists(st.sampled_from([0.5, 1.0, 1.0, 2.0, 7.0]), min_size=1, max_size=6)
RESERVED = st.sampled_from([None, None, 0, 1, 3])


def sharing(shares):
    return [Claim(Slot(f"m{number}"), share) for number, share in enumerate(shares)]


@settings(deadline=None, max_examples=100)
@given(topologies_of_any_kind(), WANTED, RESERVED)
def test_plans_are_fair(topology, shares, reserved):
    """Allowed, big and unreserved cores only; no core twice if there are enough; each count next to its share; the quota is kept."""
    plans = plan_cores(topology, sharing(shares), reserved)
    core_of = {cpu: core for core in topology.usable for cpu in core.cpus}
    set_aside = reserved_cores(topology, sharing(shares), reserved)
    used = Counter(core_of[cpu] for plan in plans.values() for cpu in plan.compute)
    spared = Counter(core_of[cpu] for plan in plans.values() for cpu in plan.others if core_of[cpu].is_big and core_of[cpu] not in used)
    free = [core for core in topology.usable if core.is_big and core not in set_aside] or [c for c in topology.usable if c.is_big]
    granted = len(free)
    if topology.quota_cpus is not None:
        granted = min(granted, max(1, int(topology.quota_cpus) - sum(core.is_big for core in set_aside)))
    assert used.keys() <= set(free)
    assert all(plan.compute for plan in plans.values())
    assert len(used) + len(spared) <= granted
    if len(shares) <= granted:
        assert set((used + spared).values()) == {1}
        counts = [len({core_of[cpu] for cpu in plan.cores if core_of[cpu].is_big}) for plan in plans.values()]
        exact = exact_shares(granted, shares)
        assert sum(counts) == granted
        assert all(abs(count - share) < 1 for count, share in zip(counts, exact, strict=True))
    else:
        assert max(used.values()) == math.ceil(len(shares) / granted)
        assert len(used) == granted


@settings(deadline=None, max_examples=100)
@given(topologies_of_any_kind(), WANTED, RESERVED, st.data())
def test_plans_are_stable(topology, shares, reserved, data):
    """Planned again, nothing changes, whatever the order; on one node with enough cores, others only grow or shrink where they are."""
    asked = sharing(shares)
    before = plan_cores(topology, asked, reserved)
    assert plan_cores(topology, reversed(asked), reserved, before) == before
    fewer = data.draw(st.lists(st.sampled_from(asked), unique=True))
    more = [*fewer, Claim(Slot("new"), 1.0)]
    after = plan_cores(topology, fewer, reserved, before)
    again = plan_cores(topology, more, reserved, after)
    assert plan_cores(topology, more, reserved, again) == again
    if len({core.node for core in topology.cores}) == 1 and not any(plan.notes for plan in (before | after | again).values()):
        for former, latter in ((before, after), (after, again)):
            assert all(
                former[slot].cores <= latter[slot].cores or latter[slot].cores <= former[slot].cores
                for slot in former.keys() & latter.keys()
            )


@pytest.mark.parametrize(
    ("cores", "weights", "exact"),
    [(4, [1, 1], [2, 2]), (5, [1, 1], [2.5, 2.5]), (6, [3, 1, 2], [3, 1, 2]), (4, [9, 1], [3, 1]), (4, [10, 1, 1], [2, 1, 1])],
)
def test_exact_shares(cores, weights, exact):
    assert exact_shares(cores, weights) == pytest.approx(exact)


@pytest.mark.parametrize(
    ("cores", "share", "replicas", "replica", "expected"),
    [
        (None, 1.0, 1, 0, (1.0, None)),
        (None, 3.0, 2, 1, (1.5, None)),
        ("0-1", 1.0, 2, 1, (1.0, {0, 1})),
        (["0", "1"], 1.0, 3, 1, (1.0, {1})),
        (["0", "1"], 1.0, 3, 2, (1.0, {0})),
    ],
    ids=["unset", "share of a replica", "one list", "a list for each", "lists again"],
)
def test_what_a_replica_asks_for(cores, share, replicas, replica, expected):
    found = Claim.of(Slot("a", replica), ModelSpec(source="/x", cores=cores, core_share=share, replicas=replicas))
    assert (found.share, found.named) == expected
