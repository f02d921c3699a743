from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from axiond.routing.queue import FairQueue


def filled(text: str) -> FairQueue[str]:
    """A queue of "a1 b1 a2": the client is the letter."""
    queue = FairQueue[str]()
    for item in text.split():
        queue.push(item[0], item)
    return queue


@pytest.mark.parametrize(
    ("pushed", "popped"),
    [
        pytest.param("", "", id="none"),
        pytest.param("a1 a2 a3", "a1 a2 a3", id="one-client-first-come-first-served"),
        pytest.param("a1 a2 a3 b1", "a1 b1 a2 a3", id="one-request-passes-the-many"),
        pytest.param("a1 b1 c1 a2 c2", "a1 b1 c1 a2 c2", id="fair-already"),
        pytest.param("a1 a2 a3 b1 b2 c1", "a1 b1 c1 a2 b2 a3", id="turns"),
    ],
)
def test_clients_take_turns(pushed: str, popped: str) -> None:
    queue = filled(pushed)
    assert list(queue) == popped.split()
    assert [queue.pop() for _ in range(len(queue))] == popped.split()


def test_who_had_a_turn_is_behind_who_had_none() -> None:
    queue = filled("a1 a2 b1")
    assert queue.pop() == "a1"
    queue.push("c", "c1")
    assert list(queue) == ["b1", "a2", "c1"]


def test_a_hundred_do_not_hold_off_one() -> None:
    queue = filled(" ".join(f"a{number}" for number in range(100)))
    assert queue.position("b") == 2
    queue.push("b", "b0")
    assert [queue.pop(), queue.pop()] == ["a0", "b0"]


def test_the_longest_lane_gives_its_latest() -> None:
    queue = filled("a1 b1 b2 c1 c2")
    assert (queue.longest(), queue.latest("c"), queue.count("b"), queue.count("d")) == (("c", 2), "c2", 2, 0)
    assert FairQueue[str]().longest() == ("", 0)


class Queue(RuleBasedStateMachine):
    """Whatever happens: nothing is lost or given twice, a client's own order holds, and positions are what comes true."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue[tuple[str, int]]()
        self.waiting: list[tuple[str, int]] = []
        self.passed: dict[tuple[str, int], Counter[str]] = {}
        self.number = 0

    @rule(client=st.sampled_from("abcd"))
    def push(self, client: str) -> None:
        told, item = self.queue.position(client), (client, self.number)
        self.number += 1
        self.queue.push(client, item)
        assert self.queue.position(client, item) == told
        self.waiting.append(item)
        self.passed[item] = Counter()

    @precondition(lambda self: self.waiting)
    @rule()
    def pop(self) -> None:
        item = self.queue.pop()
        assert item == next(each for each in self.waiting if each[0] == item[0])
        before = sum(count for client, count in self.passed[item].items() if client == item[0])
        assert all(count <= before + 1 for count in self.passed[item].values())
        self.waiting.remove(item)
        for each in self.waiting:
            self.passed[each][item[0]] += 1

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.waiting))
        self.queue.remove(item[0], item)
        self.waiting.remove(item)

    @invariant()
    def holds(self) -> None:
        order = list(self.queue)
        assert sorted(order) == sorted(self.waiting)
        assert len(self.queue) == len(self.waiting)
        assert [self.queue.position(client, (client, number)) for client, number in order] == list(range(1, len(order) + 1))


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@given(st.lists(st.sampled_from("abcd"), max_size=60))
def test_no_client_has_more_than_one_turn_more_than_another_that_waits(clients: list[str]) -> None:
    queue = filled(" ".join(f"{client}{number}" for number, client in enumerate(clients)))
    left = Counter(clients)
    had: Counter[str] = Counter()
    while len(queue):
        client = queue.pop()[0]
        had[client] += 1
        left[client] -= 1
        assert all(had[client] <= had[other] + 1 for other, count in left.items() if count)
