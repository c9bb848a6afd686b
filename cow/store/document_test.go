package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"cowblk/cow/strictjson"
	"cowblk/internal/test"
)

// TestDocumentsAreStrict: each reader of a document refuses content that is no document by
// FORMAT.md.
func TestDocumentsAreStrict(t *testing.T) {
	s := newStore(t)
	importRaw(t, s, "golden", noise(3, 1<<20))
	create(t, s, "d", CreateOptions{From: "golden"})
	disk, image := s.path(disksDir, "d", diskFile), s.path(imagesDir, "golden", imageFile)
	for _, path := range []string{disk, image} {
		text := readFile(t, path)
		readBack := func() error {
			if path == disk {
				return test.Err(s.Disk("d"))
			}
			return test.Err(s.Image("golden"))
		}
		for _, c := range []struct{ what, from, to string }{
			{"another case", `"name"`, `"Name"`},
			{"another case of an inner member", `"fingerprint"`, `"Fingerprint"`},
			{"a member twice", `"version": 1,`, `"version": 1, "version": 1,`},
			{"a member twice in another case", `"version": 1,`, `"version": 1, "VERSION": 1,`},
			{"version missing", `"version": 1,`, ``},
			{"version as float", `"version": 1,`, `"version": 1.0,`},
			{"size as float", `"size": 1048576`, `"size": 1048576.0`},
			{"size beyond 64 bits", `"size": 1048576`, `"size": 18446744073709551617`},
			{"size beyond the largest disk", `"size": 1048576`, `"size": 1152921504606847488`},
			{"unknown", `"version": 1,`, `"version": 1, "x-new": 1,`},
			{"trailing", "}\n", "}\n{}"},
			{"trailing bracket", "}\n", "}\n]"},
			{"two documents", "}\n", "}\n" + string(text)},
		} {
			changed := strings.Replace(string(text), c.from, c.to, 1)
			if c.from == "}\n" { // the last object
				changed = strings.TrimSuffix(string(text), "}\n") + c.to
			}
			if changed == string(text) {
				t.Fatalf("%s: nothing changed in %s", c.what, text)
			}
			write(t, path, []byte(changed))
			err := readBack()
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s in %s: expected %v that names the file, found %v", c.what, path,
					ErrRefused, err)
			}
			if r, err := s.Check(ctx, CheckOptions{}); err != nil || r.Left() == 0 {
				t.Errorf("%s in %s: check: expected a problem, found %+v, %v", c.what, path, r, err)
			}
		}
		// Each member is missing in turn.
		for line := range strings.Lines(string(text)) {
			name, _, ok := strings.Cut(strings.TrimSpace(line), ":")
			if !ok || strings.HasSuffix(strings.TrimSpace(line), "{") ||
				strings.HasSuffix(strings.TrimSpace(line), "[") {
				continue
			}
			without := strings.Replace(string(text), line, "", 1)
			without = strings.NewReplacer(",\n}", "\n}", ",\n  }", "\n  }", ",\n    }",
				"\n    }").Replace(without)
			if !strings.Contains(string(text), line) || strings.Contains(name, "image") ||
				strings.Contains(name, "sha256") {
				continue
			}
			write(t, path, []byte(without))
			err := readBack()
			if !errors.Is(err, ErrRefused) {
				t.Errorf("without %s in %s: expected %v, found %v", name, path, ErrRefused, err)
			}
		}
		write(t, path, text)
	}
	test.Must(t, test.Err(s.Disk("d")))
	// A FIFO in place of a document blocks no command, and a huge file is not read.
	test.Must(t, errors.Join(os.Rename(disk, disk+".kept"), syscall.Mkfifo(disk, 0o600)))
	if _, err := s.Disk("d"); err == nil {
		t.Error("a FIFO as manifest: expected an error, found none")
	}
	os.Remove(disk)
	write(t, disk, nil)
	test.Must(t, os.Truncate(disk, maxDocument+1))
	test.ErrorIs(t, test.Err(s.Disk("d")), ErrRefused, fmt.Sprintf("a manifest of %d bytes",
		maxDocument+1))
}

// TestMayIgnoreIsKept: unknown members in may-ignore survive every rewrite of a document.
func TestMayIgnoreIsKept(t *testing.T) {
	s := newStore(t)
	importRaw(t, s, "golden", noise(3, 1<<20))
	for _, name := range []string{"a", "b"} {
		create(t, s, name, CreateOptions{From: "golden"})
		m := manifestOf(t, s, name)
		m.MayIgnore = []byte(`{"setting":{"n":12345678901234567890,"of":"` + name + `"}}`)
		test.Must(t, s.writeDocument(s.path(disksDir, name, diskFile), m))
	}
	kept := func(after string) {
		t.Helper()
		for _, name := range []string{"a", "b"} {
			m := manifestOf(t, s, name)
			if !bytes.Contains(m.MayIgnore, []byte("12345678901234567890")) ||
				!bytes.Contains(m.MayIgnore, []byte(`"`+name+`"`)) {
				t.Errorf("after %s: disk %s has %s", after, name, m.MayIgnore)
			}
		}
	}
	kept("writing it")
	test.Must(t, test.Err(s.Promote(ctx, []string{"a", "b"}, "t")))
	kept("promotion of both")
	test.Must(t, test.Err(s.Promote(ctx, []string{"a"}, "u")))
	kept("promotion")
	create(t, s, "c", CreateOptions{From: "a@t"})
	if m, err := s.Disk("c"); err != nil || m.MayIgnore != nil {
		t.Errorf("a clone: expected settings of its own, none, found %s, %v", m.MayIgnore, err)
	}
}

// FuzzDocuments: no content of the store's documents panics. Accepted content is accepted again
// after it was written.
func FuzzDocuments(f *testing.F) {
	id := uuid.NewString()
	f.Add([]byte(`{"version":1,"name":"d","size":512,"block-size":512,"created":"2006-11-27T12:00:00Z","layers":[{"uuid":"` + id + `","map":"layers/` + id + `/map","data":"layers/` + id + `/data","data-offset":0,"created":"2006-11-27T12:00:00Z"}]}`))
	f.Add([]byte(`{"pid":1,"socket":"x","control":""}`))
	f.Add([]byte(`{"layers":["` + id + `"]}`))
	f.Add([]byte(`{"layers":null}`))
	f.Add([]byte(`{"from":[],"to":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m := new(Manifest)
		if decodeDocument("disk.json", data, m, func() error { return m.check("d") }) == nil {
			again := new(Manifest)
			text, err := document(m)
			if err == nil {
				err = decodeDocument("disk.json", text, again,
					func() error { return again.check("d") })
			}
			if err != nil {
				t.Fatalf("%q: accepted, but not as it is written: %v", data, err)
			}
		}
		i := new(Image)
		_ = decodeDocument("image.json", data, i, func() error { return i.check("d") })
		_, _ = decodeServing(data)
		_ = new(change).decode(data)
		_ = strictjson.Decode(data, new(journal), strictjson.Options{})
	})
}
