#!/bin/bash
# fuzz.sh TIME: runs every fuzz test of the tree for TIME, one after another.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:?usage: fuzz.sh TIME}
# Minimising a new input is bounded: left alone it eats the whole time.
git grep -lE '^func Fuzz' -- '*_test.go' | xargs -n1 dirname | sort -u | while read -r dir; do
    sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' "$dir"/*_test.go | sort -u | while read -r f; do
        echo "== $dir $f"
        ${GO:-go} test -run '^$' -fuzz "^$f\$" -fuzztime "$time" -fuzzminimizetime 10x "./$dir" </dev/null
    done
done
