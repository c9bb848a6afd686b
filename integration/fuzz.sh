#!/bin/bash
# fuzz.sh TIME: runs every fuzz test of the tree for TIME (30s, 10m, 2h), one after
# another, and then the hostile tests of a running back-end for TIME each.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:?usage: fuzz.sh TIME}
# Minimization of a new input is bounded: by default it can take the whole time.
git grep -lE '^func Fuzz' -- '*_test.go' | xargs -n1 dirname | sort -u | while read -r dir; do
    sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' "$dir"/*_test.go | sort -u | while read -r f; do
        echo "== $dir $f"
        ${GO:-go} test -run '^$' -fuzz "^$f\$" -fuzztime "$time" -fuzzminimizetime 10x "./$dir" </dev/null
    done
done
case $time in
*h) seconds=$((${time%h} * 3600)) ;;
*m) seconds=$((${time%m} * 60)) ;;
*) seconds=${time%s} ;;
esac
echo "== ./backend TestHostileRing, TestHostileFrontend"
COWBLK_FUZZ_SECONDS=$seconds ${GO:-go} test -count=1 -v -timeout 0 -run '^TestHostile(Ring|Frontend)$' ./backend
