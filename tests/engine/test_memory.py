import os
import subprocess
import sys

import numpy as np

from cleanscale.engine.memory import PeakMemory, descendants, pss_bytes


def test_this_process_takes_some_memory_and_a_process_that_is_gone_none():
    assert pss_bytes(os.getpid()) > 1_000_000
    assert pss_bytes(2**22 + 1) == 0


def test_children_are_counted():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in descendants(os.getpid())
        child.communicate(b"\n")


def test_the_peak_is_what_was_held_for_a_while_and_stays():
    with PeakMemory(interval_s=0.05) as memory:
        held = np.ones(60_000_000, np.uint8)
        while memory.driver < held.nbytes:
            pass
        del held
    assert memory.total >= memory.driver > 60_000_000
