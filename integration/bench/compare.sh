#!/bin/bash
# Compares the Go benchmarks of a git revision and of the working tree, run in turn,
# with benchstat:
#
#   integration/bench/compare.sh REF [BENCH [PACKAGE...]]
#
# It takes COUNT (6) samples of BENCHTIME (200ms) each. Packages that the revision
# lacks are omitted there. The revision is checked out in a temporary worktree.
set -euo pipefail

ref=${1:?usage: $0 REF [BENCH [PACKAGE...]]}
bench=${2:-.}
shift $(($# < 2 ? $# : 2))
[ $# -gt 0 ] || set -- ./vhost/... ./cow/... ./backend/...
count=${COUNT:-6}
time=${BENCHTIME:-200ms}
GO=${GO:-go}

top=$(git rev-parse --show-toplevel)
commit=$(git -C "$top" rev-parse --verify --quiet "$ref^{commit}") || {
    echo "$ref: no such revision (git log shows them)" >&2
    exit 1
}
work=$(mktemp -d)
trap 'git -C "$top" worktree remove --force "$work/tree" 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
git -C "$top" worktree add --quiet --detach "$work/tree" "$commit"

# Test binaries are built once, so that nothing is compiled between samples.
compile() { # TREE NAME PATTERN...
    local tree=$1 name=$2 package
    shift 2
    mkdir -p "$work/$name"
    cd "$tree"
    for package in $("$GO" list -e -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}' "$@" 2>/dev/null | tr ' ' '='); do
        grep -qs '^func Benchmark' "${package#*=}"/*_test.go || continue
        "$GO" test -c -o "$work/$name/$(tr / . <<<"${package%=*}")" "${package%=*}"
        echo "${package#*=}" >"$work/$name/$(tr / . <<<"${package%=*}").dir"
    done
}
compile "$work/tree" old "$@"
compile "$top" new "$@"

for ((i = 1; i <= count; i++)); do
    for binary in "$work"/new/*.dir; do
        binary=$(basename "$binary" .dir)
        for side in old new; do
            [ -x "$work/$side/$binary" ] || continue
            echo "sample $i of $count: $side $binary" >&2
            cd "$(cat "$work/$side/$binary.dir")"
            "$work/$side/$binary" -test.run '^$' -test.bench "$bench" -test.benchtime "$time" -test.benchmem |
                sed "1i pkg: $(tr . / <<<"$binary")" >>"$work/$side.txt"
        done
    done
done
cd "$top"
touch "$work/old.txt" "$work/new.txt"
"$GO" tool -modfile=integration/go.mod benchstat "$ref=$work/old.txt" "working-tree=$work/new.txt"
