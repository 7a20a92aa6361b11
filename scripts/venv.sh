#!/bin/sh
# Create or update a virtual environment: scripts/venv.sh DIRECTORY REQUIREMENTS
#
# Needs Python 3.11 or newer, and apt-get if that Python has no wheel of pip (Debian without python3-venv). Does not need
# root. Every package is checked against the hashes in REQUIREMENTS. A call without changes returns at once. Further
# REQUIREMENTS are added. Concurrent calls wait for each other. An incomplete environment is created again.
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
# The same as observatory/files/checkout.py refuses: colons end a directory of PATH, and so on.
case $PWD/$venv in
*[:,{}\\]* | *\$[A-Za-z_]* | *[[:cntrl:]]*)
    printf 'error: the path %s contains a colon, comma, brace, backslash, control character or $NAME,\n' "$PWD" >&2
    printf 'which programs of the stack read as something else. Remedy: move or rename the directory\n' >&2
    exit 2
    ;;
esac
complete=$venv/.complete # checksum of the environment's inputs; absent during an installation
stamp=$venv/.installed-$(basename "$requirements")

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "error: $*"
    exit 1
}

# Checksum of the inputs that require a new environment: its tools and its path, which its programs contain.
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
    fail "Python 3.11 or newer is needed, but python3.13, python3.12, python3.11 and python3 are missing or older.
Remedy on Debian 12 or newer and Ubuntu 24.04 or newer: apt-get install python3"
}

# pip runs from its wheel and is not installed: Python bundles the wheel, Debian has a package for it.
find_pip_wheel() {
    "$python" - "$private" <<'PYTHON'
import importlib.util, pathlib, sys

spec = importlib.util.find_spec("ensurepip")
homes = [pathlib.Path(spec.origin).parent / "_bundled"] if spec and spec.origin else []
homes += [pathlib.Path("/usr/share/python-wheels"), pathlib.Path(sys.argv[1], "usr/share/python-wheels")]
print(next((str(wheel) for home in homes for wheel in sorted(home.glob("pip-*.whl"))), ""))
PYTHON
}

# Package lists and archives are in a private directory, so nothing is installed on the host, and root is not needed.
download_pip_wheel() {
    command -v apt-get >/dev/null ||
        fail "this Python has no pip, and apt-get is missing to download it. Remedy: install pip or ensurepip"
    say "Downloading pip: this Python has none"
    mkdir -p "$private/lists/partial" "$private/cache/archives/partial"
    (
        cd "$private"
        apt() {
            apt-get -q -o Dir::State="$private" -o Dir::State::status=/var/lib/dpkg/status \
                -o Dir::Cache="$private/cache" -o APT::Sandbox::User= "$@" >>apt.log 2>&1 || {
                cat apt.log >&2
                fail "apt-get could not download python3-pip-whl. Remedy: check the network, or run as root:
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
    private=$(mktemp -d) || fail "no temporary directory. Remedy: set TMPDIR to a directory that can be written to"
    trap 'rm -rf "$private"' EXIT
    trap 'exit 130' INT TERM
    wheel=$(find_pip_wheel)
    if [ -z "$wheel" ]; then
        download_pip_wheel
        wheel=$(find_pip_wheel)
        [ -n "$wheel" ] || fail "the package python3-pip-whl contains no wheel of pip. Remedy: install pip or ensurepip"
    fi
    say "Creating $venv with $("$python" --version)"
    "$python" -m venv --clear --without-pip "$venv"
    "$venv/bin/python" "$wheel/pip" install --quiet --disable-pip-version-check --no-compile \
        --require-hashes -r "$bootstrap"
}

# A setting of pip: of the environment, or of its files, where [install] has priority over [global]. `pip config get`
# does not find what the machine's own file sets.
pip_setting() {
    for section in :env: install global; do
        value=$("$venv/bin/python" -m pip config list 2>/dev/null | sed -n "s/^$section\.$1='\(.*\)'\$/\1/p" | tail -n 1)
        [ -z "$value" ] || break
    done
    printf '%s' "$value"
}

# uv takes a fifth of pip's time, but does not read the settings of pip for the package index.
adopt_pip_settings() {
    # Without a usable cache uv stops.
    cache=${UV_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-}/.cache}/uv}
    mkdir -p "$cache" 2>/dev/null && [ -w "$cache" ] || export UV_NO_CACHE=1
    index=$(pip_setting index-url)
    certificates=${SSL_CERT_FILE:-$(pip_setting cert)}
    [ -z "$index" ] || export UV_DEFAULT_INDEX="$index"
    # As pip does: also the authorities that were added to the machine, such as a proxy's.
    if [ -n "$certificates" ]; then
        export SSL_CERT_FILE="$certificates"
    elif [ -s /etc/ssl/certs/ca-certificates.crt ]; then
        export UV_SYSTEM_CERTS=1
    fi
}

uv() { "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" "$@"; }

install() {
    [ "$(foundation)" = "$(cat "$complete" 2>/dev/null)" ] || create
    rm -f "$complete"
    say "Installing $(grep -c == "$requirements") packages of $requirements"
    adopt_pip_settings
    uv --require-hashes -r "$requirements"
    (cd "$root" && uv --no-build-isolation --no-deps --editable .)
    # Not the SDKs of AWS and Kubernetes, two thirds of the time: Python compiles those modules that a stack uses.
    "$venv/bin/python" -m compileall -qq -j 0 -x '/pulumi_(aws|kubernetes)/' "$venv/lib" || :
    wanted >"$stamp"
    foundation >"$complete"
}

is_current && exit 0
is_writable() { [ -w "$venv" ] || { [ ! -e "$venv" ] && [ -w "$(dirname "$venv")" ]; }; }
is_writable || fail "$venv cannot be written to: the checkout is read-only or belongs to another user.
Remedy: make the checkout writable, or run the command as its owner"
exec 9<"$bootstrap" # the lock is a file that stays: the environment itself can be removed
flock 9
is_current || install # another call may have installed it meanwhile
