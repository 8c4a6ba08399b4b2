"""Progress and previews to whoever watches; a slow listener misses steps, never the newest state.

A job is told by its whole view each time, so keeping only the latest event of each job loses nothing.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

FINAL = ("done", "failed", "cancelled")
KEPT = 20
"""How many finished jobs a snapshot shows."""


@dataclass(frozen=True)
class Event:
    """{"type": "job", "job": view}, {"type": "training", "training": view}, {"type": "engine", "engine": state} or
    {"type": "models"}."""

    data: dict[str, Any]

    @cached_property
    def text(self) -> str:
        """As JSON, written once for all listeners."""
        return json.dumps(self.data, ensure_ascii=False, separators=(",", ":"))


class Mail:
    """What a listener has not taken yet: at most one event of each job."""

    def __init__(self, notify: Callable[[], object]) -> None:
        self._notify = notify
        self._lock = threading.Lock()
        self._waiting: dict[str, Event] = {}

    def put(self, key: str, event: Event) -> None:
        with self._lock:
            was_empty = not self._waiting
            self._waiting[key] = event
        if was_empty:
            self._notify()

    def take(self) -> Event | None:
        """The oldest one; None if there is none."""
        with self._lock:
            return self._waiting.pop(next(iter(self._waiting))) if self._waiting else None


class Subscription:
    """The events for one WebSocket: `async for event in subscription`; close it, or leave its `with` block."""

    def __init__(self, hub: "Hub") -> None:
        loop = asyncio.get_running_loop()
        self._hub = hub
        self._arrived = asyncio.Event()
        self._mail = hub.listen(lambda: loop.call_soon_threadsafe(self._arrived.set))

    async def next(self) -> Event:
        while True:
            if event := self._mail.take():
                return event
            await self._arrived.wait()
            self._arrived.clear()

    def close(self) -> None:
        self._hub.forget(self._mail)

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> Event:
        return await self.next()

    def __enter__(self) -> "Subscription":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Hub:
    """Takes views of jobs from any thread and hands them on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._views: dict[int, dict[str, Any]] = {}
        self._trainings: dict[str, dict[str, Any]] = {}
        self._listeners: list[Mail] = []

    def publish(self, view: dict[str, Any]) -> None:
        """The state of a job has changed; `view` is all of it."""
        with self._lock:
            self._views.pop(view["id"], None)  # so that the order is that of the news
            self._views[view["id"]] = view
            finished = [i for i, v in self._views.items() if v["state"] in FINAL]
            for old in finished[:-KEPT]:
                del self._views[old]
            self._send(f"job {view['id']}", Event({"type": "job", "job": view}))

    def publish_training(self, view: dict[str, Any]) -> None:
        """The state of a training has changed; `view` is all that a list of them shows."""
        name = view["name"]
        with self._lock:
            self._trainings[name] = view
            self._send(f"training {name}", Event({"type": "training", "training": view}))

    def forget_training(self, name: str) -> None:
        with self._lock:
            self._trainings.pop(name, None)
            self._send(f"training {name}", Event({"type": "training", "training": {"name": name, "state": "deleted"}}))

    def trainings(self) -> list[dict[str, Any]]:
        """All that have been published, as they are now."""
        with self._lock:
            return list(self._trainings.values())

    def publish_engine(self, state: dict[str, Any]) -> None:
        with self._lock:
            self._send("engine", Event({"type": "engine", "engine": state}))

    def publish_models(self) -> None:
        """Some have come, gone or changed."""
        with self._lock:
            self._send("models", Event({"type": "models"}))

    def get(self, job_id: int) -> dict[str, Any] | None:
        """The latest view of a job that waits, runs or has just finished."""
        with self._lock:
            return self._views.get(job_id)

    def snapshot(self) -> list[dict[str, Any]]:
        """Running and waiting jobs and the last few finished ones, oldest first. Subscribe first, then take it."""
        with self._lock:
            return sorted(self._views.values(), key=lambda view: view["id"])

    def subscribe(self) -> Subscription:
        """Call it on the event loop that will listen."""
        return Subscription(self)

    def follow(self, job_id: int) -> Iterator[dict[str, Any]]:
        """Views of one job, for code without an event loop; ends with its final one."""
        arrived = threading.Event()
        mail = self.listen(arrived.set)
        try:
            view = self.get(job_id)
            while True:
                if view is not None:
                    yield view
                    if view["state"] in FINAL:
                        return
                arrived.wait()
                arrived.clear()
                view = None
                while event := mail.take():
                    if event.data.get("job", {}).get("id") == job_id:
                        view = event.data["job"]
        finally:
            self.forget(mail)

    def listen(self, notify: Callable[[], object]) -> Mail:
        """A box for events; `notify` is called, from any thread, when something comes into the empty box."""
        mail = Mail(notify)
        with self._lock:
            self._listeners.append(mail)
        return mail

    def forget(self, mail: Mail) -> None:
        with self._lock:
            if mail in self._listeners:
                self._listeners.remove(mail)

    def _send(self, key: str, event: Event) -> None:
        for mail in tuple(self._listeners):
            try:
                mail.put(key, event)
            except RuntimeError:  # its event loop was closed
                self._listeners.remove(mail)
