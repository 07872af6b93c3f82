"""Notices that another process of a training has failed, died or is frozen, and ends this one: NCCL waits for hours."""

import os
import sys
import threading
import time
from datetime import timedelta

from torch.distributed import DistError, TCPStore

__all__ = ["Liveness"]

_BEAT_S, _LOST_S, _GRACE_S = 2.0, 40.0, 10.0
"""Seconds between two signs of life; without one until a process counts as lost; that this one has to end by itself."""
_STORE_S = 20.0
"""Seconds that a call of the store may take."""


class Liveness:
    """Signs of life of this process, and those of the others, in the store where they all met."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._others = rank, [other for other in range(size) if other != rank]
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # a connection of its own: another thread may wait in that of the process group
        self._store = TCPStore(*address, wait_for_workers=False, timeout=timedelta(seconds=_STORE_S))
        attempt = (os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT"))
        self._place = "/".join(("espalier", *attempt))
        self._is_over = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def tell(self, error: BaseException) -> None:
        """Tell the others why this process ends."""
        text = " ".join(str(error).split())[:500] or type(error).__name__
        try:
            self._store.set(self._key("error", self._rank), text)
        except DistError:  # they are gone
            return

    def reason(self, patience_s: float = 3.0) -> str:
        """Return in a line which of the others failed, and why if it says so in this time."""
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            if text := self._told():
                return text
            time.sleep(0.1)
        return "training: another of its processes ended without a word, got no answer; perhaps it was killed"

    def stop(self) -> None:
        """Do not watch any more; a thread that is in the store when Python ends would abort the process."""
        self._is_over.set()
        self._watching.join(_STORE_S + 5)

    def _watch(self) -> None:
        reason = None
        seen = dict.fromkeys(self._others, (b"", time.monotonic()))
        beat = 0
        while not reason and not self._is_over.wait(_BEAT_S):
            beat += 1
            try:
                self._store.set(self._key("beat", self._rank), str(beat))
                seen = {other: self._sign_of(other, *last) for other, last in seen.items()}
            except DistError:
                reason = self.reason(0)
            lost = [other for other, (_, when) in seen.items() if time.monotonic() - when > _LOST_S]
            silent = (
                f"training: process {lost[0]} gives no sign of life, got none for {_LOST_S:.0f} s" if lost else None
            )
            reason = reason or self._told() or silent
        if not self._is_over.wait(_GRACE_S):
            sys.stderr.write(f"espalier: {reason}\n")
            sys.stderr.flush()
            os._exit(1)  # the main thread is in a call that does not return

    def _sign_of(self, other: int, last: bytes, when: float) -> tuple[bytes, float]:
        key = self._key("beat", other)
        found = self._store.get(key) if self._store.check([key]) else b""
        return (last, when) if found == last else (found, time.monotonic())

    def _told(self) -> str | None:
        try:
            for other in self._others:
                if self._store.check([key := self._key("error", other)]):
                    return f"training: process {other} ended: {self._store.get(key).decode()}"
        except DistError:
            return None
        return None

    def _key(self, kind: str, rank: int) -> str:
        return f"{self._place}/{kind}/{rank}"
