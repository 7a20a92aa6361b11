#!/bin/sh
# Make or update a virtual environment: scripts/venv.sh DIRECTORY REQUIREMENTS
#
# Needs Python 3.11 or newer and, where that comes without pip's wheel (Debian without python3-venv), apt-get to download
# it; never root. Every package is checked against the hashes in REQUIREMENTS. A second call with nothing changed returns
# at once, further REQUIREMENTS are added, calls at the same time wait for each other, and an environment whose
# installation was killed is made anew.
set -eu

[ $# -eq 2 ] || {
    echo "usage: $0 DIRECTORY REQUIREMENTS" >&2
    exit 2
}
mkdir -p "$(dirname "$1")"
venv=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
requirements=$2
root=$(cd "$(dirname "$0")/.." && pwd)
bootstrap=$root/requirements/bootstrap.txt
complete=$venv/.complete # holds what the environment was made from; absent while something is being installed
stamp=$venv/.installed-$(basename "$requirements")

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "error: $*"
    exit 1
}

# What makes an environment another one: its tools, and its place, which its programs name.
foundation() { { cat "$bootstrap" "$0" && printf '%s\n' "$venv" "$root"; } | sha256sum; }

wanted() { cat "$requirements" "$root/pyproject.toml" "$bootstrap" "$0" | sha256sum; }

is_current() {
    [ -x "$venv/bin/python" ] && [ "$(foundation)" = "$(cat "$complete" 2>/dev/null)" ] &&
        [ "$(wanted)" = "$(cat "$stamp" 2>/dev/null)" ]
}

find_python() {
    for name in python3.13 python3.12 python3.11 python3; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    fail "Python 3.11 or newer is needed, and none of python3.13, python3.12, python3.11, python3 is.
Remedy on Debian 12 or newer and Ubuntu 24.04 or newer: apt-get install python3"
}

# pip runs from its wheel, so that it need not be installed: Python bundles one, Debian keeps it in a package.
find_pip_wheel() {
    "$python" - "$private" <<'PYTHON'
import importlib.util, pathlib, sys

spec = importlib.util.find_spec("ensurepip")
homes = [pathlib.Path(spec.origin).parent / "_bundled"] if spec and spec.origin else []
homes += [pathlib.Path("/usr/share/python-wheels"), pathlib.Path(sys.argv[1], "usr/share/python-wheels")]
print(next((str(wheel) for home in homes for wheel in sorted(home.glob("pip-*.whl"))), ""))
PYTHON
}

# Package lists and archives go into a private directory: no root, and nothing is installed on the host.
download_pip_wheel() {
    command -v apt-get >/dev/null ||
        fail "this Python has no pip, and there is no apt-get to download it. Remedy: install pip or ensurepip"
    say "Downloading pip, which this Python lacks"
    mkdir -p "$private/lists/partial" "$private/cache/archives/partial"
    (
        cd "$private"
        apt() {
            apt-get -q -o Dir::State="$private" -o Dir::State::status=/var/lib/dpkg/status \
                -o Dir::Cache="$private/cache" -o APT::Sandbox::User= "$@" >>apt.log 2>&1 || {
                cat apt.log >&2
                fail "apt-get could not download python3-pip-whl. Remedy: check the network, or as root:
apt-get install python3-venv"
            }
        }
        apt update
        apt download python3-pip-whl
        dpkg-deb -x python3-pip-whl_*.deb .
    )
}

create() {
    python=$(find_python)
    private=$(mktemp -d)
    trap 'rm -rf "$private"' EXIT
    trap 'exit 130' INT TERM
    wheel=$(find_pip_wheel)
    if [ -z "$wheel" ]; then
        download_pip_wheel
        wheel=$(find_pip_wheel)
        [ -n "$wheel" ] || fail "Debian's python3-pip-whl holds no wheel of pip"
    fi
    say "Creating $venv with $("$python" --version)"
    "$python" -m venv --clear --without-pip "$venv"
    "$venv/bin/python" "$wheel/pip" install --quiet --disable-pip-version-check --no-compile \
        --require-hashes -r "$bootstrap"
}

# uv takes a fifth of pip's time, but knows none of the settings by which a machine tells pip where packages are.
adopt_pip_settings() {
    index=${PIP_INDEX_URL:-$("$venv/bin/python" -m pip config get global.index-url 2>/dev/null || true)}
    certificates=${SSL_CERT_FILE:-${PIP_CERT:-}}
    [ -z "$index" ] || export UV_DEFAULT_INDEX="$index"
    [ -z "$certificates" ] || export SSL_CERT_FILE="$certificates"
}

uv() { "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" "$@"; }

install() {
    [ "$(foundation)" = "$(cat "$complete" 2>/dev/null)" ] || create
    rm -f "$complete"
    say "Installing $(grep -c == "$requirements") packages of $requirements"
    adopt_pip_settings
    uv --compile-bytecode --require-hashes -r "$requirements"
    uv --no-build-isolation --no-deps --editable "$root"
    wanted >"$stamp"
    foundation >"$complete"
}

is_current && exit 0
exec 9<"$bootstrap" # any file that stays will do as a lock; the environment itself is removed under it
flock 9
is_current || install # another call may have done it meanwhile
