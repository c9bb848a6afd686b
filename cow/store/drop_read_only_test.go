package store

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"cowblk/cow"
	"cowblk/cow/layer"
	"cowblk/internal/test"
)

// A read-only open drops nothing, and does not log that it does.
func TestDropUnflushedReadOnly(t *testing.T) {
	s := openStore(t, t.TempDir())
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	o, err := s.OpenDisk(ctx, "vm1", OpenOptions{Serve: true})
	test.Must(t, err)
	data := noise(1, 4096)
	test.Must(t, test.Err(o.Disk.WriteAt(data, 8192)))
	if _, err := o.Disk.Detach(); err != nil { // as if killed
		t.Fatal(err)
	}
	o.Lock.Unlock()
	read := func(o OpenOptions) ([]byte, string) {
		t.Helper()
		var log bytes.Buffer
		o.Cow.Log = slog.New(slog.NewTextHandler(&log, nil))
		d, err := s.OpenDisk(ctx, "vm1", o)
		test.Must(t, err)
		p := make([]byte, 4096)
		test.Must(t, test.Err(d.Disk.ReadAt(p, 8192)))
		test.Must(t, d.Close())
		return p, log.String()
	}
	p, log := read(OpenOptions{ReadOnly: true, Cow: cow.Options{Unflushed: layer.DropUnflushed}})
	if bytes.Equal(p, data) || strings.Contains(log, "is given up") || !strings.Contains(log,
		"they stay") {
		t.Errorf("read-only: data there: %t, log %q", bytes.Equal(p, data), log)
	}
	if p, log = read(OpenOptions{}); !bytes.Equal(p, data) {
		t.Errorf("the next process has lost it: %q", log)
	}
}
