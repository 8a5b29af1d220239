"""`pytest -p cuda_plugin tests/devices --device cuda`: a suite on the device "cuda" of the emulator."""

from __future__ import annotations

from cuda_emulator import emulator

emulator().register()
