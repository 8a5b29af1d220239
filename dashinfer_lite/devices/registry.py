"""Which devices there are: the built-in ones, those registered by hand, and those other distributions announce by entry
point.

Frozen applications lose entry points; they call `register`. Nothing is looked up before a device is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dashinfer_lite.devices.base import Device, DeviceStatus
from dashinfer_lite.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable

ENTRY_POINTS = "dashinfer_lite.devices"
KNOWN = {"cuda": 'not installed: pip install "dashinfer-lite[cuda]"'}

_capsules: dict[str, Callable[[], Any]] = {}


def register(name: str, capsule: Callable[[], Any]) -> None:
    """Make a native device known under `name`; `capsule()` returns its PyCapsule (see include/dashinfer_device.h)."""
    if not name.isidentifier():
        raise DeviceError(f"device name {name!r}: expected letters, digits and underscores")
    _capsules[name] = capsule


def open_device(name: str, *, threads: int | None = None, isa: str | None = None) -> Device:
    """Open "cpu", "reference", or a registered device such as "cuda:0"."""
    kind, _, index = name.partition(":")
    if kind == "cpu":
        from dashinfer_lite.devices.cpu import open_cpu

        return open_cpu(index, threads=threads, isa=isa)
    if kind == "reference":
        from dashinfer_lite.devices.reference import ReferenceDevice

        return ReferenceDevice()
    from dashinfer_lite.devices.native import NativeDevice

    return NativeDevice(_capsule(kind), threads=threads or 0, isa=index or None)


def devices() -> list[DeviceStatus]:
    """Each device with whether it can be used on this machine, and why not."""
    from dashinfer_lite import _native

    rows = [DeviceStatus("cpu", True, ""), DeviceStatus("reference", True, "")]
    for name in sorted({*_capsules, *_announced(), *KNOWN}):
        try:
            reason = _native.probe(_capsule(name))
        except (DeviceError, _native.NativeError) as error:
            reason = str(error)
        rows.append(DeviceStatus(name, reason is None, reason or ""))
    return rows


def _announced() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _capsule(kind: str) -> Any:
    if kind in _capsules:
        return _capsules[kind]()
    point = _announced().get(kind)
    if point is None:
        raise DeviceError(
            f"device {kind!r}: {KNOWN.get(kind, 'unknown; dashinfer_lite.devices() lists what there is')}"
        )
    try:
        return point.load()()
    except Exception as error:  # a broken plug-in must not take its host down
        raise DeviceError(f"device {kind!r} is installed but failed to load: {error}") from error
