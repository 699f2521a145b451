"""The bus: order, no re-entrancy, faults stay with the subscriber that has them."""

from __future__ import annotations

import threading

import pytest

from trainvitals.bus import SignalBus


def test_every_subscriber_gets_every_item_in_order() -> None:
    bus, seen = SignalBus(), []
    bus.subscribe("a", lambda item: seen.append(("a", item)))
    bus.subscribe("b", lambda item: seen.append(("b", item)))
    bus.publish(1)
    bus.publish(2)
    assert seen == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_an_item_published_from_inside_waits_its_turn() -> None:
    bus, seen = SignalBus(), []

    def engine(item: object) -> None:
        if item == "step":
            bus.publish("finding")
            bus.publish("verdict")

    bus.subscribe("engine", engine)
    bus.subscribe("sink", seen.append)
    bus.publish("step")
    assert seen == ["step", "finding", "verdict"]


def test_a_failing_subscriber_is_reported_once_and_switched_off() -> None:
    errors: list[tuple[str, str]] = []
    bus, seen = SignalBus(lambda name, error: errors.append((name, str(error)))), []

    def broken(item: object) -> None:
        raise ValueError(item)

    bus.subscribe("broken", broken)
    bus.subscribe("sink", seen.append)
    bus.publish(1)
    bus.publish(2)
    assert seen == [1, 2]
    assert errors == [("broken", "1")]
    assert bus.subscribers == ["sink"]


def test_two_that_fail_on_one_item_are_both_switched_off() -> None:
    errors: list[str] = []
    bus = SignalBus(lambda name, error: errors.append(name))

    def broken(item: object) -> None:
        raise RuntimeError

    bus.subscribe("one", broken)
    bus.subscribe("two", broken)
    bus.publish(1)
    assert errors == ["one", "two"]
    assert bus.subscribers == []


def test_without_an_error_handler_a_fault_is_still_contained() -> None:
    bus = SignalBus()
    bus.subscribe("broken", lambda item: 1 / 0)
    bus.publish(1)
    assert bus.subscribers == []


def test_an_interrupt_passes_through_and_leaves_the_bus_alive() -> None:
    bus, seen = SignalBus(), []

    def interrupted(item: object) -> None:
        if item == 1:
            raise KeyboardInterrupt

    bus.subscribe("user", interrupted)
    bus.subscribe("sink", seen.append)
    with pytest.raises(KeyboardInterrupt):
        bus.publish(1)
    bus.publish(2)
    assert seen == [2]


def test_publishing_from_several_threads_never_interleaves() -> None:
    bus = SignalBus()
    inside = 0
    overlaps = 0
    seen = []

    def sink(item: int) -> None:
        nonlocal inside, overlaps
        inside += 1
        overlaps += inside > 1
        seen.append(item)
        inside -= 1

    bus.subscribe("sink", sink)
    threads = [threading.Thread(target=lambda base=base: [bus.publish(base + i) for i in range(500)]) for base in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == 0
    assert sorted(seen) == sorted(base + i for base in (0, 1000, 2000) for i in range(500))
    for base in (0, 1000, 2000):  # each thread's own order is kept
        mine = [item for item in seen if base <= item < base + 1000]
        assert mine == sorted(mine)
