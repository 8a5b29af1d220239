"""Runs every client of this folder against a server of its own; each client gets an environment of its own.

python tests/server/clients/run_all.py [name …]     a client whose packages cannot be had is skipped with the reason
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent

# name: (script, what to install)
CLIENTS = {
    "openai-2": ("openai_client.py", ["openai>=2,<3"]),
    "openai-3": ("openai_client.py", ["openai>=3"]),
    "langchain": ("langchain_client.py", ["langchain-openai"]),
    "instructor": ("instructor_client.py", ["instructor"]),
    "npm-openai": ("openai_client.mjs", ["openai"]),
    "vercel-ai": ("vercel_client.mjs", ["ai@6", "@ai-sdk/openai-compatible@2", "zod"]),
}


def main(names: list[str]) -> int:
    """The number of clients that failed."""
    failed = 0
    command = [sys.executable, "-m", "dashinfer_lite.cli", "serve", "--port", "0", "--max-context", "2048"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = ""
        while not (found := re.search(r"API +(\S+)/v1", url)):
            url = server.stdout.readline() if server.stdout else ""
            if not url:
                print("the server did not start")
                return 1
        for name in names or CLIENTS:
            script, packages = CLIENTS[name]
            with tempfile.TemporaryDirectory() as folder:
                outcome = run(HERE / script, packages, Path(folder), found[1])
            failed += outcome.startswith("FAILED")
            print(f"{name}: {outcome}", flush=True)
    finally:
        server.terminate()
        server.wait()
    return failed


def run(script: Path, packages: list[str], folder: Path, url: str) -> str:
    """One client: "ok", "skipped: …" or "FAILED: …"."""
    if script.suffix == ".mjs":
        if shutil.which("npm") is None:
            return "skipped: needs npm"
        install = ["npm", "install", "--prefix", str(folder), "--silent", "--no-audit", "--no-fund", *packages]
        program = ["node", str(shutil.copy(script, folder)), url]
    else:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [str(folder / "bin" / "pip"), "install", "--quiet", *packages]
        program = [str(folder / "bin" / "python"), str(script), url]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode:
        return (
            f"skipped: cannot install {' '.join(packages)}: {(installed.stderr.strip().splitlines() or [''])[-1]:.200}"
        )
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=600)
    return (
        "ok, " + done.stdout.strip().splitlines()[-1]
        if done.returncode == 0
        else f"FAILED:\n{done.stdout}{done.stderr}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
