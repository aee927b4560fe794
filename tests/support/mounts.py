"""Commands that see a small file system somewhere: Linux, as root."""

import shutil
import subprocess

import pytest


def with_small_file_system(place: object, megabytes: int, command: list[str]) -> list[str]:
    """The command, for which `place` is an empty file system of that size; nothing else sees it. Skips where that is
    not allowed."""
    mount = f'mount -t tmpfs -o size={megabytes}m tmpfs "{place}" && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("NOT TESTED WITH SMALL FILE SYSTEMS: mounting one needs root on Linux")
    return [*prefix, *command]
