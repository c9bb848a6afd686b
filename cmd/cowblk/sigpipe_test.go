package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"cowblk/internal/test"
)

// The disks are served on when the reader of the log's pipe ends.
func TestServeOutlivesTheReaderOfItsLog(t *testing.T) {
	dir := storeWith(t, "1M", "a")
	r, w, err := os.Pipe()
	test.Must(t, err)
	p := start(t, dir, func(cmd *exec.Cmd) { cmd.Stderr = w }, "serve", "a")
	w.Close()
	socket := filepath.Join(dir, "run", "a.sock")
	f := dial(t, socket)
	r.Close()
	for range 3 { // each connection writes to the log
		writeAt(t, f, 0, pattern(1, 512))
		test.Must(t, f.Reconnect(socket))
	}
	wantAt(t, f, 0, pattern(1, 512))
	p.end(t)
}
