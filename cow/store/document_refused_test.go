package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"cowblk/internal/test"
)

// rewrite changes a document of the store.
func rewrite(t *testing.T, path, from, to string) {
	t.Helper()
	text := readFile(t, path)
	changed := strings.Replace(string(text), from, to, 1)
	if changed == string(text) {
		t.Fatalf("nothing changed in %s", text)
	}
	write(t, path, []byte(changed))
}

// TestBaseWithoutBytes: a manifest whose base has no bytes, or another number than the layers say,
// is refused before a promotion could make a head of it.
func TestBaseWithoutBytes(t *testing.T) {
	for _, size := range []string{"0", "-512", "512", "1000", "1048064", "1049088"} {
		s := newStore(t)
		create(t, s, "image", CreateOptions{From: importRaw(t, s, "golden", noise(3, 1<<20)).Name})
		create(t, s, "place", CreateOptions{Base: tempFile(t, "base.raw", noise(3, 1<<20))})
		for _, name := range []string{"image", "place"} {
			path := s.path(disksDir, name, diskFile)
			rewrite(t, path, "\"size\": 1048576,\n    \"fingerprint\"",
				"\"size\": "+size+",\n    \"fingerprint\"")
			before := snapshot(t, s.dir)
			test.ErrorIs(t, tryOpen(s, name), ErrRefused,
				fmt.Sprintf("%s with a base of %s bytes: open", name, size))
			test.ErrorIs(t, test.Err(s.Promote(ctx, []string{name}, "t")), ErrRefused,
				fmt.Sprintf("%s with a base of %s bytes: promote", name, size))
			if r, err := s.Check(ctx, CheckOptions{Names: []string{name}}); err != nil ||
				r.Left() == 0 {
				t.Errorf("%s with a base of %s bytes: check: expected a problem, found %+v, %v",
					name, size, r, err)
			}
			sameFiles(t, before, snapshot(t, s.dir))
		}
	}
}

// TestDocumentsThatFormatRefuses: content that encoding/json or time.Time accepts and FORMAT.md
// does not is refused, and reported by check.
func TestDocumentsThatFormatRefuses(t *testing.T) {
	const disk, image = "disk", "image"
	for _, c := range []struct{ what, document, from, to string }{
		{"an empty tag", disk, `"tag": "t"`, `"tag": ""`},
		{"an empty tag of the head", disk, "\n    }\n  ]", ",\n      \"tag\": \"\"\n    }\n  ]"},
		{"a tag that is null", disk, `"tag": "t"`, `"tag": null`},
		{"sealed in a head", disk, "\n    }\n  ]",
			",\n      \"sealed\": \"2006-11-27T12:00:00Z\"\n    }\n  ]"},
		{"sealed that is null", disk, `"sealed": "2006-11-27T12:00:00Z"`, `"sealed": null`},
		{"a time with an offset", disk, `"created": "2006-11-27T12:00:00Z"`,
			`"created": "2026-11-28T4:50:17,5+01:00"`},
		{"a sealed with the offset 0", disk, `"sealed": "2006-11-27T12:00:00Z"`,
			`"sealed": "2006-11-27T12:00:00+00:00"`},
		{"a sealed with the offset -0", disk, `"sealed": "2006-11-27T12:00:00Z"`,
			`"sealed": "2006-11-27T12:00:00-00:00"`},
		{"a base that is null", disk, `"base": {`, `"base": null, "x": {`},
		{"only a base that is null", disk, "\"layers\": [", "\"base\": null, \"layers\": ["},
		{"an empty path beside the image", disk, `"image": "golden"`,
			`"image": "golden", "path": ""`},
		{"an identity that is null", disk, `"image": "golden"`,
			`"image": "golden", "identity": null`},
		{"may-ignore that is null", disk, `"version": 1,`, `"version": 1, "may-ignore": null,`},
		{"table-start that is null", disk, `"version": 1,`, `"version": 1, "table-start": null,`},
		{"layers that are null", disk, `"version": 1,`, `"version": 1, "layers": null,`},
		{"another format", image, `"format": "raw"`, `"format": "vmdk"`},
		{"another case of the format", image, `"format": "raw"`, `"format": "RAW"`},
		{"no format", image, `"format": "raw"`, `"format": ""`},
		{"another format of a backing file", image, `"format": "raw"`,
			`"format": "qcow2", "backing": [{"path": "/x", "format": "vmdk"}]`},
		{"backing files that are null", image, `"format": "raw"`,
			`"format": "raw", "backing": null`},
		{"no backing files", image, `"format": "raw"`, `"format": "raw", "backing": []`},
		{"an empty sha256", image, `"format": "raw"`, `"format": "raw", "sha256": ""`},
		{"an import in local time", image, `"imported": "2006-11-27T12:00:00Z"`,
			`"imported": "2006-11-27T13:00:00+01:00"`},
	} {
		s := newStore(t)
		importRaw(t, s, "golden", noise(3, 1<<20))
		create(t, s, "d", CreateOptions{From: "golden"})
		test.Must(t, test.Err(s.Promote(ctx, []string{"d"}, "t")))
		path := s.path(disksDir, "d", diskFile)
		if c.document == image {
			path = s.path(imagesDir, "golden", imageFile)
		}
		rewrite(t, path, c.from, c.to)
		var err error
		if c.document == disk {
			_, err = s.Disk("d")
		} else {
			_, err = s.Image("golden")
		}
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: expected %v that names the file, found %v", c.what, ErrRefused, err)
		}
		if r := check(t, s, CheckOptions{Names: []string{"d"}}); r.Left() == 0 {
			t.Errorf("%s: check: expected a problem, found none", c.what)
		}
	}
}

// TestDocumentsOfEarlierVersions: documents of version 0ae2cef are read. It omits sealed for a
// table's layer of unknown sealing time, and writes the time 1 for one of unknown creation time.
func TestDocumentsOfEarlierVersions(t *testing.T) {
	s := newStore(t)
	importRaw(t, s, "golden", noise(3, 1<<20))
	create(t, s, "d", CreateOptions{From: "golden"})
	put(t, s, "d", noise(7, 8192), 4096)
	test.Must(t, test.Err(s.Promote(ctx, []string{"d"}, "t")))
	path := s.path(disksDir, "d", diskFile)
	rewrite(t, path, ",\n      \"sealed\": \"2006-11-27T12:00:00Z\"", "")
	rewrite(t, path, `"created": "2006-11-27T12:00:00Z"`, `"created": "0001-01-01T00:00:00Z"`)
	rewrite(t, path, `"created": "2006-11-27T12:00:00Z"`,
		`"created": "2006-11-27T12:00:00.123456789Z"`)
	test.Must(t, test.Err(s.Disk("d")))
	if got := content(t, s, "d"); string(got[4096:12288]) != string(noise(7, 8192)) {
		t.Error("what was written is not there")
	}
	if r := check(t, s, CheckOptions{Names: []string{"d"}}); r.Left() != 0 {
		t.Errorf("check: expected no problem, found %d", r.Left())
	}
}

// TestTableOfLayersWithoutTimes: a manifest that create --table makes over layers without times of
// creation and sealing, or over a head with a time of sealing, can be read again.
func TestTableOfLayersWithoutTimes(t *testing.T) {
	f := newTableFiles(t)
	s := newStore(t)
	test.Must(t, test.Err(s.Create(ctx, "first", CreateOptions{Table: f.two()})))
	m := manifestOf(t, s, "first")
	test.Must(t, test.Err(s.Remove(ctx, "first")))
	for i := range m.Layers {
		changeHeader(t, m.Layers[i].Map, func(sector []byte) {
			for _, at := range []int{112, 120} { // created, sealed_at
				binary.LittleEndian.PutUint64(sector[at:], uint64(i)*1e18*uint64(at-112)/8)
			}
		})
	}
	test.Must(t, test.Err(s.Create(ctx, "second", CreateOptions{Table: f.two()})))
	m = manifestOf(t, s, "second")
	if m.Layers[0].Sealed != nil || !m.Layers[0].Created.IsZero() || m.Head().Sealed != nil {
		t.Errorf("expected no times, found %+v", m.Layers)
	}
	content(t, s, "second")
	if r := check(t, s, CheckOptions{}); r.Left() != 0 {
		t.Errorf("check: expected no problem, found %+v", r)
	}
}

// TestNoteThatIsNoDocument: check reports a quiesced guest as a note. A quiesced.json that is no
// document is a problem, because no process thaws the guest.
func TestNoteThatIsNoDocument(t *testing.T) {
	s := newStore(t)
	create(t, s, "d", CreateOptions{Size: 1 << 20})
	for text, wrong := range map[string]bool{
		`{"quiesce":"pause","qmp":"/run/qmp"}` + "\n":                 false,
		`{"quiesce":"guest","agent":"/a","instance":"pid 7"}`:         false,
		`{"quiesce":"guest","libvirt":"qemu:///system","domain":"d"}`: false,
		`{}`:                                    false,
		``:                                      true,
		`garbage`:                               true,
		`{"quiesce":"pause"} x`:                 true,
		`{"quiesce":"pause","new":"x"}`:         true,
		`{"quiesce":"pause","quiesce":"pause"}`: true,
		`{"Quiesce":"pause"}`:                   true,
		`{"quiesce":1}`:                         true,
		`{"quiesce":""}`:                        true,
		`null`:                                  true,
		`[]`:                                    true,
	} {
		write(t, s.path(disksDir, "d", quiesceFile), []byte(text))
		for _, o := range []CheckOptions{{}, {Names: []string{"d"}}, {Repair: true}} {
			r := check(t, s, o)
			if found := r.Left() > 0; found != wrong {
				t.Errorf("%q: check %+v: problem expected: %v, found: %v", text, o, wrong, found)
			}
			for _, k := range r.Reports {
				if k.Name == "d" && !wrong && len(k.Notes) == 0 {
					t.Errorf("%q: expected a note, found none", text)
				}
			}
		}
	}
}

// TestSizeOfAnImage: an image whose data differs in length from image.json is refused, whatever the
// identity says. If only the identity is wrong, the content decides.
func TestSizeOfAnImage(t *testing.T) {
	const in = "\n  \"size\": 1048576"
	const id = "    \"size\": 1048576"
	for _, c := range []struct {
		what    string
		do      func(s *Store)
		refused bool
	}{
		{"a larger size", func(s *Store) {
			rewrite(t, s.path(imagesDir, "golden", imageFile), in, "\n  \"size\": 2097152")
		}, true},
		{"a smaller size", func(s *Store) {
			rewrite(t, s.path(imagesDir, "golden", imageFile), in, "\n  \"size\": 524288")
		}, true},
		{"both sizes larger", func(s *Store) {
			rewrite(t, s.path(imagesDir, "golden", imageFile), in, "\n  \"size\": 2097152")
			rewrite(t, s.path(imagesDir, "golden", imageFile), id, "    \"size\": 2097152")
		}, true},
		{"longer data", func(s *Store) {
			err := os.Truncate(s.ImageData("golden"), 1<<21)
			test.Must(t, err)
		}, true},
		{"shorter data", func(s *Store) {
			err := os.Truncate(s.ImageData("golden"), 1<<19)
			test.Must(t, err)
		}, true},
		{"an identity that is larger",
			func(s *Store) {
				rewrite(t, s.path(imagesDir, "golden", imageFile), id, "    \"size\": 2097152")
			}, false},
		{"an identity of 0 bytes",
			func(s *Store) {
				rewrite(t, s.path(imagesDir, "golden", imageFile), id, "    \"size\": 0")
			}, false},
	} {
		s := newStore(t)
		importRaw(t, s, "golden", noise(3, 1<<20))
		create(t, s, "before", CreateOptions{From: "golden"})
		c.do(s)
		r := check(t, s, CheckOptions{})
		if r.Left() == 0 {
			t.Errorf("%s: check: expected a problem, found none", c.what)
		}
		_, err := s.Create(ctx, "d", CreateOptions{From: "golden"})
		if refused := errors.Is(err, ErrRefused); refused != c.refused || err != nil && !refused {
			t.Errorf("%s: create: refused expected: %v, found %v", c.what, c.refused, err)
		}
		o, err := s.OpenDisk(ctx, "before", OpenOptions{})
		if refused := errors.Is(err, ErrRefused); refused != c.refused || err != nil && !refused {
			t.Errorf("%s: open: refused expected: %v, found %v", c.what, c.refused, err)
		}
		if err == nil {
			test.Must(t, o.Close())
		}
	}
}
