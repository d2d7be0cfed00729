#!/bin/sh
# nginx.sh: put an nginx for benchmarks/overhead.py into .tools/servers/nginx, unless there is one already or on PATH.
#
# Debian's or Ubuntu's package is unpacked, not installed: no root, and no nginx that the package would start on port 80.
set -eu

command -v nginx > /dev/null && exit 0
DEST=$(cd "$(dirname "$0")/.." && pwd)/.tools/servers/nginx
[ -x "$DEST/nginx" ] && exit 0
if ! command -v apt-get > /dev/null || ! command -v dpkg > /dev/null; then
    echo "nginx.sh: no apt here; put nginx on PATH" >&2
    exit 1
fi
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
cd "$WORK"
for package in nginx nginx-core nginx-light; do   # which of them has the program depends on the release
    apt-get -qq -o APT::Sandbox::User="$(id -un)" download "$package" 2> "$package.log" || continue
    dpkg -x "$package"_*.deb root
    [ -x root/usr/sbin/nginx ] && break
done
if ! root/usr/sbin/nginx -v 2> version; then
    cat ./*.log version >&2 2> /dev/null || true
    echo "nginx.sh: apt has no nginx that runs here. If it has no package lists yet, run 'apt-get update' once" >&2
    exit 1
fi
mkdir -p "$DEST"
mv root/usr/sbin/nginx "$DEST/nginx"
