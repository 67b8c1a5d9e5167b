#!/usr/bin/env bash
# Keeps .sqlx, the description of every query in the code, without needing sqlx-cli:
#
#   scripts/sqlx.sh prepare   writes .sqlx anew
#   scripts/sqlx.sh check     fails if .sqlx is not what `prepare` would write
#
# sqlx's macros ask a database when DATABASE_URL is set and SQLX_OFFLINE is not, and write what they
# learn into SQLX_OFFLINE_DIR. So: start a throw-away PostgreSQL, apply migrations/, and let
# `cargo check` expand every macro.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'sqlx: %s\n' "$*" >&2; }
die() {
  say "$@"
  exit 1
}

mode=${1-}
case "$mode" in
  prepare | check) ;;
  *) die "usage: scripts/sqlx.sh prepare|check" ;;
esac

# --- a private PostgreSQL ---------------------------------------------------------------------

find_postgres() {
  local dir
  for dir in $(printf '%s\n' /usr/lib/postgresql/*/bin /usr/pgsql-*/bin \
    /opt/homebrew/opt/postgresql*/bin /usr/local/opt/postgresql*/bin | sort -V); do
    if [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ] && [ -x "$dir/psql" ]; then
      echo "$dir"
      return
    fi
  done
  command -v initdb >/dev/null && dirname "$(command -v initdb)"
}
pg=$(find_postgres) || die "no PostgreSQL binaries here: run scripts/install-deps.sh"

# PostgreSQL refuses to run as root, so it runs as nobody then.
as_server=()
if [ "$(id -u)" -eq 0 ]; then
  group=$(id -gn nobody)
  if command -v setpriv >/dev/null; then
    as_server=(setpriv --reuid=nobody --regid="$group" --clear-groups)
  else
    as_server=(runuser -u nobody --)
  fi
fi

# Short, since a socket's path has at most about 100 characters.
work=$(mktemp -d /tmp/reeve-sqlx.XXXXXX)
server=$work/pg
found=$work/found
wrapper=$work/rustc
artifacts=$work/artifacts

stop() {
  local pid tries=0
  if [ -s "$server/data/postmaster.pid" ]; then
    pid=$(head -n 1 "$server/data/postmaster.pid")
    kill -INT "$pid" 2>/dev/null || true
    while kill -0 "$pid" 2>/dev/null && [ $tries -lt 100 ]; do
      sleep 0.05
      tries=$((tries + 1))
    done
    kill -QUIT "$pid" 2>/dev/null || true
  fi
  forget_artifacts
  rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

chmod 711 "$work"
mkdir -m 700 "$server"
mkdir "$found"
if [ ${#as_server[@]} -gt 0 ]; then chown "nobody:$group" "$server"; fi

run_as_server() { (cd "$server" && exec env -i PATH="$PATH" HOME="$server" LC_ALL=C ${as_server[@]+"${as_server[@]}"} "$@"); }

start() {
  local tries=0
  run_as_server "$pg/initdb" -D "$server/data" -U reeve -A trust -E UTF8 --locale=C -N \
    >"$work/log" 2>&1 || {
    cat "$work/log" >&2
    die "initdb failed"
  }
  run_as_server "$pg/postgres" -D "$server/data" -k "$server" -c listen_addresses= \
    -c fsync=off -c full_page_writes=off -c max_connections=20 >>"$work/log" 2>&1 &
  until "$pg/psql" -X -q -h "$server" -U reeve -d postgres -c 'select 1' >/dev/null 2>&1; do
    tries=$((tries + 1))
    if [ $tries -gt 200 ] || ! kill -0 $! 2>/dev/null; then
      cat "$work/log" >&2
      die "the private PostgreSQL did not start"
    fi
    sleep 0.05
  done
}

sql() { PGOPTIONS='-c client_min_messages=warning' "$pg/psql" -X -q -v ON_ERROR_STOP=1 -h "$server" -U reeve -d reeve "$@"; }

migrate() {
  local file
  "$pg/psql" -X -q -h "$server" -U reeve -d postgres -c 'create database reeve'
  # The migrator's own table, as it makes it.
  sql -c 'create table _sqlx_migrations (
    version bigint primary key, description text not null,
    installed_on timestamptz not null default now(), success boolean not null,
    checksum bytea not null, execution_time bigint not null)'
  while IFS= read -r file; do
    case "$file" in *.down.sql) continue ;; esac
    if head -n 1 "$file" | grep -q '^-- no-transaction'; then
      sql -f "$file" || die "$file does not apply"
    else
      sql -1 -f "$file" || die "$file does not apply"
    fi
  done < <(find migrations -maxdepth 1 -name '*.sql' 2>/dev/null | sort -V)
}

# --- the macros -------------------------------------------------------------------------------

# Cargo puts the path of the workspace wrapper into the hash of this package's artifacts, and of no
# other's. A path that is new each time therefore surely expands each macro again, while the
# dependencies come from the cache and the usual builds of this package stay as they are.
expand() {
  # shellcheck disable=SC2016  # for the wrapper to expand
  printf '#!/bin/sh\nexec "$@"\n' >"$wrapper"
  chmod 755 "$wrapper"
  env -u CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER \
    RUSTC_WORKSPACE_WRAPPER="$wrapper" \
    CARGO_INCREMENTAL=0 \
    DATABASE_URL="postgres://reeve@localhost/reeve?host=$server" \
    SQLX_OFFLINE=false \
    SQLX_OFFLINE_DIR="$found" \
    cargo check -q --all-targets --message-format=json-render-diagnostics >"$artifacts"
}

# Nobody will look for the artifacts of this run's wrapper again.
forget_artifacts() {
  local file hash
  [ -s "$artifacts" ] || return 0
  # Only this package's: those of the dependencies come from a registry and are everybody's.
  { grep '"package_id":"path+file:' "$artifacts" |
    grep -o '"[^"]*/deps/lib[A-Za-z0-9_]*-[0-9a-f]\{16\}\.rmeta"' || true; } |
    tr -d '"' | sort -u >"$work/rmeta"
  while IFS= read -r file; do
    hash=${file%.rmeta}
    hash=${hash##*-}
    rm -f "${file%/lib*}"/*"-$hash.rmeta" "${file%/lib*}"/*"-$hash.d"
    rm -rf "${file%/deps/*}/.fingerprint/"*"-$hash"
  done <"$work/rmeta"
}

start
migrate
expand || die "the queries do not agree with the migrations, or the code does not compile"

count=$(find "$found" -name 'query-*.json' | wc -l)
case "$mode" in
  prepare)
    rm -rf .sqlx
    mkdir .sqlx
    find "$found" -name 'query-*.json' -exec cp {} .sqlx/ \;
    say "$((count)) queries in .sqlx"
    ;;
  check)
    mkdir -p "$work/none"
    committed=.sqlx
    [ -d .sqlx ] || committed=$work/none
    if ! diff -r "$committed" "$found" >"$work/diff"; then
      sed 's/^/  /' "$work/diff" | head -n 40 >&2
      die ".sqlx is out of date: run \`make sqlx\` and commit the result"
    fi
    say "$((count)) queries agree with .sqlx"
    ;;
esac
