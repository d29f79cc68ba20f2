"""Reads byte ranges of a file on the hub over HTTP, so that a header costs no download of the data behind it."""

from __future__ import annotations

import re
from functools import cached_property

from core.checkpoint.hub_errors import translated
from core.checkpoint.source import HubId

_HEAD = 128 * 1024
"""Bytes of the first request. Most headers are shorter, so one request is enough."""

_CONTENT_RANGE = re.compile(r"bytes (?:(?P<start>\d+)-\d+|\*)/(?P<size>\d+)")


class HttpRanges:
    """One file of a repository at a commit. See `core.checkpoint.header.Ranges`."""

    def __init__(self, hub: HubId, commit: str, name: str) -> None:
        self._hub = hub
        self._commit = commit
        self._name = name

    @property
    def size(self) -> int:
        """Bytes in the whole file.

        Raises:
            HubError: the hub could not be reached, or refused.
        """
        return self._head[1]

    def read(self, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop`; fewer only if the file ends before. Raises as `size`."""
        head, size = self._head
        stop = min(stop, size)
        if stop <= len(head):
            return head[start:stop]
        return head[start:] + self._request(max(start, len(head)), stop)[0]

    @cached_property
    def _head(self) -> tuple[bytes, int]:
        return self._request(0, _HEAD)

    def _request(self, start: int, stop: int) -> tuple[bytes, int]:
        """Bytes `start` to `stop`, and the file's size. Reading ends at `stop` even if the server sends more."""
        with translated(self._hub):
            from huggingface_hub import constants, hf_hub_url
            from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, but re-exported without saying so
                build_hf_headers,
                get_session,
                hf_raise_for_status,
            )

            url = hf_hub_url(self._hub.repo, self._name, revision=self._commit)
            headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
            timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
            with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
                answered = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
                if response.status_code == 416 and answered:  # nothing in that range: the file ends before it
                    return b"", int(answered["size"])
                hf_raise_for_status(response)
                if response.status_code == 206:
                    if answered is None or answered["start"] is None or int(answered["start"]) > start:
                        raise ValueError(f"bytes {start}-{stop} were requested, and others received")
                    at, size = int(answered["start"]), int(answered["size"])
                else:  # the server ignored the range, and sends the file from its first byte
                    at, size = 0, int(response.headers["Content-Length"])
                wanted = min(stop, size) - at
                received = bytearray()
                for chunk in response.iter_bytes(64 * 1024):
                    received += chunk
                    if len(received) >= wanted:
                        break
                return bytes(received[start - at : wanted]), size
