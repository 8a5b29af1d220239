"""The native runtime: thread team, turns, machine and memory, by two C++ programs compiled here.

The team's cases run three times: as built for use, under the thread sanitizer, and for aarch64 under an emulator; a
build that this machine cannot make is skipped with its reason. A lost wake-up hangs, and the limit below ends it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = ROOT / "cpu_kernels" / "runtime"
SOURCES = ("barrier.cpp", "cpu_info.cpp", "measure.cpp", "os_linux.cpp", "team.cpp", "turn.cpp")
NATIVE = Path(__file__).resolve().parent / "native"
FLAGS = (
    "-O2",
    "-std=c++17",
    "-ffp-contract=off",
    "-fno-exceptions",
    "-fno-rtti",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
)
HANG_S = 300.0

TEAM_CASES = (
    "barriers",
    "sleepy_barriers",
    "runs",
    "wake_after_park",
    "chunks",
    "hands",
    "create_and_delete",
    "bad_sizes",
    "refused_threads",
    "run_inside_run",
    "signals_stay_with_the_host",
    "floating_point_mode",
    "two_teams",
    "turns",
    "turns_side_by_side",
    "fork_leaves_the_team_behind",
)
MACHINE_CASES = ("memory", "discard_keeps_neighbours", "machine", "processor", "names", "bandwidth")


@dataclass(frozen=True)
class Programs:
    """Test programs of one build, and the command line that runs them."""

    folder: Path
    launcher: tuple[str, ...] = ()

    def run(self, program: str, *arguments: str | Path) -> str:
        """Returns what the program prints; fails with its error output."""
        command = [*self.launcher, str(self.folder / program), *map(str, arguments)]
        environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1 die_after_fork=0"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, env=environment)
        assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}\n{done.stderr}"
        return done.stdout


def compile_programs(compiler: str, folder: Path, flags: list[str]) -> None:
    """Compiles the runtime once and links both test programs with it; warnings are errors."""

    def call(*arguments: str) -> None:
        done = subprocess.run([*base, *arguments], cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.fail(done.stderr, pytrace=False)

    base = [compiler, *FLAGS, *flags, "-pthread", f"-I{RUNTIME}"]
    call("-c", *(str(RUNTIME / source) for source in SOURCES))
    objects = [source.replace(".cpp", ".o") for source in SOURCES]
    for program in ("team_test", "machine_test"):
        call(str(NATIVE / f"{program}.cpp"), *objects, "-o", program)


def find_compiler(name: str) -> str:
    """Returns the compiler's path or skips."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on this machine")
    return found


def sanitizer_launcher(compiler: str, folder: Path) -> tuple[str, ...]:
    """Returns how a program under the thread sanitizer starts here, or skips.

    Where the kernel randomizes addresses widely, older sanitizers start only with randomization off.
    """
    (folder / "probe.cpp").write_text("int main() { return 0; }\n")
    command = [compiler, "-fsanitize=thread", "probe.cpp", "-o", "probe"]
    if subprocess.run(command, cwd=folder, capture_output=True).returncode != 0:
        pytest.skip(f"{compiler} has no thread sanitizer")
    setarch = shutil.which("setarch")
    launchers: list[tuple[str, ...]] = [(), *([(setarch, platform.machine(), "-R")] if setarch else [])]
    for launcher in launchers:
        if subprocess.run([*launcher, str(folder / "probe")], capture_output=True).returncode == 0:
            return launcher
    pytest.skip("programs with the thread sanitizer do not start on this machine")


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """As built for use."""
    folder = tmp_path_factory.mktemp("plain")
    compile_programs(find_compiler(os.environ.get("CXX", "g++")), folder, [])
    return Programs(folder)


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """Under the thread sanitizer."""
    folder = tmp_path_factory.mktemp("sanitized")
    compiler = find_compiler(os.environ.get("CXX", "g++"))
    launcher = sanitizer_launcher(compiler, folder)
    compile_programs(compiler, folder, ["-fsanitize=thread"])
    return Programs(folder, launcher)


@pytest.fixture(scope="session")
def aarch64(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """For 64-bit ARM, under an emulator."""
    folder = tmp_path_factory.mktemp("aarch64")
    compile_programs(find_compiler("aarch64-linux-gnu-g++"), folder, ["-static"])
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None:
        pytest.skip("compiled for aarch64, but there is no qemu-aarch64 to run it")
    return Programs(folder, (emulator,))


@pytest.mark.parametrize("case", TEAM_CASES)
def test_team(plain: Programs, case: str) -> None:
    plain.run("team_test", case)


@pytest.mark.parametrize("case", TEAM_CASES)
def test_team_without_races(sanitized: Programs, case: str) -> None:
    sanitized.run("team_test", case)


@pytest.mark.parametrize("case", TEAM_CASES)
def test_team_on_aarch64(aarch64: Programs, case: str) -> None:
    aarch64.run("team_test", case)


@pytest.mark.parametrize("case", MACHINE_CASES)
def test_machine(plain: Programs, case: str) -> None:
    plain.run("machine_test", case)


@pytest.mark.parametrize("case", ("names", "processor", "bandwidth"))
def test_machine_on_aarch64(aarch64: Programs, case: str) -> None:
    aarch64.run("machine_test", case)


def test_unknown_case_fails(plain: Programs) -> None:
    """A case that is misspelt here does not pass for having run nothing."""
    with pytest.raises(AssertionError, match="no case is called nonsense"):
        plain.run("team_test", "nonsense")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="/proc/cpuinfo names features differently elsewhere")
def test_features_are_those_of_the_kernel(plain: Programs) -> None:
    """CPUID and XCR0 agree with the kernel's list; AMX may be present and yet be refused to this process."""
    text = Path("/proc/cpuinfo").read_text()
    kernel = set(next(line for line in text.splitlines() if line.startswith("flags")).split(":")[1].split())
    ours = set(plain.run("machine_test", "features").split())
    known = "avx2 fma f16c avx_vnni avx512f avx512bw avx512dq avx512vl avx512_vnni avx512_bf16 avx512_fp16"
    assert {name for name in ours if not name.startswith("amx")} == kernel & set(known.split(" "))
    assert {name for name in ours if name.startswith("amx")} <= kernel


def sibling_tree(folder: Path, siblings: Callable[[int], str]) -> Path:
    """Writes a topology as /sys has it, for the CPUs this process may use."""
    for cpu in os.sched_getaffinity(0):
        topology = folder / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(siblings(cpu) + "\n")
    return folder


def test_cores_counts_siblings_once(plain: Programs, tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))

    def cores(folder: Path) -> list[int]:
        return [int(cpu) for cpu in plain.run("machine_test", "cores", folder).split()]

    every = ",".join(map(str, cpus))
    assert cores(sibling_tree(tmp_path / "single", str)) == cpus
    assert cores(sibling_tree(tmp_path / "one_core", lambda cpu: every)) == cpus[:1]
    assert cores(sibling_tree(tmp_path / "one_range", lambda cpu: f"{cpus[0]}-{cpus[-1]}")) == cpus[:1]
    forbidden = max(cpus) + 1
    assert cores(sibling_tree(tmp_path / "other_not_allowed", lambda cpu: f"{cpu},{forbidden}")) == cpus
    assert cores(tmp_path / "absent") == cpus
    assert cores(sibling_tree(tmp_path / "nonsense", lambda cpu: "?-")) == cpus


V2_MOUNT = "30 24 0:26 {root} {point} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "31 24 0:27 {root} {point} rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
OTHER_MOUNTS = "24 1 0:22 / /sys rw - sysfs sysfs rw\n32 24 0:28 / /x rw - cgroup cgroup rw,cpuacct\n33 nonsense - \n\n"


@pytest.mark.parametrize(
    ("mount", "root", "cgroup", "files", "expected"),
    [
        pytest.param(V2_MOUNT, "/", "0::/a/b\n", {"a/b/cpu.max": "250000 100000"}, 2.5, id="v2"),
        pytest.param(V2_MOUNT, "/", "0::/a/b\n", {"a/b/cpu.max": "max 100000"}, 0, id="v2 unlimited"),
        pytest.param(
            V2_MOUNT,
            "/",
            "0::/a/b\n",
            {"a/b/cpu.max": "400000 100000", "a/cpu.max": "150000 100000", "b/cpu.max": "1000 100000"},
            1.5,
            id="v2 the parent is tighter",
        ),
        pytest.param(V2_MOUNT, "/", "0::/\n", {"cpu.max": "50000 100000"}, 0.5, id="v2 own namespace"),
        pytest.param(
            V2_MOUNT,
            "/docker/x",
            "0::/docker/x/in\n",
            {"in/cpu.max": "300000 100000"},
            3,
            id="v2 mounted below the top",
        ),
        pytest.param(V2_MOUNT, "/", "0::/host/path\n", {"cpu.max": "100000 50000"}, 2, id="v2 path not mounted here"),
        pytest.param(
            V1_MOUNT,
            "/",
            "5:cpuacct:/z\n4:memory:/m\n3:cpuset,cpu:/a\n0::/\n",
            {"a/cpu.cfs_quota_us": "300000", "a/cpu.cfs_period_us": "200000"},
            1.5,
            id="v1",
        ),
        pytest.param(
            V1_MOUNT,
            "/",
            "3:cpu:/a\n",
            {"a/cpu.cfs_quota_us": "-1", "a/cpu.cfs_period_us": "100000"},
            0,
            id="v1 unlimited",
        ),
        pytest.param(V1_MOUNT, "/", "3:cpu:/a\n", {"a/cpu.cfs_quota_us": "5"}, 0, id="v1 no period"),
        pytest.param(V2_MOUNT, "/", "nonsense\n::\n", {"cpu.max": "50000 100000"}, 0, id="unreadable"),
    ],
)
def test_cpu_quota(
    plain: Programs, tmp_path: Path, mount: str, root: str, cgroup: str, files: dict[str, str], expected: float
) -> None:
    point = tmp_path / "mount"
    point.mkdir()
    for name, text in files.items():
        (point / name).parent.mkdir(parents=True, exist_ok=True)
        (point / name).write_text(text + "\n")
    (tmp_path / "mountinfo").write_text(OTHER_MOUNTS + mount.format(root=root, point=point))
    (tmp_path / "cgroup").write_text(cgroup)
    assert float(plain.run("machine_test", "quota", tmp_path / "cgroup", tmp_path / "mountinfo")) == expected
    assert plain.run("machine_test", "quota", tmp_path / "cgroup", tmp_path / "absent") == "0"
    assert plain.run("machine_test", "quota", tmp_path / "absent", tmp_path / "mountinfo") == "0"
