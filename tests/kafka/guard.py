"""Runs the broker for as long as the tests live, whatever ends them: ``guard.py java ...``.

The tests hold the other end of this process's standard input. A line there asks for an orderly stop; its end,
which the kernel also brings when the tests are killed, kills the broker at once. A pipe and not
``PR_SET_PDEATHSIG``, which fires when the *thread* that started the child ends: chaos tests restart from threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading


def main() -> None:
    broker = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    # A broker that ends by itself ends the guard, and so shows in the tests' poll().
    threading.Thread(target=lambda: os._exit(broker.wait() & 0xFF), daemon=True).start()
    if sys.stdin.readline():
        broker.terminate()
    else:
        broker.kill()
    broker.wait()


if __name__ == "__main__":
    main()
