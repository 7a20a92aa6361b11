"""HTTP responses that must be whole within a time: a client alone limits the wait for each part of one."""

from __future__ import annotations

import threading

import httpx


class TimelyTransport(httpx.BaseTransport):
    """Sends requests and reads each response to its end within so many seconds, however slowly its bytes arrive.

    A thread that still reads then is left; it ends when the client is closed.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._inner = seconds, httpx.HTTPTransport(trust_env=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Return the whole response.

        Raises:
            httpx.ReadTimeout: it was not whole in time.
        """
        done: list[httpx.Response] = []
        failed: list[Exception] = []

        def work() -> None:
            try:
                done.append(self._whole(request))
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(self._seconds)
        if failed:
            raise failed[0]
        if not done:
            raise httpx.ReadTimeout(f"the response was not whole within {self._seconds:g} s", request=request)
        return done[0]

    def _whole(self, request: httpx.Request) -> httpx.Response:
        answer = self._inner.handle_request(request)
        try:
            content = answer.read()
        finally:
            answer.close()
        headers = [(name, value) for name, value in answer.headers.raw if name.lower() not in _OF_THE_TRANSFER]
        return httpx.Response(answer.status_code, headers=headers, content=content, extensions=answer.extensions)

    def close(self) -> None:
        """Close every connection."""
        self._inner.close()


_OF_THE_TRANSFER = {b"content-encoding", b"content-length", b"transfer-encoding"}
