package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The disks are served on when the reader of the log's pipe ends.
func TestServeOutlivesTheReaderOfItsLog(t *testing.T) {
	dir := shortDir(t)
	command(t, dir, "create", "a", "--size", "1M")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, dir, func(cmd *exec.Cmd) { cmd.Stderr = w }, "serve", "a")
	w.Close()
	socket := filepath.Join(dir, "run", "a.sock")
	f := dial(t, socket)
	r.Close()
	for range 3 { // each connection writes to the log
		writeAt(t, f, 0, pattern(1, 512))
		if err := f.Reconnect(socket); err != nil {
			t.Fatal(err)
		}
	}
	wantAt(t, f, 0, pattern(1, 512))
	p.end(t)
}
