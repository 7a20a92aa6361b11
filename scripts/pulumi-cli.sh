#!/bin/sh
# Build the Pulumi CLI from source: scripts/pulumi-cli.sh FILE
#
# Builds the version that tools/pulumi-cli/go.mod names. Needs Go 1.21 or newer, which downloads the Go version of that
# file if it is older. The first build on a machine takes about 9 CPU minutes; a further checkout's takes seconds, because
# Go's build cache belongs to the user. A second call with nothing changed returns at once, and concurrent calls wait.
set -eu

[ $# -eq 1 ] || {
    echo "usage: $0 FILE" >&2
    exit 2
}
mkdir -p "$(dirname "$1")"
target=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
stamp=$(dirname "$target")/.$(basename "$target").built-from
module=$(cd "$(dirname "$0")/../tools/pulumi-cli" && pwd)

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

sources() { cat "$module/go.mod" "$module/go.sum" "$0" | sha256sum; }

is_current() { [ -x "$target" ] && [ "$(sources)" = "$(cat "$stamp" 2>/dev/null)" ]; }

build() {
    command -v go >/dev/null || fail "the Pulumi CLI cannot be built: there is no 'go' on PATH.
Remedy: install Go 1.21 or newer (https://go.dev/doc/install), or install the CLI itself
(https://www.pulumi.com/docs/install/). Only the tests marked 'cli' need it; 'make test' does not."
    version=$(awk '$1 == "github.com/pulumi/pulumi/pkg/v3" { print $2 }' "$module/go.mod")
    echo "Building the Pulumi CLI $version; the first time on this machine takes some minutes" >&2
    CGO_ENABLED=0 go build -C "$module" -mod=readonly -trimpath \
        -ldflags "-s -w -X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=$version" \
        -o "$target.partial" github.com/pulumi/pulumi/pkg/v3/cmd/pulumi ||
        fail "the Pulumi CLI cannot be built, see above.
Remedy: use Go 1.21 or newer, and check that the Go module proxy is reachable (go env GOPROXY)."
    mv "$target.partial" "$target"
    sources >"$stamp"
}

is_current && exit 0
exec 9<"$0" # not go.mod: go locks that itself
flock 9
is_current || build # another call may have built it meanwhile
