"""End a command in order where a signal asks it to end, so that it leaves nothing unfinished behind."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that Ctrl-C, schedulers and torchrun, and a lost terminal send, which end a command."""
STOPPING = (*ENDING, signal.SIGUSR1, signal.SIGUSR2)
"""The signals that ask a run to save and stop; schedulers are told to send one of the last two ahead of an end."""

_AGAIN_SECONDS = 0.05


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end the block once, as KeyboardInterrupt, so that it cleans up.

    Later ones pass unnoticed: torchrun sends several, and cleaning up takes time. What is ignored stays so, as Ctrl-C
    is in the background. At the end, SIGTERM and SIGHUP do what they would have done. In another thread than the main
    one, which alone may have handlers, nothing changes.

    Where Python passes over exceptions, as in a destructor or while it forks, the KeyboardInterrupt is raised anew.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came, again, main = list[int](), list[threading.Timer](), threading.get_ident()

    def end(number: int, _: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:
            raise KeyboardInterrupt

    def raise_anew() -> None:
        number = came[0]
        came.clear()
        signal.pthread_kill(main, number)  # whose waiting it shall end

    def passed_over(unraisable: sys.UnraisableHookArgs) -> None:
        if came and issubclass(unraisable.exc_type, KeyboardInterrupt):
            again.append(threading.Timer(_AGAIN_SECONDS, raise_anew))  # not here, where it would be passed over too
            again[-1].start()
        else:
            hook(unraisable)

    heeded = [n for n in ENDING if signal.getsignal(n) not in (signal.SIG_IGN, None)]  # None: no handler of Python's
    hook, sys.unraisablehook = sys.unraisablehook, passed_over
    before = {number: signal.signal(number, end) for number in heeded}
    try:
        yield
    finally:
        for timer in again:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook
        if came and came[0] != signal.SIGINT:
            signal.raise_signal(came[0])
