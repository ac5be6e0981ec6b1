# PostgreSQL in the guest, whose data lie in $DATA. To be sourced by bash, after lib.sh.
# shellcheck shell=bash

# as_postgres COMMAND...: the server refuses to be root.
as_postgres() { setpriv --reuid 100 --regid 100 --clear-groups "$@"; }
sql() { as_postgres psql -h /tmp -d postgres -qAtX "$@"; }

start_postgres() {
  as_postgres pg_ctl -D "$DATA" -s -w -t 120 -l /tmp/postgres.log start \
    -o "-c unix_socket_directories=/tmp -c listen_addresses= -c shared_buffers=16MB -c max_wal_size=64MB"
}

stop_postgres() { as_postgres pg_ctl -D "$DATA" -s -w stop; }
