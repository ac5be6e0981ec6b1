# Two nodes of DRBD 8.4 in one kernel, connected over loopback, protocol C, for the benchmarks. To be sourced by bash, in
# the guest, after lib.sh.
# shellcheck shell=bash

DRBD_A=ipv4:127.0.0.1:7711 DRBD_B=ipv4:127.0.0.1:7712

# drbd ARGS...: a step that must work.
drbd() { drbdsetup-84 "$@" || fail "drbdsetup $*"; }

# attach_drbd SIDE DISK: with a log of active extents as large as it can be, which is what those who want speed set.
attach_drbd() { drbd attach "$1" "$2" "$2" internal --al-extents="${AL_EXTENTS:-6007}"; }

connect_drbd() {
  local tuning=(--protocol=C --max-buffers=8000 --max-epoch-size=8000)
  case $1 in
  0) drbd connect side0 $DRBD_A $DRBD_B "${tuning[@]}" ;;
  1) drbd connect side1 $DRBD_B $DRBD_A "${tuning[@]}" ;;
  esac
}

are_up_to_date() { (($(grep -c 'ds:UpToDate/UpToDate' /proc/drbd) == 2)); }

# make_drbd DISK DISK: side 0 is primary.
make_drbd() {
  local side disks=("$@")
  mkdir -p /var/lib/drbd
  modprobe drbd minor_count=4 usermode_helper=/bin/true
  for side in 0 1; do
    drbdmeta --force $side v08 "${disks[side]}" internal create-md >/dev/null || fail "drbdmeta"
    drbd new-resource side$side
    drbd new-minor side$side $side 0
    attach_drbd $side "${disks[side]}"
  done
  connect_drbd 0
  connect_drbd 1
  wait_for 20 "DRBD to connect" grep -q ' 0: cs:Connected' /proc/drbd
  # Both disks are empty: there is nothing to copy.
  drbd new-current-uuid 0 --clear-bitmap
  wait_for 20 "DRBD to be up to date" are_up_to_date
  drbd primary 0
}

# on_device SYSTEM COMMAND ARGS...: COMMAND with the device of SYSTEM (drbd, nbd or ublk) before its arguments. Holdfast's device is
# made anew each time, since a volume has only one.
on_device() {
  local which=$1 command=$2 flags=()
  shift 2
  [[ $which == drbd ]] && { "$command" /dev/drbd0 "$@"; return; }
  [[ $which == ublk ]] && flags=(--ublk)
  on a attach r0 "${flags[@]}" >/dev/null || return 1
  "$command" /dev/holdfast/r0 "$@"
  holdfast detach r0 >/dev/null
}
