"""The rack's work as parallel-ssh does it; a process of its own.

Input: a JSON plan: hosts with their files and where their output goes, the command. Output: those
files. Native clients, every host at once, as its documentation recommends.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gevent import joinall
from pssh.clients import ParallelSSHClient
from pssh.config import HostConfig


def main(plan_path: str) -> int:
    plan = json.loads(Path(plan_path).read_text(encoding="utf-8"))
    hosts = plan["hosts"]
    client = ParallelSSHClient(
        [host["host"] for host in hosts],
        host_config=[
            HostConfig(user=host["user"], port=host["port"], private_key=host["key"])
            for host in hosts
        ],
        pool_size=len(hosts),
    )
    copied = client.copy_file(
        "%(files)s", ".", recurse=True, copy_args=[{"files": host["files"]} for host in hosts]
    )
    joinall(copied, raise_error=True)
    outputs = client.run_command(plan["command"])
    for host, output in zip(hosts, outputs, strict=True):
        with Path(host["out"]).open("w", encoding="utf-8") as out:
            out.writelines(line + "\n" for line in output.stdout)
    client.join()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
