"""The suite tests what users install, not the checkout."""

from __future__ import annotations

from pathlib import Path

import dashinfer_lite


def test_the_installed_package_is_tested() -> None:
    """An import from the checkout would hide files that a wheel lacks."""
    checkout = Path(__file__).resolve().parent.parent
    package = Path(dashinfer_lite.__file__).resolve()
    assert checkout not in package.parents or "site-packages" in package.parts, f"imported from the checkout: {package}"


def test_the_wheel_is_whole() -> None:
    """Model definitions, stubs, the C header and the demo model come along."""
    package = Path(dashinfer_lite.__file__).parent
    for part in (
        "model_defs/llama.py",
        "py.typed",
        "_native.pyi",
        "include/dashinfer_device.h",
        "assets/tiny_chat/config.json",
    ):
        assert (package / part).is_file(), part
