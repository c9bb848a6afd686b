package main

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// The data of a sealed layer has checksums soon after the promotion or, if the disk was promoted
// while stopped, soon after serving starts. Damage after that is an error to the guest, with an
// event, and to the guest of a clone.
func TestDamagedDataIsNeverServed(t *testing.T) {
	dir := storeWith(t, "16M", "a")
	p, f := startServing(t, dir, "a")
	writeAt(t, f, 0, pattern(1, 65536))
	command(t, dir, "promote", "a", "--tag", "one")
	m := manifestOf(t, dir, "a")
	data := filepath.Join(dir, m.Layers[0].Data)
	waitChecksums(t, layer.Paths{Map: filepath.Join(dir, m.Layers[0].Map), Data: data})
	wantAt(t, f, 4096, pattern(1, 4096))
	writeAt(t, f, 8192+512, pattern(2, 512))
	p.end(t)
	f.Close()

	command(t, dir, "promote", "a", "--tag", "two")
	p = start(t, dir, nil, "serve", "a")
	waitChecksums(t, layer.Paths{Map: filepath.Join(dir, m.Layers[1].Map), Data: filepath.Join(dir,
		m.Layers[1].Data)})
	_, events := dialControl(t, dir, "a")
	f = dial(t, filepath.Join(dir, "run", "a.sock"))
	test.Must(t, flipBit(data, 20000))
	var bad *frontend.StatusError
	if _, err := f.Driver(0).ReadAt(make([]byte, 512), 16384); !errors.As(err, &bad) ||
		bad.Status != frontend.StatusIOErr {
		t.Errorf("damaged data: %v", err)
	}
	if _, err := f.Driver(0).WriteAt(pattern(3, 512), 16384); !errors.As(err, &bad) ||
		bad.Status != frontend.StatusIOErr {
		t.Errorf("a write of part of a damaged block: %v", err)
	}
	for limit := time.After(waitTimeout); ; {
		select {
		case e := <-events:
			if e.Event != "COW_IO_ERROR" {
				continue
			}
			if reason, _ := e.Data["reason"].(string); !strings.Contains(reason, data) ||
				!strings.Contains(reason, "checksum of the data from byte 16384 to 20479") {
				t.Errorf("%+v", e.Data)
			}
		case <-limit:
			t.Fatal("no event was emitted")
		}
		break
	}
	wantAt(t, f, 0, pattern(1, 8192))
	wantAt(t, f, 20480, pattern(1, 4096))
	wantAt(t, f, 8192, append(append(pattern(1, 512), pattern(2, 512)...), pattern(1, 3072)...))

	command(t, dir, "create", "b", "--from", "a@one")
	q, g := startServing(t, dir, "b")
	if _, err := g.Driver(0).ReadAt(make([]byte, 65536), 0); !errors.As(err, &bad) ||
		bad.Status != frontend.StatusIOErr {
		t.Errorf("damaged data, in a clone: %v", err)
	}
	q.end(t)
	p.end(t)
}

// waitChecksums waits until a layer has checksums of its data.
func waitChecksums(t *testing.T, p layer.Paths) {
	t.Helper()
	test.Eventually(t, p.Map+": checksums of the data", func() bool {
		found, err := layer.Inspect(vfs.OS{}, p, layer.InspectParams{})
		return err == nil && found.HasChecksums
	})
}
