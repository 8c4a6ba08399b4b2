"""The hub: the newest state of each job to everybody, however slow; and how long a job still takes."""

import asyncio
import json
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.jobs.events import KEPT, Event, Hub
from backend.jobs.pace import Pace
from backend.result import Progress


def told(job: int, state: str = "running", **more: Any) -> dict[str, Any]:
    return {"id": job, "state": state, **more}


def test_a_listener_hears_each_job_once_and_its_newest_state() -> None:
    async def listen() -> list[dict[str, Any]]:
        hub = Hub()
        with hub.subscribe() as subscription:
            for step in range(1000):
                hub.publish(told(1, step=step))
                hub.publish(told(2, step=step))
            return [(await subscription.next()).data["job"] for _ in range(2)]

    assert asyncio.run(listen()) == [told(1, step=999), told(2, step=999)]


def test_events_cross_from_threads() -> None:
    async def listen() -> int:
        hub = Hub()
        with hub.subscribe() as subscription:
            threads = [threading.Thread(target=count, args=(hub, job)) for job in range(4)]
            for thread in threads:
                thread.start()
            last: dict[int, int] = {}
            async for event in subscription:
                view = event.data["job"]
                assert view["step"] > last.get(view["id"], -1)
                last[view["id"]] = view["step"]
                if len(last) == 4 and set(last.values()) == {199}:
                    return len(last)
        raise AssertionError

    def count(hub: Hub, job: int) -> None:
        for step in range(200):
            hub.publish(told(job, step=step))

    assert asyncio.run(asyncio.wait_for(listen(), 60)) == 4


def test_a_listener_whose_loop_is_gone_is_forgotten() -> None:
    hub = Hub()

    async def subscribe() -> None:
        hub.subscribe()

    asyncio.run(subscribe())
    hub.publish(told(1))
    assert hub._listeners == []


def test_a_closed_subscription_costs_nothing() -> None:
    hub = Hub()

    async def listen() -> None:
        with hub.subscribe():
            assert len(hub._listeners) == 1

    asyncio.run(listen())
    assert hub._listeners == []


def test_the_engine_is_told_of_beside_the_jobs() -> None:
    async def listen() -> dict[str, Any]:
        hub = Hub()
        with hub.subscribe() as subscription:
            hub.publish_engine({"state": "starting"})
            hub.publish_engine({"state": "ready"})
            return (await subscription.next()).data

    assert asyncio.run(listen()) == {"type": "engine", "engine": {"state": "ready"}}


def test_a_snapshot_holds_what_runs_and_waits_and_the_last_finished() -> None:
    hub = Hub()
    hub.publish(told(500))
    hub.publish(told(501, "queued"))
    for job in range(100):
        hub.publish(told(job, "done"))
    jobs = [view["id"] for view in hub.snapshot()]
    assert jobs == [*range(100 - KEPT, 100), 500, 501]
    assert hub.get(0) is None
    assert hub.get(500) == told(500)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 99), st.booleans())))
def test_whoever_listens_now_and_then_ends_with_the_state_of_the_snapshot(
    news: list[tuple[int, int, bool]],
) -> None:
    hub = Hub()
    mail = hub.listen(lambda: None)
    seen: dict[int, dict[str, Any]] = {}
    for job, step, looks in [*news, (9, 9, True)]:
        hub.publish(told(job, step=step))
        while looks and (event := mail.take()):
            seen[event.data["job"]["id"]] = event.data["job"]
    assert [seen[job] for job in sorted(seen)] == hub.snapshot()


def test_follow_ends_with_the_job() -> None:
    hub = Hub()
    hub.publish(told(1, "queued"))

    def go_on() -> None:
        for state in ("running", "done"):
            hub.publish(told(2, state))
            hub.publish(told(1, state))

    states: list[str] = []
    for view in hub.follow(1):
        if not states:
            threading.Thread(target=go_on).start()
        states.append(view["state"])
    assert (states[0], states[-1]) == ("queued", "done")
    assert [view["state"] for view in hub.follow(1)] == ["done"]


def test_an_event_is_written_once() -> None:
    event = Event({"type": "job", "job": told(1, prompt="ä red\u2028circle")})
    assert json.loads(event.text) == event.data
    assert event.text is event.text


# -- how long it still takes


@given(st.integers(2, 60), st.integers(1, 5), st.floats(0.01, 20), st.floats(0, 5))
def test_even_steps_give_an_exact_rest(steps: int, batches: int, step: float, loading: float) -> None:
    pace, now = Pace(0.0), loading
    for batch in range(batches):
        for done in range(steps + 1):
            moment = pace.at(Progress("sampling", done, steps, batch, batches), now)
            if (batch, done) in ((0, 0), (0, 1)):
                assert moment.eta is None
            elif batch == 0:
                left = (batches * steps - done) * step
                assert moment.eta == pytest.approx(left, rel=1e-6, abs=1e-6)
            now += step if done < steps else 0
    assert moment.eta == pytest.approx(0.0, abs=1e-6)
    assert moment.fraction == 1.0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.floats(0, 10)), max_size=30))
def test_whatever_is_reported_the_rest_is_a_time(reports: list[tuple[int, int, float]]) -> None:
    pace, now = Pace(0.0), 0.0
    for batch, step, seconds in reports:
        now += seconds
        moment = pace.at(Progress("sampling", step, 5, batch, 4), now)
        assert moment.eta is None or 0 <= moment.eta < 1e6
        assert 0 <= moment.fraction <= 1


def test_batches_left_are_part_of_the_rest() -> None:
    pace = Pace(0.0)
    for step in range(1, 5):
        pace.at(Progress("sampling", step, 4, 0, 2), float(step))
    moment = pace.at(Progress("sampling", 0, 4, 1, 2), 7.0)
    assert moment.eta == pytest.approx(4.0)
    assert moment.fraction == 0.5


def test_a_batch_that_does_not_know_its_steps_yet_has_the_last_one_s() -> None:
    pace = Pace(0.0)
    for step in range(5):
        pace.at(Progress("sampling", step, 4, 0, 2), float(step))
    assert pace.at(Progress("encoding", 0, 0, 1, 2), 4.0).eta == pytest.approx(4.0)


def test_nothing_is_left_when_the_last_picture_is_saved() -> None:
    pace = Pace(0.0)
    for step in range(5):
        pace.at(Progress("sampling", step, 4, 0, 1), float(step))
    moment = pace.at(Progress("saving", 0, 0, 1, 1), 5.0)
    assert (moment.eta, moment.fraction) == (0.0, 1.0)


def test_the_preview_stays_until_the_next() -> None:
    pace = Pace(0.0)
    assert pace.at(Progress("sampling", 1, 4, 0, 2, preview=b"one"), 1.0).preview == b"one"
    assert pace.at(Progress("sampling", 2, 4, 0, 2), 2.0).preview == b"one"
    assert pace.at(Progress("sampling", 1, 4, 1, 2), 3.0).preview == b"one"
    assert pace.at(Progress("sampling", 2, 4, 1, 2, preview=b"two"), 4.0).preview == b"two"
