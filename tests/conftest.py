"""What all tests share: the installed package comes first, tiers are named, hypothesis knows no deadline."""

from __future__ import annotations

import os

# NumPy's own threads do not survive a fork in the middle of a product, and the oracle's small ones are faster without.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).resolve().parent
TIERS_RAN = pytest.StashKey[set[str]]()
ALL_TIERS = ("amx", "avx512bf16", "avx512vnni", "avx512", "avxvnni", "avx2", "scalar")

# The short run's examples depend on the tests alone, so that its verdict is the tree's; the long run looks for more.
settings.register_profile(
    "house",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("all", parent=settings.get_profile("house"), derandomize=False, max_examples=400)
settings.load_profile("all" if os.environ.get("DASHINFER_TEST_ALL") else "house")


def pytest_configure(config: pytest.Config) -> None:
    """Make room for the tiers that run; let Ctrl-C reach the programs that tests start."""
    config.stash[TIERS_RAN] = set()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background jobs inherit it, and their children
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Check the installation before anything else; leave the full matrix to `make test-all`."""
    items.sort(key=lambda item: "test_installed.py" not in item.nodeid)
    if not os.environ.get("DASHINFER_TEST_ALL"):
        for item in items:
            if item.get_closest_marker("slow") or waits_its_turn(item):
                item.add_marker(pytest.mark.skip(reason="part of the full matrix: make test-all"))


def waits_its_turn(item: pytest.Item) -> bool:
    """Whether the value of the parameter that the mark names is not the one for the values of the others.

    They take turns with the sum of the others' places, so that each value meets each value of any other parameter.
    """
    mark = item.get_closest_marker("in_turn")
    if mark is None or not isinstance(item, pytest.Function):
        return False
    values = {given.args[0]: list(given.args[1]) for given in item.iter_markers("parametrize")}
    devices = ["reference", *ALL_TIERS]
    places = {name: values.get(name, devices).index(value) for name, value in item.callspec.params.items()}
    (name,) = mark.args
    return places.pop(name) != sum(places.values()) % len(values[name])


@pytest.fixture(params=ALL_TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    """Each tier of this build; skipped, with what is missing, where the machine cannot run it."""
    name: str = request.param
    require_tier(name)
    request.config.stash[TIERS_RAN].add(name)
    return name


def require_tier(name: str) -> None:
    """Skip the running test where this machine lacks a tier."""
    from dashinfer_lite import _native

    known = {tier: (runs, missing) for tier, runs, missing in _native.tiers()}
    if name not in known:
        pytest.skip(f"this build has no tier {name}")
    runs, missing = known[name]
    if not runs:
        pytest.skip(f"tier {name} needs {missing}")


@pytest.fixture(params=("reference", *ALL_TIERS))
def device(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of the reference device and of each tier of the CPU."""
    if request.param == "reference":
        return {"device": "reference"}
    require_tier(request.param)
    request.config.stash[TIERS_RAN].add(request.param)
    return {"device": "cpu", "isa": request.param, "threads": 2}


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference models and cases."""
    return TESTS / "golden"


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test depends on the caller's DASHINFER_ settings."""
    for name in [name for name in os.environ if name.startswith("DASHINFER_") and name != "DASHINFER_TEST_ALL"]:
        monkeypatch.delenv(name)
    yield


def pytest_unconfigure(config: pytest.Config) -> None:
    """The suite's last line: which tiers of the kernels ran."""
    ran = config.stash.get(TIERS_RAN, set())
    if not hasattr(config, "workerinput"):
        names = ", ".join(name for name in ALL_TIERS if name in ran) or "none"
        print(f"CPU tiers that ran: {names}")
