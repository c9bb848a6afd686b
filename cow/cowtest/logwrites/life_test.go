package logwrites

import (
	"bytes"
	"os"
	"path"
	"path/filepath"
	"testing"
	"testing/synctest"

	"cowblk/cow/cowtest/crash"
	"cowblk/cow/vfs"
)

// What a store did to the files of its layers, exported, replays to what they hold.
func TestExportOfALife(t *testing.T) {
	script, err := crash.Parse(`
		create vm 65536 4096
		open vm
		write vm 0+8192
		flush vm
		promote vm one
		write vm 512+1024
		discard vm 4096+8192
		flush vm
		wait
		close vm`)
	if err != nil {
		t.Fatal(err)
	}
	var p *crash.Played
	synctest.Test(t, func(*testing.T) { p, err = (&crash.Life{Script: script}).Play() })
	if err != nil {
		t.Fatal(err)
	}
	files := p.Machine.Files("/store/layers")
	if len(files) != 4 {
		t.Fatalf("expected map and data of two layers, found %q", files)
	}
	empty := 0
	for _, name := range files {
		want, err := p.Machine.Content(name)
		if err != nil {
			t.Fatal(err)
		}
		log := filepath.Join(t.TempDir(), path.Base(name))
		f, err := vfs.OS{}.OpenFile(log, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		w, err := NewWriter(f)
		if err == nil {
			err = Export(w, p.Tape, name)
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		content, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		entries, err := readLog(content)
		if err != nil {
			t.Fatal(err)
		}
		if got := replay(entries, len(want), ""); !bytes.Equal(got, want) {
			t.Errorf("%s: replayed to something else than it holds", name)
		}
		if bytes.Equal(want, make([]byte, len(want))) {
			empty++
		}
	}
	if empty > 1 { // the data of one of them may be
		t.Errorf("%d of the files hold nothing", empty)
	}
}
