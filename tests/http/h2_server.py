"""An HTTP/2 server without TLS whose script says what it does with each request. One thread per connection."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from hyperframe.frame import GoAwayFrame

NOBODY = 0
"""As last stream of a GOAWAY: no request was looked at."""


@dataclass
class Seen:
    """One request, as far as it came."""

    connection: int
    stream: int
    method: str
    body: bytes = field(default=b"")


Script = Callable[[Seen], str]
"""Says what becomes of a request whose body has arrived:

    answer      200, with what was seen as JSON
    refuse      RST_STREAM with REFUSED_STREAM          cancel      RST_STREAM with CANCEL
    not this    GOAWAY that excludes it                 none        GOAWAY that excludes all
    maybe this  GOAWAY that includes it, and no answer  hang up     the connection ends without a word
    last        answer, then GOAWAY                     full        answer, then no more streams are allowed
    in peace    GOAWAY that includes it, then answer    half way    the head, GOAWAY that includes it, the rest
    not both    GOAWAY that excludes it, then answer the one before it, which was left        leave    nothing, so far
    begin       200, and the beginning of a body
    hang up later    answer, and a little later the connection ends without a word
"""


class H2Server:
    """Serves until its block ends."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.seen: list[Seen] = []
        self.connections = 0
        self.resets = 0
        self.saying_goodbye = False

    def __enter__(self) -> H2Server:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection, self.connections), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        state.initiate_connection()
        requests: dict[int, Seen] = {}
        with connection, contextlib.suppress(OSError, h2.exceptions.ProtocolError):
            connection.sendall(state.data_to_send())
            while data := connection.recv(65536):
                ends = [
                    not self._obey(state, connection, each) for each in self._arrived(state, data, requests, number)
                ]
                connection.sendall(state.data_to_send())
                if any(ends):
                    time.sleep(0.05 if self.saying_goodbye else 0)
                    connection.shutdown(socket.SHUT_WR)
                    self.saying_goodbye = False

    def _arrived(self, state: Any, data: bytes, requests: dict[int, Seen], number: int) -> Iterator[Seen]:
        for event in state.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                requests[event.stream_id] = Seen(number, event.stream_id, dict(event.headers)[":method"])
            elif isinstance(event, h2.events.DataReceived):
                requests[event.stream_id].body += event.data
                state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                self.resets += 1
            elif isinstance(event, h2.events.StreamEnded):
                self.seen.append(requests[event.stream_id])
                yield requests[event.stream_id]

    def _obey(self, state: Any, connection: socket.socket, seen: Seen) -> bool:
        """Do what the script says; False ends the connection."""
        action, stream = self._script(seen), seen.stream
        if action in ("in peace", "not both"):
            stream -= 2 * (action == "not both")
            self._say_goodbye(state, connection, stream)
        if action in ("answer", "last", "full", "hang up later", "in peace", "half way", "not both"):
            content = json.dumps(
                {"method": seen.method, "body": len(seen.body), "connection": seen.connection}
            ).encode()
            state.send_headers(stream, [(":status", "200"), ("content-length", str(len(content)))])
            if action == "half way":
                self._say_goodbye(state, connection, stream)
            state.send_data(stream, content, end_stream=True)
        if action == "begin":
            state.send_headers(stream, [(":status", "200")])
            state.send_data(stream, b"once upon a time")
        if action == "full":
            state.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 0})
        resets = {"refuse": h2.errors.ErrorCodes.REFUSED_STREAM, "cancel": h2.errors.ErrorCodes.CANCEL}
        if action in resets:
            state.reset_stream(stream, resets[action])
        goodbyes = {"not this": stream - 2, "none": NOBODY, "maybe this": stream, "last": stream}
        if action in goodbyes:
            state.close_connection(last_stream_id=goodbyes[action])
        self.saying_goodbye = action == "hang up later"
        return action not in ("hang up", "hang up later", "in peace", "half way", "not both", *goodbyes)

    def _say_goodbye(self, state: Any, connection: socket.socket, last: int) -> None:
        """Go on afterwards, which h2's servers cannot."""
        connection.sendall(state.data_to_send() + GoAwayFrame(0, last_stream_id=last).serialize())
        time.sleep(0.02)  # so that it is most likely seen before what follows
