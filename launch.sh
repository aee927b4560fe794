#!/usr/bin/env bash
# headstart in one command. Sets up .venv beside this file on first use, then picks the launcher for this machine.
#
#   ./launch.sh [demo DIR]                     the demo: check, train, choose, tune and compare on solar cells
#   ./launch.sh CONFIG [--key value ...]       train CONFIG (a file, or the name of a shipped one)
#   ./launch.sh --processes N CONFIG ...       the same on N processes
#   ./launch.sh predict RUN PATHS --out DIR/   classify images; with --processes N or several GPUs the work is shared
#   ./launch.sh COMMAND ...                    any other command of headstart
#   ./launch.sh test [--quick | --extended]    the tests, in three sizes (CONTRIBUTING.md); other arguments go to pytest
set -eu

home="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
venv="$home/.venv"
python="$venv/bin/python"

say() { printf '%s\n' "launch.sh: $*"; }
fail() { printf '%s\n' "launch.sh: $*" >&2; exit 2; }

find_python() {
  for name in ${PYTHON:-} python3.13 python3.12 python3.11 python3 python; do
    if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  fail "no Python 3.11, 3.12 or 3.13 found ($(python3 --version 2>/dev/null || echo 'no python3')); install one, or set PYTHON=/path/to/python3.11"
}

set_up() { # $1: extras, demo or dev; dev holds all that demo does
  local fingerprint base extras
  fingerprint="$(cat "$home/pyproject.toml" "$home/constraints.txt" "$home/launch.sh" | cksum)"
  for extras in "$1" dev; do
    [ "$(cat "$venv/.installed-$extras" 2>/dev/null)" != "$fingerprint" ] || return 0
  done
  base="$(find_python)"
  if ! "$python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    say "making $venv with $("$base" --version)"
    "$base" -m venv --clear "$venv" || fail "python -m venv failed; on Debian and Ubuntu: apt install python3-venv"
  fi
  say "installing headstart and what it needs (torch is large: a minute or several)"
  "$python" -m pip install --quiet --disable-pip-version-check -c "$home/constraints.txt" -e "$home[$1,serve]" ||
    fail "pip could not install the packages; its message is above"
  printf '%s' "$fingerprint" > "$venv/.installed-$1"
}

headstart() { # a command with the launcher that fits; $1: processes or "", $2: train or predict, rest: its arguments
  local processes="$1" gpus=0
  shift
  if command -v nvidia-smi >/dev/null; then gpus="$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)"; fi
  if [ "$gpus" -gt 0 ]; then
    processes="${processes:-$gpus}"
    [ "$processes" -le "$gpus" ] || fail "--processes $processes, but this machine has $gpus GPU(s)"
    say "$gpus GPU(s): accelerate launch with $processes process(es)"
    "$venv/bin/accelerate" launch $([ "$processes" -gt 1 ] && echo --multi_gpu) --num_processes "$processes" \
      --num_machines 1 --mixed_precision no --dynamo_backend no -m headstart "$@"
  elif [ "${processes:-1}" -gt 1 ]; then
    say "no GPU: torchrun with $processes processes on the CPU"
    ACCELERATE_USE_CPU=true "$venv/bin/torchrun" --standalone --nproc_per_node "$processes" -m headstart "$@"
  else
    say "one process: python -m headstart $1"
    "$python" -m headstart "$@"
  fi
}

demo() { # its folder, or nothing
  [ -z "$processes" ] || fail "the demo runs in one process; leave out --processes"
  set_up demo
  "$python" -m headstart demo "$@" || exit $?
  say "headstart is installed in $venv; to have it as a command here: source $venv/bin/activate"
}

processes=""
if [ "${1:-}" = "--processes" ]; then
  processes="${2:-}"
  case "$processes" in '' | 0 | *[!0-9]*) fail "--processes needs a number of processes, not '$processes'" ;; esac
  shift 2
fi

case "${1:-}" in
  "") demo ;;
  demo)
    shift
    demo "$@"
    ;;
  test)
    shift
    set_up dev
    exec "$home/scripts/test" "$@"
    ;;
  train | resume | evaluate | predict | choose)
    set_up demo
    headstart "$processes" "$@"
    ;;
  inspect | verify | push | compare | data | bench | doctor | serve | export | report | watch | open | completion)
    set_up demo
    exec "$python" -m headstart "$@"
    ;;
  -h | --help) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" ;;
  -*) fail "unknown option $1; see ./launch.sh --help" ;;
  *)
    config="$1"
    shift
    set_up demo
    headstart "$processes" train --config "$config" "$@"
    ;;
esac
