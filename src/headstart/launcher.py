"""What a launcher such as torchrun tells this process through its environment. Knows no torch."""

import os

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

FEWEST_FILES = 64
"""Open files that a process must be allowed: with fewer, worker processes wait for each other forever."""
_OF_MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Accelerate starts a process group for these, too."""
_NUMBERS = {
    **{"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": 1},
    **dict.fromkeys(_OF_MPI, 1),
}
"""Variable -> its smallest value."""


def is_first_process() -> bool:
    """Whether this is the process that prints: the first of all, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def num_processes() -> int:
    """Number of processes of this run on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wrong_environment() -> str:
    """What is wrong with the working folder, the limit of open files or the launcher's variables, in one sentence; ""
    if nothing is. Such variables are left over in a notebook or in the shell of a cluster job."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return "the working folder was deleted; change to another one with cd"
    if resource is not None and 0 < (most := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < FEWEST_FILES:
        return f"this system allows {most} open files; allow at least {FEWEST_FILES}, for example with ulimit -n 1024"
    env = {name: os.environ[name] for name in (*_NUMBERS, "MASTER_ADDR") if name in os.environ}
    remedy = "start several processes with torchrun or accelerate launch; for a single process, unset"
    for name, least in _NUMBERS.items():
        if name in env and not (env[name].isdecimal() and int(env[name]) >= least):
            number = f"a whole number of at least {least}"
            return f"the environment variable {name} is {env[name]!r}; it must be {number}: {remedy} {name}"
    asks_for_several = [name for name in ("WORLD_SIZE", *_OF_MPI) if int(os.environ.get(name) or "1") > 1]
    asks_for_several += [name for name in ("LOCAL_RANK",) if name in env]
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    if asks_for_several and missing:
        have, lack = (", ".join(names) for names in (asks_for_several, missing))
        return f"the environment has {have} but not {lack}: {remedy} {' '.join(asks_for_several)}"
    if int(env.get("RANK", "0")) >= int(env.get("WORLD_SIZE", "1")):
        return f"the environment variable RANK is {env['RANK']}, not below WORLD_SIZE: {remedy} RANK"
    return ""
