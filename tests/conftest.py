"""Fixtures that more than one folder of tests uses, and what all tests run under."""

from __future__ import annotations

import os

# Before numpy, torch and OpenCV are there. What the tests compute is small: threads that wait for each other on a busy
# machine take many times as long as one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

pytest_plugins = ["tests.hub.fixtures"]

# The same examples each time: what fails, fails for everybody. `HYPOTHESIS_PROFILE=random pytest` looks for others.
settings.register_profile("fixed", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
