#!/usr/bin/env bash
# Installs what Reeve's demo and tests start on this machine: redis-server and the PostgreSQL
# binaries. Nothing is left running or enabled, and no database cluster is made. Says nothing when
# all is there.
#
#   scripts/install-deps.sh          servers
#   scripts/install-deps.sh --test   servers, cargo-nextest, .venv and tests/tools/node_modules
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

NEXTEST_VERSION=0.9.143

say() { printf 'install-deps: %s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

usage() {
  say "usage: scripts/install-deps.sh [--test]"
  exit 2
}

with_tests=no
case "${1-}" in
  '') ;;
  --test) with_tests=yes ;;
  *) usage ;;
esac
[ $# -le 1 ] || usage

# Debian keeps initdb and postgres out of the PATH.
have_postgres() {
  local dir
  for dir in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin \
    /opt/homebrew/opt/postgresql*/bin /usr/local/opt/postgresql*/bin; do
    if [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ] && [ -x "$dir/psql" ]; then return 0; fi
  done
  have initdb && have postgres && have psql
}

# `python3 -m venv` needs ensurepip, which Debian ships in python3-venv.
have_venv() { python3 -c 'import ensurepip, venv' 2>/dev/null || have virtualenv; }

missing=()
find_missing() {
  missing=()
  have redis-server && have redis-cli || missing+=(redis)
  have_postgres || missing+=(postgresql)
  if [ "$with_tests" = yes ]; then
    have python3 || missing+=(python)
    if have python3 && ! have_venv; then missing+=(venv); fi
    have node && have npm || missing+=(node)
  fi
}

packages() { # packages <apt|dnf|brew> <what is missing>...
  local manager=$1 what
  shift
  for what in "$@"; do
    case "$manager:$what" in
      apt:redis) echo redis-server ;;
      dnf:redis | brew:redis) echo redis ;;
      apt:postgresql) echo postgresql ;;
      dnf:postgresql) echo postgresql-server ;;
      brew:postgresql) echo postgresql@17 ;;
      apt:python) echo python3-venv ;;
      dnf:python) echo python3 ;;
      brew:python) echo python@3.13 ;;
      apt:venv) echo python3-venv ;;
      dnf:venv) echo python3-virtualenv ;;
      brew:venv) echo virtualenv ;;
      apt:node) echo nodejs npm ;;
      dnf:node) echo nodejs npm ;;
      brew:node) echo node ;;
    esac
  done | tr '\n' ' '
}

explain() {
  say "missing: ${missing[*]}. $1"
  say "  Debian, Ubuntu:  sudo apt-get install --no-install-recommends $(packages apt "${missing[@]}")"
  say "  Fedora, RHEL:    sudo dnf install $(packages dnf "${missing[@]}")"
  say "  macOS:           brew install $(packages brew "${missing[@]}")"
  say "The servers need not run: Reeve starts its own. Then run this again."
  exit 1
}

# What the packages would otherwise do: start their services, and make a database cluster. Both are
# prevented for the time of the installation, by files that are put back as they were.
policy=/usr/sbin/policy-rc.d
createcluster=/etc/postgresql-common/createcluster.conf
saved=''

put_back() {
  [ -n "$saved" ] || return 0
  if [ -e "$saved/policy-rc.d" ]; then
    cp -p "$saved/policy-rc.d" "$policy"
  else
    rm -f "$policy"
  fi
  if [ -e "$saved/createcluster.conf" ]; then cp -p "$saved/createcluster.conf" "$createcluster"; fi
  rm -rf "$saved"
  saved=''
}

apt_install() {
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
    -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@" </dev/null >&2
}

disable_service() {
  if have deb-systemd-helper; then deb-systemd-helper disable "$1.service" >/dev/null 2>&1 || true; fi
  if have update-rc.d; then update-rc.d "$1" disable >/dev/null 2>&1 || true; fi
}

install_packages() {
  local what wanted postgres

  saved=$(mktemp -d)
  trap put_back EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  if [ -e "$policy" ]; then cp -p "$policy" "$saved/policy-rc.d"; fi
  rm -f "$policy"
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"

  # An old index names packages that the mirror no longer has. A broken third-party source is no
  # reason to stop: what counts is whether the installation works.
  apt-get update -q -o DPkg::Lock::Timeout=300 </dev/null >&2 ||
    say "apt-get update failed; going on with the package index as it is"

  for what in "${missing[@]}"; do
    case "$what" in
      postgresql)
        apt_install postgresql-common
        if [ -e "$createcluster" ]; then
          cp -p "$createcluster" "$saved/createcluster.conf"
          printf '\ncreate_main_cluster = false\n' >>"$createcluster"
        fi
        postgres=postgresql
        if apt-cache show postgresql-15 >/dev/null 2>&1; then postgres=postgresql-15; fi
        apt_install "$postgres"
        disable_service postgresql
        ;;
      redis)
        apt_install redis-server
        disable_service redis-server
        ;;
      *)
        wanted=$(packages apt "$what")
        # shellcheck disable=SC2086  # one word a package
        apt_install $wanted
        ;;
    esac
  done

  put_back
  trap - EXIT INT TERM
}

find_missing
if [ ${#missing[@]} -gt 0 ]; then
  have apt-get || explain "There is no apt-get here to install them with."
  [ "$(id -u)" -eq 0 ] || explain "Installing them needs root."
  say "installing: $(packages apt "${missing[@]}")(no service will be started or enabled)"
  install_packages
  find_missing
  [ ${#missing[@]} -eq 0 ] || explain "Installing the packages did not provide them."
fi

[ "$with_tests" = yes ] || exit 0

# The tools that the tests use.
if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
  if ! have rustup; then
    say "missing: rustfmt and clippy; install them for $(rustc --version)"
    exit 1
  fi
  rustup component add rustfmt clippy
fi
if ! cargo nextest --version >/dev/null 2>&1; then
  say "building cargo-nextest $NEXTEST_VERSION; this takes some minutes, once"
  env -u SQLX_OFFLINE cargo install --locked cargo-nextest --version "$NEXTEST_VERSION"
fi

digest() { # of the files given, whatever the machine calls the program
  if have sha256sum; then cat "$@" | sha256sum; else cat "$@" | shasum -a 256; fi
}

python_stamp=.venv/.reeve-stamp
python_digest=$(digest tests/tools/requirements.txt)
if ! [ -x .venv/bin/python ] || ! .venv/bin/python -c '' 2>/dev/null ||
  [ "$(cat "$python_stamp" 2>/dev/null)" != "$python_digest" ]; then
  say "preparing .venv"
  rm -rf .venv
  if python3 -c 'import ensurepip, venv' 2>/dev/null; then
    python3 -m venv .venv
  else
    virtualenv -q .venv
  fi
  .venv/bin/python -m pip install -q --disable-pip-version-check --no-input \
    -r tests/tools/requirements.txt </dev/null
  printf '%s\n' "$python_digest" >"$python_stamp"
fi

node_stamp=tests/tools/node_modules/.reeve-stamp
node_digest=$(digest tests/tools/package.json tests/tools/package-lock.json)
if [ "$(cat "$node_stamp" 2>/dev/null)" != "$node_digest" ]; then
  say "preparing tests/tools/node_modules"
  (cd tests/tools && npm ci --no-audit --no-fund --loglevel=error </dev/null >&2)
  printf '%s\n' "$node_digest" >"$node_stamp"
fi
