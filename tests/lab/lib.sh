# Shared pieces of the tests that run in the lab's virtual machine: a cluster of two replicators over loopback on
# ram disks, waiting for conditions, and the count of what passed. To be sourced by bash, in the guest.
# shellcheck shell=bash

set -uo pipefail

PASSED=0 FAILED=0
WORK=/run/cluster
declare -A REPLICATOR=()

say() { printf '%s\n' "$*"; }

pass() { PASSED=$((PASSED + 1)); printf '  ok    %s\n' "$*"; }

fail() {
  FAILED=$((FAILED + 1))
  printf '  FAIL  %s\n' "$*"
}

# expect WHAT COMMAND...: COMMAND must succeed; its output is shown if it does not.
expect() {
  local what=$1 output status=0
  shift
  output=$("$@" 2>&1) || status=$?
  if ((status == 0)); then
    pass "$what"
  else
    fail "$what: exit code $status of: $*"
    printf '%s\n' "$output" | tail -n 15 | sed 's/^/        /'
  fi
}

# refuse WHAT PART COMMAND...: COMMAND must fail, and say PART.
refuse() {
  local what=$1 part=$2 output
  shift 2
  if output=$("$@" 2>&1); then
    fail "$what: it was not refused: $*"
  elif grep -qF -- "$part" <<<"$output"; then
    pass "$what"
  else
    fail "$what: refused without saying '$part': $output"
  fi
}

# wait_for SECONDS WHAT COMMAND...
wait_for() {
  local limit=$1 what=$2 end
  shift 2
  end=$((SECONDS + limit))
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || { fail "gave up after ${limit} s waiting for: $what"; return 1; }
    sleep 0.1
  done
}

# finish: the last line, and the exit code.
finish() {
  local verdict=PASS
  ((FAILED == 0 && PASSED > 0)) || verdict=FAIL
  say "$verdict: $PASSED passed, $FAILED failed"
  [[ $verdict == PASS ]]
}

# --- the cluster ----------------------------------------------------------------------------------------------

control() { say "$WORK/$1.ctl"; }

# on NODE COMMAND ARGS...: a subcommand of holdfast, to a node.
on() {
  local node=$1 command=$2
  shift 2
  holdfast "$command" "$@" --control "$(control "$node")"
}

# Where the replicas lie, unless a test puts something in between; and further keys of the volume.
declare -A DISK=([a]=/dev/ram0 [b]=/dev/ram2) JOURNAL=([a]=/dev/ram1 [b]=/dev/ram3)
VOLUME_KEYS=${VOLUME_KEYS:-}
# TCP ports for NBD clients, if the test wants any.
declare -A NBD_PORT=()

# make_ram_disks MIB [COUNT]
make_ram_disks() {
  modprobe brd rd_nr="${2:-4}" rd_size=$(($1 * 1024)) max_part=0
  modprobe nbd nbds_max=4 max_part=0
  modprobe -a crc32c_generic ext4
}

# start_udev: with the rules of Debian and ours; it looks into every device that comes, as on any machine.
start_udev() {
  mkdir -p /etc/udev/rules.d
  cp examples/65-holdfast.rules /etc/udev/rules.d/
  (exec -a systemd-udevd udevadm --daemon) || fail "no udev"
}

# is_alias DEVICE: systemd is told by udev that this is the volume's device, and that it is ready.
is_alias() {
  local said
  udevadm settle --timeout 20
  said=$(udevadm info --query property "$1")
  grep -qx 'SYSTEMD_ALIAS=/dev/holdfast/r0' <<<"$said" && ! grep -qx 'SYSTEMD_READY=0' <<<"$said"
}

# make_cluster MIB: a configuration, and replicas of the volume r0 on nodes a and b.
make_cluster() {
  local node port=7801
  mkdir -p "$WORK"
  head -c 32 /dev/urandom | xxd -p -c 64 >"$WORK/secret"
  chmod 600 "$WORK/secret"
  {
    printf '[cluster]\nname = "lab"\nsecret-file = "secret"\n'
    for node in a b; do
      printf '\n[[node]]\nname = "%s"\naddress = "127.0.0.1"\ncontrol = "%s.ctl"\n' $node $node
    done
    printf '\n[[volume]]\nname = "r0"\nuuid = "%s"\n' "$(cat /proc/sys/kernel/random/uuid)"
    printf 'size = "%dMiB"\n%s\n' "$1" "$VOLUME_KEYS"
    for node in a b; do
      printf '\n[[volume.replica]]\nnode = "%s"\ndisk = "%s"\n' $node "${DISK[$node]}"
      printf 'journal = "%s"\nport = %d\nnbd-socket = "%s.nbd"\n' "${JOURNAL[$node]}" $port $node
      [[ -z ${NBD_PORT[$node]:-} ]] || printf 'nbd-listen = "127.0.0.1:%d"\n' "${NBD_PORT[$node]}"
      port=$((port + 1))
    done
  } >"$WORK/holdfast.toml"
  for node in a b; do create_replica $node; done
}

# create_replica NODE ARGS...
create_replica() {
  local node=$1
  shift
  holdfast create r0 "$@" --config "$WORK/holdfast.toml" --node "$node" || fail "no replica on $node"
}

start_replicator() {
  holdfast replicator --config "$WORK/holdfast.toml" --node "$1" >>"$WORK/$1.log" 2>&1 &
  REPLICATOR[$1]=$!
  wait_for 60 "the replicator of $1" on "$1" status r0
}

kill_replicator() {
  kill -KILL "${REPLICATOR[$1]}"
  wait "${REPLICATOR[$1]}" 2>/dev/null
}

# is_disk_state NODE STATE: of the node's own copy, not of what it says of its peers.
is_disk_state() { on "$1" status r0 --json | grep -q "^    \"disk_state\": \"$2\""; }

promote() { wait_for 60 "$1 to become primary" on "$1" promote r0; }

device_of_r0() { readlink /dev/holdfast/r0; }

# --- the device -----------------------------------------------------------------------------------------------

# The process that keeps the device attached; tests wait for its end.
export FOLLOWER=

# attach_following NODE ARGS...: attaches r0 and keeps it attached.
attach_following() {
  local node=$1
  shift
  holdfast attach r0 "$@" --follow --control "$(control "$node")" >>"$WORK/follow.log" 2>&1 &
  FOLLOWER=$!
  wait_for 60 "r0 to be attached on $node" test -b /dev/holdfast/r0
}

sysfs() { say "/sys/block/$(basename "$(device_of_r0)")"; }
is_value() { [[ $(cat "$(sysfs)/$1") == "$2" ]]; }
writes() { awk '{ print $5 }' "$(sysfs)/stat"; }
reconnections() { grep -c 'connected again' "$WORK/follow.log"; }
# What udev reads of another device that is just being detached may fail.
errors_of_r0() { dmesg | grep "I/O error.* dev $(basename "$(device_of_r0)"),"; }
has_more_writes() { (($(writes) > $1)); }
has_reconnected() { (($(reconnections) > $1)); }

# load SECONDS NAME [DEPTH]: writes with fio, verified afterwards; the log is $WORK/NAME.log.
load() {
  timeout 90 fio --name="$2" --filename=/mnt/load --size=24m --direct=1 --ioengine=libaio --iodepth="${3:-8}" \
    --rw=randwrite --bs=4k --fsync=32 --time_based --runtime="$1" --verify=crc32c --verify_fatal=1 --do_verify=1 \
    --verify_backlog=64 --fallocate=none --eta=never --output="$WORK/$2.log"
}

# under_load NAME DEPTH COMMAND...: COMMAND, which takes the server away and brings one back, under fio's writes.
under_load() {
  local name=$1 depth=$2 fio errors before reconnected
  shift 2
  before=$(writes) reconnected=$(reconnections)
  load 5 "$name" "$depth" &
  fio=$!
  wait_for 60 "the load to begin" has_more_writes $((before + 40))
  "$@"
  if wait "$fio"; then pass "fio goes on and verifies"; else fail "fio: $(tail -n 5 "$WORK/$name.log")"; fi
  wait_for 10 "the follower to say so" has_reconnected "$reconnected" && pass "the follower said so"
  errors=$(errors_of_r0 | head -n 3)
  if [[ -z $errors ]]; then pass "the kernel saw no I/O error"; else fail "$errors"; fi
  say "        $(grep -o 'connected again.*' "$WORK/follow.log" | tail -n 1)"
}

# test_operations: what block devices can be asked beside reads and writes.
test_operations() {
  say "writes, zeroes, discards"
  local device=/dev/holdfast/r0
  head -c $((3 << 20)) /dev/urandom >"$WORK/pattern"
  expect "write" dd if="$WORK/pattern" of=$device bs=1M oflag=direct conv=fsync
  expect "read back" cmp -n $((3 << 20)) "$WORK/pattern" $device
  expect "zero" /usr/bin/fallocate --zero-range -o $((1 << 20)) -l $((1 << 20)) $device
  expect "discard" blkdiscard -o $((2 << 20)) -l $((1 << 20)) $device
  expect "what was left alone stays" cmp -n $((1 << 20)) "$WORK/pattern" $device
  expect "the rest is zero" bash -c "dd if=$device bs=1M skip=1 count=2 iflag=direct | cmp -n $((2 << 20)) - /dev/zero"
}

# exercise SEED: files on /mnt as applications treat them: fio's verified writes, and fsx's mixture of everything else.
exercise() {
  expect "fio writes and verifies" load 2 "exercise-$1"
  expect "fsx finds what it wrote" timeout 60 ./fsx.py /mnt/fsx "$1" 400
}

# mib_of_mnt: what the file system on /mnt has in all.
mib_of_mnt() { df -m /mnt | awk 'NR == 2 { print $2 }'; }

# kill_and_restart NODE
kill_and_restart() {
  kill_replicator "$1"
  start_replicator "$1"
  promote "$1"
}

# upgrade NODE: another binary takes over from one that is stopped in order.
upgrade() {
  local newer=$WORK/holdfast-newer
  cp "$(command -v holdfast)" "$newer"
  kill -TERM "${REPLICATOR[$1]}"
  wait "${REPLICATOR[$1]}" || fail "the replicator ends with $?"
  "$newer" replicator --config "$WORK/holdfast.toml" --node "$1" >>"$WORK/$1.log" 2>&1 &
  REPLICATOR[$1]=$!
  wait_for 20 "the newer replicator of $1" on "$1" status r0
  expect "it is the other binary" test "$(readlink "/proc/${REPLICATOR[$1]}/exe")" = "$newer"
  promote "$1"
}
