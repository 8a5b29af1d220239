"""`python -m dashinfer_cuda`: GPUs, kernels and libraries found, a self-test, and how fast a product is.

`--quick` leaves out the measurement.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dashinfer_cuda import HERE, describe_cublaslt
from dashinfer_cuda._check import Product, self_test
from dashinfer_cuda._find import find_libraries
from dashinfer_lite.devices import devices, open_device
from dashinfer_lite.errors import DashInferError

ROWS = (1, 16, 256)


def main() -> int:
    """Prints what there is; 0 where a GPU works, 1 where there is none, 2 where it differs from the CPU."""
    print_kernels()
    print_libraries()
    status = next(status for status in devices() if status.name == "cuda")
    if not status.usable:
        print(f"device     none: {status.reason}")
        return 1
    try:
        return print_device(measures="--quick" not in sys.argv[1:])
    except DashInferError as error:
        print(f"device     failed: {error}")
        return 2


def print_kernels(folder: Path = HERE / "cubin") -> None:
    """Which architectures have kernels in this installation."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        print("kernels    none ahead of time: compiled on first use by libnvrtc")
        return
    made = json.loads(manifest.read_text())
    size = sum(path.stat().st_size for path in folder.glob("*.cubin")) / 2**20
    architectures, modules = " ".join(made["architectures"]), len(made["modules"])
    print(f"kernels    {architectures}: {modules} modules by {made['compiler']}, {size:.1f} MiB")


def print_libraries() -> None:
    """Where the compiler for GPUs without kernels is, and whether products of many rows go through cuBLASLt."""
    found = find_libraries()
    print(f"nvrtc      {found.get('nvrtc', 'not found; only GPUs that no kernel was compiled for need it')}")
    usable, text = describe_cublaslt()
    print(
        f"cublaslt   {text if usable else f'not used ({text}): products of many rows use the kernels of this package'}"
    )


def print_device(measures: bool = True) -> int:
    """Opens the first GPU, compares it with the CPU and measures it."""
    device = open_device("cuda")
    info = device.info
    try:
        memory = f"{info.memory_free / 2**30:.1f} of {info.memory_total / 2**30:.1f} GiB free"
        print(f"device     {info.detail}, kernels {info.tier}, {info.threads} multiprocessors, {memory}")
        difference = self_test()
        print(f"self-test  {difference or 'the demo model writes the same tokens as on the CPU'}")
        for rows in ROWS if measures else ():
            product = Product(device, rows)
            print(f"product    {product.describe()}")
    finally:
        device.close()
    return 2 if difference else 0


if __name__ == "__main__":
    sys.exit(main())
