"""The page's own modules, run in Node for tests: `web/tests/cases.ts` answers cases that are written as JSON."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from support.browser import missing
from tutti.adapters.browser.kernel import WASM

WEB = Path(__file__).parents[2] / "web"
ROLLDOWN = WEB / "node_modules" / ".bin" / "rolldown"


def bundled(folder: Path) -> Path:
    """The script, in one file."""
    if shutil.which("node") is None or not ROLLDOWN.exists():
        missing("Node, and `npm ci` in web/")
    out = folder / "cases.mjs"
    command = [str(ROLLDOWN), "tests/cases.ts", "--file", str(out), "--format", "esm", "--platform", "node"]
    subprocess.run(command, cwd=WEB, check=True, capture_output=True, timeout=120)
    return out


def ask(script: Path, *cases: dict[str, Any]) -> list[dict[str, Any]]:
    """What it answers, `answer` or `error`, in their order."""
    lines = "\n".join(json.dumps(case) for case in cases)
    done = subprocess.run(["node", str(script), str(WASM)], input=lines, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
