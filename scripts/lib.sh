# Shared pieces of the scripts in this folder and of tests/*/run: strict mode, the repository's root,
# Debian packages, the release build, and cleaning up. To be sourced by bash, not run.
#
#   HOLDFAST=/path/to/holdfast   use this binary and build nothing
#   HOLDFAST_NO_INSTALL=1        never install packages, only say what is missing
# shellcheck shell=bash

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# The system's tools first: python3-libnbd belongs to the system's python3, and mkfs, losetup and e2fsck
# are in the sbin directories, which are not on everybody's path.
PATH="$(getconf PATH):/usr/sbin:/sbin:$PATH"
export ROOT PATH PYTHONDONTWRITEBYTECODE=1

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }
die() { warn "error: $*"; exit 1; }

# --- cleaning up: only what this script started -----------------------------------------------------------

OWN_PIDS=()
OWN_PATHS=()

# own_pid PID: stop this process when the script ends.
own_pid() { OWN_PIDS+=("$1"); }
# own_path PATH: remove this file or folder when the script ends.
own_path() { OWN_PATHS+=("$1"); }

# is_running PID: false for zombies too, which `kill -0` calls alive.
is_running() {
  local state
  state=$(sed -n 's/^State:[[:space:]]*\([A-Z]\).*/\1/p' "/proc/$1/status" 2>/dev/null) || return 1
  [[ -n $state && $state != Z && $state != X ]]
}

# wait_for SECONDS WHAT COMMAND...: run COMMAND until it succeeds; say WHAT was awaited if it never does.
wait_for() {
  local limit=$1 what=$2 end
  shift 2
  end=$((SECONDS + limit))
  until "$@"; do
    ((SECONDS < end)) || { warn "gave up after ${limit} s waiting for: $what"; return 1; }
    sleep 0.05
  done
}

not_running() { ! is_running "$1"; }

stop_pid() {
  is_running "$1" || return 0
  kill -TERM "$1" 2>/dev/null || return 0
  wait_for "${2:-10}" "process $1 to end" not_running "$1" || kill -KILL "$1" 2>/dev/null || true
}

clean_up() {
  local status=$? i
  trap - EXIT INT TERM
  for ((i = ${#OWN_PIDS[@]} - 1; i >= 0; i--)); do stop_pid "${OWN_PIDS[i]}"; done
  for ((i = ${#OWN_PATHS[@]} - 1; i >= 0; i--)); do rm -rf -- "${OWN_PATHS[i]}"; done
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- what the machine must have ---------------------------------------------------------------------------

has_package() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

# need_packages PKG...: install what is missing (as root on Debian), or say exactly what to install.
need_packages() {
  local missing=() pkg log apt_install
  command -v dpkg-query >/dev/null || die "this script needs the Debian packages: $* (no dpkg here; install their equivalents and run the Python parts directly)"
  for pkg in "$@"; do has_package "$pkg" || missing+=("$pkg"); done
  ((${#missing[@]})) || return 0
  apt_install="apt-get install -y --no-install-recommends ${missing[*]}"
  if [[ $(id -u) != 0 || -n ${HOLDFAST_NO_INSTALL:-} ]]; then
    die "packages are missing. Run as root: $apt_install"
  fi
  say "installing Debian packages: ${missing[*]}"
  log=$(mktemp)
  # A fresh machine has no package lists; a used one may have lists that are too old.
  if ! DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y \
    --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
    { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 update &&
      DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y \
        --no-install-recommends "${missing[@]}"; } >>"$log" 2>&1 ||
      { tail -n 20 "$log" >&2; rm -f "$log"; die "could not install packages. By hand: apt-get update && $apt_install"; }
  fi
  rm -f "$log"
}

need_root() { [[ $(id -u) == 0 ]] || die "$1 needs root: run it with sudo"; }

need_rust() {
  command -v cargo >/dev/null || PATH="$PATH:$HOME/.cargo/bin"
  command -v cargo >/dev/null || die "cargo is missing: install the Rust toolchain (https://rustup.rs)"
  command -v cc >/dev/null || need_packages gcc libc6-dev
}

# own_namespaces ARGS...: goes on in a mount namespace of this script's own, with no named network namespaces in it. Those
# it makes are seen by nobody else, and vanish with its last process, whatever happens to it. Needs root.
own_namespaces() {
  if [[ -z ${HOLDFAST_OWN_NAMESPACES:-} ]]; then
    HOLDFAST_OWN_NAMESPACES=1 exec unshare --mount --propagation private "$0" "$@"
  fi
  mkdir -p /run/netns
  mount -t tmpfs -o mode=755 holdfast-netns /run/netns
  unset HOLDFAST_OWN_NAMESPACES
}

# --- the binary -------------------------------------------------------------------------------------------

# build_release: builds the command and sets HOLDFAST to its path (unless HOLDFAST names one already).
build_release() {
  if [[ -n ${HOLDFAST:-} ]]; then
    [[ -x $HOLDFAST ]] || die "HOLDFAST=$HOLDFAST is no executable file"
  else
    need_rust
    (cd "$ROOT" && cargo build --release --locked --quiet --bin holdfast) || die "the release build failed"
    HOLDFAST=${CARGO_TARGET_DIR:-$ROOT/target}/release/holdfast
  fi
  export HOLDFAST
}

# run_python FILE ARGS...: the system's Python (it has the libnbd module) with the shared pieces on its path.
run_python() { PYTHONPATH="$ROOT/scripts/lib${PYTHONPATH:+:$PYTHONPATH}" /usr/bin/python3 "$@"; }

# exec_python FILE ARGS...: the same as the last act of a script, so that signals reach the Python program,
# which cleans up after itself.
exec_python() {
  export PYTHONPATH="$ROOT/scripts/lib${PYTHONPATH:+:$PYTHONPATH}"
  exec /usr/bin/python3 "$@"
}
