"""Imported before anything that computes: tests and what they start compute on one thread each.

Two threads that wait for each other on a busy machine took five times the time of one for networks as small as these.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
