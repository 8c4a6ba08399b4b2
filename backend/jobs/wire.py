"""What a worker process and its parent say to each other, over the child's standard input and output.

A frame is two lengths, a JSON object and a blob (a picture, a preview). Requests travel as JSON, as in the database;
nothing is pickled. To the child: setup, generate, errand, cancel, skip. From it: ready or unusable; begun, then
progress and pictures, then done, cancelled or error.
"""

import json
import struct
import threading
from collections import deque
from typing import Any, BinaryIO, NamedTuple

_LENGTHS = struct.Struct("!QQ")
PROGRESS = "progress"
PICTURE = "picture"
AT = ("stage", "step", "steps", "batch", "batches", "region")
"""What a Progress says of where the job stands."""


class Message(NamedTuple):
    kind: str
    values: dict[str, Any] = {}
    blob: bytes = b""


def write(stream: BinaryIO, message: Message) -> None:
    head = json.dumps([message.kind, message.values]).encode()
    stream.write(_LENGTHS.pack(len(head), len(message.blob)) + head)
    stream.write(message.blob)
    stream.flush()


def read(stream: BinaryIO) -> Message | None:
    """The next one; None if the other side has ended, in the middle of a message too."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    head_size, blob_size = _LENGTHS.unpack(lengths)
    head, blob = stream.read(head_size), stream.read(blob_size)
    if len(head) < head_size or len(blob) < blob_size:
        return None
    kind, values = json.loads(head)
    return Message(kind, values, blob)


class Mailbox:
    """Messages on their way. Progress that has not been taken gives way to newer progress; all else stays."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._changed = threading.Condition()

    def put(self, message: Message) -> None:
        with self._changed:
            if message.kind == PROGRESS and self._messages and self._messages[-1].kind == PROGRESS:
                older = self._messages.pop()
                if older.values.get("batch") == message.values.get("batch"):  # a preview stays for its batch
                    message = message._replace(blob=message.blob or older.blob)
            self._messages.append(message)
            self._changed.notify()

    def take(self, timeout: float | None = None) -> Message | None:
        """The oldest one; None if none comes in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._messages, timeout)
            return self._messages.popleft() if self._messages else None
