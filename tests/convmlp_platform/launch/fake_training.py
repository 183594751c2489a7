"""What the fork server's forks become in tests: no torch, and the end that the settings ask for."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from convmlp_platform.health.hangs.stacks import register_stacks
from convmlp_platform.health.heartbeat.heartbeat import HeartbeatWriter
from convmlp_platform.launch.workers.process_files import ProcessFiles
from convmlp_platform.launch.workers.process_tree import children_die_with_us, die_with_parent


def main(settings: dict[str, Any]) -> None:
    os.setsid()
    die_with_parent()
    children_die_with_us()
    files = ProcessFiles.within(Path(settings["folder"]), settings["start"])
    HeartbeatWriter(files.heartbeat, 0, 1)
    register_stacks(files.stacks)
    if settings["do"] == "sleep":
        reader = os.fork()
        if reader == 0:
            signal.pause()
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        print(f"reader {reader}", flush=True)
        while True:
            time.sleep(0.1)  # a signal that comes just before a sleep is seen after it
    if settings["do"] == "visible":
        print("sees", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
        os._exit(0)
    print("to be read", flush=True)
    print("last words", file=sys.stderr, flush=True)
    files.outcome.write_text(json.dumps({"kind": "finished"}))
    os._exit(settings["do"])
