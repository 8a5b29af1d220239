"""Devices: the interface, the registry, the CPU and the NumPy reference.

`dashinfer_lite.devices()` lists what can be used; the name is this package's too, so the package itself can be called.
"""

import sys
from types import ModuleType

from dashinfer_lite.devices.base import Device, DeviceInfo, DeviceStatus, Executable
from dashinfer_lite.devices.registry import devices, open_device, register

__all__ = ["Device", "DeviceInfo", "DeviceStatus", "Executable", "devices", "open_device", "register"]


class _Devices(ModuleType):
    def __call__(self) -> list[DeviceStatus]:
        """Each device with whether it can be used on this machine, and why not."""
        return devices()


sys.modules[__name__].__class__ = _Devices
