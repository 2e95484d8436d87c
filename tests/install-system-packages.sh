#!/usr/bin/env bash
# Debian packages that the full suite needs. As root on Debian they are installed; elsewhere this
# says which are missing, and the tests that need them are skipped by name.
set -euo pipefail
packages=(openssh-server openssh-client g++ g++-aarch64-linux-gnu g++-arm-linux-gnueabihf
  qemu-user sudo postgresql)
# To build and boot the arm64 board (harness/virtual/vm). Only Debian 12 has the kernel for it.
if grep -q '^VERSION_CODENAME=bookworm' /etc/os-release 2>/dev/null; then
  packages+=(qemu-system-arm mmdebstrap e2fsprogs cpio kmod make gcc-aarch64-linux-gnu)
fi
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
    missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "not installed (needs root on Debian): ${missing[*]}; tests that need them are skipped"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
# The tests start a PostgreSQL of their own: the package shall not start one beside it.
if [ ! -e /etc/postgresql-common ]; then
  mkdir /etc/postgresql-common
  echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
