package main

import (
	"bytes"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/coverage"
	"strings"
)

var quiet = slog.New(slog.DiscardHandler)

func main() {
	dir := os.Args[1]
	requests(dir)
	promotion(dir)
	promotionSteps(dir)
}

// record writes the counters of what step runs to dir/name. The counters are read before the first
// system call after step.
func record(dir, name string, step func()) {
	must(coverage.ClearCounters())
	recordMore(dir, name, step)
}

// recordMore is record without clearing the counters: what ran since the last record counts too.
func recordMore(dir, name string, step func()) {
	out := filepath.Join(dir, name)
	must(os.Mkdir(out, 0o700))
	must(coverage.WriteMetaDir(out))
	meta, err := filepath.Glob(filepath.Join(out, "covmeta.*"))
	must(err)
	var counters bytes.Buffer
	step()
	must(coverage.WriteCounters(&counters))
	// covcounters.HASH.PROCESS.TIME, with the hash of covmeta.HASH
	hash := strings.TrimPrefix(filepath.Ext(meta[0]), ".")
	must(os.WriteFile(filepath.Join(out, "covcounters."+hash+".1.1"), counters.Bytes(), 0o600))
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
