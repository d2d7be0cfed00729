#!/bin/sh
# fetch.sh [DEST]: put the real ZooKeeper, Consul and etcd servers that the tests start into DEST (default .tools/servers).
#
#   DEST/zookeeper/*.jar    from the Debian packages (ZK_SUITE: bookworm = 3.8, the default; trixie = 3.9)
#   DEST/netty/*.jar        what ZooKeeper needs to speak TLS
#   DEST/consul/consul      from the package of Debian 11, the last Debian that has one
#   DEST/etcd/etcd          from the package of Debian 12
#
# What is there already is left alone; what is fetched appears whole or not at all. Packages are unpacked, not installed,
# from the archive that this machine's apt uses (or DEBIAN_MIRROR), so only a missing java needs root. Without apt it
# takes servers that are installed: consul and etcd on PATH, ZooKeeper's jars in ZOOKEEPER_HOME or /usr/share/java.
set -eu

DEST=${1:-$(dirname "$0")/../../.tools/servers}
mkdir -p "$DEST"
DEST=$(cd "$DEST" && pwd)
case $DEST in *[[:space:]]*) echo "fetch.sh: apt cannot use $DEST: the path has a blank" >&2; exit 1 ;; esac
WORK=
MISSING=

complain() { echo "fetch.sh: $*" >&2; }
clean_up() { [ -z "$WORK" ] || rm -rf "$WORK"; }
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

begin() { WORK=$(mktemp -d "$DEST/.$1.XXXXXX"); mkdir "$WORK/out"; }
finish() {
    [ -d "$DEST/$1" ] || mv "$WORK/out" "$DEST/$1"   # somebody else may have been quicker
    clean_up
    WORK=
    echo "$1 is in $DEST/$1"
}

debian_mirror() {
    [ -z "${DEBIAN_MIRROR:-}" ] || { echo "$DEBIAN_MIRROR"; return; }
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | sort -u | head -n 1
}

# unpack_packages SUITE PACKAGE...: download from one Debian suite and unpack into $WORK/root
unpack_packages() {
    suite=$1
    shift
    mirror=$(debian_mirror)
    if [ -z "$mirror" ]; then
        complain "apt has no lists of a Debian archive: run 'apt-get update' once (as root), or set DEBIAN_MIRROR"
        return 1
    fi
    apt=$WORK/apt
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/debs"
    : > "$apt/status"   # an empty one: otherwise apt insists on installed versions that this suite does not have
    echo "deb [signed-by=${DEBIAN_KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg}] $mirror $suite main" > "$apt/sources.list"
    # split into words on purpose: neither mktemp nor apt's package names have blanks in them, and DEST is checked above
    options="-qq -o Dir::Etc::sourcelist=$apt/sources.list -o Dir::Etc::sourceparts=/dev/null
        -o Dir::State::status=$apt/status -o Dir::State::lists=$apt/lists -o Dir::Cache=$apt/cache
        -o Debug::NoLocking=1 -o APT::Sandbox::User=$(id -un)"
    apt-get $options update && (cd "$apt/debs" && apt-get $options download "$@") || return 1
    for package in "$apt"/debs/*.deb; do dpkg -x "$package" "$WORK/root"; done
}

has_apt() { command -v apt-get > /dev/null && command -v dpkg > /dev/null; }

get_java() {
    command -v java > /dev/null && return
    if ! has_apt; then complain "ZooKeeper needs java 8 or newer on PATH"; return 1; fi
    if [ "$(id -u)" != 0 ]; then
        complain "ZooKeeper needs java. Run as root: apt-get install -y --no-install-recommends default-jre-headless"
        return 1
    fi
    apt-get install -y -qq --no-install-recommends default-jre-headless && return
    complain "could not install java. If apt has no package lists yet, run 'apt-get update' once"
    return 1
}

get_zookeeper() {
    [ -d "$DEST/zookeeper" ] && return
    begin zookeeper
    if has_apt && unpack_packages "${ZK_SUITE:-bookworm}" \
        libzookeeper-java libslf4j-java libdropwizard-metrics-java libsnappy-java; then
        # all that a server without its admin pages loads; the package itself would bring 45 others
        for jar in zookeeper zookeeper-jute slf4j-api slf4j-simple metrics-core snappy-java; do
            cp -L "$WORK/root/usr/share/java/$jar.jar" "$WORK/out/" || return 1
        done
    elif [ -n "${ZOOKEEPER_HOME:-}" ]; then
        for jar in "$ZOOKEEPER_HOME"/*.jar "$ZOOKEEPER_HOME"/lib/*.jar; do [ ! -f "$jar" ] || cp -L "$jar" "$WORK/out/"; done
    elif [ -f /usr/share/java/zookeeper.jar ]; then
        for jar in zookeeper zookeeper-jute slf4j-api slf4j-simple metrics-core snappy-java; do
            [ ! -f "/usr/share/java/$jar.jar" ] || cp -L "/usr/share/java/$jar.jar" "$WORK/out/"
        done
    fi
    ls "$WORK"/out/zookeeper*.jar > /dev/null 2>&1 || { complain "ZooKeeper could not be had: set ZOOKEEPER_HOME"; return 1; }
    finish zookeeper
}

get_netty() {
    [ -d "$DEST/netty" ] && return
    begin netty
    jars="buffer codec common handler resolver transport transport-native-epoll transport-native-unix-common"
    if has_apt && unpack_packages "${ZK_SUITE:-bookworm}" libnetty-java; then
        for jar in $jars; do cp -L "$WORK/root/usr/share/java/netty-$jar.jar" "$WORK/out/" || return 1; done
    else
        for jar in $jars; do
            for found in "${ZOOKEEPER_HOME:-/usr/share/java}"/lib/netty-"$jar"-[0-9]*.jar "/usr/share/java/netty-$jar.jar"; do
                [ ! -f "$found" ] || cp -L "$found" "$WORK/out/"
            done
        done
    fi
    ls "$WORK"/out/netty-handler*.jar > /dev/null 2>&1 || { complain "netty could not be had: set ZOOKEEPER_HOME"; return 1; }
    finish netty
}

get_consul() {
    [ -d "$DEST/consul" ] && return
    begin consul
    if has_apt && unpack_packages bullseye consul; then
        cp "$WORK/root/usr/bin/consul" "$WORK/out/consul"
    elif command -v consul > /dev/null; then
        ln -s "$(command -v consul)" "$WORK/out/consul"
    fi
    "$WORK/out/consul" version > /dev/null 2>&1 || { complain "Consul could not be had: put 'consul' on PATH"; return 1; }
    finish consul
}

get_etcd() {
    [ -d "$DEST/etcd" ] && return
    begin etcd
    if has_apt && unpack_packages bookworm etcd-server; then
        cp "$WORK/root/usr/bin/etcd" "$WORK/out/etcd"
    elif command -v etcd > /dev/null; then
        ln -s "$(command -v etcd)" "$WORK/out/etcd"
    fi
    # 3.4 runs on arm64 only when told so
    ETCD_UNSUPPORTED_ARCH=arm64 "$WORK/out/etcd" --version > /dev/null 2>&1 || { complain "etcd could not be had: put 'etcd' on PATH"; return 1; }
    finish etcd
}

for server in java zookeeper netty consul etcd; do
    "get_$server" || { MISSING="$MISSING $server"; clean_up; WORK=; }
done
[ -z "$MISSING" ] || { complain "missing:$MISSING"; exit 1; }
