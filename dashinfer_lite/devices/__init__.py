"""Devices: the interface, the registry, the CPU and the NumPy reference."""

from dashinfer_lite.devices.base import Device, DeviceInfo, DeviceStatus, Executable
from dashinfer_lite.devices.registry import devices, open_device, register

__all__ = ["Device", "DeviceInfo", "DeviceStatus", "Executable", "devices", "open_device", "register"]
