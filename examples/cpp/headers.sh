#!/bin/sh
# Unpacks the headers of onnxruntime's C++ API, from Debian's libonnxruntime-dev, into a folder:
#   sh headers.sh DIR      -> DIR/onnxruntime_cxx_api.h
# The API is versioned: the headers work with any newer library, such as the onnxruntime wheel's.
set -e
out=${1:?usage: headers.sh DIR}
[ -f "$out/onnxruntime_cxx_api.h" ] && exit 0
command -v apt-get >/dev/null || { echo "headers.sh: no apt-get here; take include/ of an onnxruntime release" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
# this system's package sources first; Debian 13 has the package, Debian 12 does not
apt-get -qq download libonnxruntime-dev 2>/dev/null || {
    mkdir -p lists/partial cache/archives/partial
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [signed-by=$keys] http://deb.debian.org/debian trixie main" > sources.list
    set -- -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache"
    apt-get "$@" -qq update
    apt-get "$@" -qq download libonnxruntime-dev 2>/dev/null
}
dpkg -x libonnxruntime-dev*.deb package
mkdir -p "$out"
find package -name '*.h' -exec cp {} "$out/" \;
