# Loads for a block device, with fio. To be sourced by bash, in the guest.
# shellcheck shell=bash

# measure_fio DEVICE LOAD: "OPERATIONS_PER_SECOND P99_US" of a load, which is called KIND-DEPTH, over $RUNTIME seconds.
measure_fio() {
  # Where the terse format has the operations per second of reads and of writes.
  local column=49 kind=(--rw=randwrite --bs=4k --norandommap)
  case ${2%-*} in
  randwrite) ;;
  fdatasync) kind+=(--fdatasync=1) ;;
  write1m) kind=(--rw=write --bs=1m) ;;
  randread) kind=(--rw=randread --bs=4k --norandommap) column=8 ;;
  *) return 1 ;;
  esac
  fio --name=bench --filename="$1" --direct=1 --ioengine=io_uring "${kind[@]}" --iodepth="${2#*-}" --time_based \
    --size=112m --runtime="$RUNTIME" --ramp_time=1 --randrepeat=1 --eta=never --minimal |
    awk -F ';' -v column=$column '{
      iops = $column
      for (i = column + 10; i < column + 30; i++) if (sub(/^99\.0+%=/, "", $i)) p99 = $i
      print iops, p99 }'
}
