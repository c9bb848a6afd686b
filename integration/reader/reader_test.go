//go:build integration

package reader

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cowblk/cow"
	"cowblk/cow/imagefile"
	"cowblk/cow/layer"
	"cowblk/cow/store"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// program is the path of the cowblk under test; set once by TestMain.
var program string

// childDisk is an environment variable. It makes the test binary act as a process that writes to
// the disk that it names, and is killed.
const childDisk = "COWBLK_TEST_READER_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDisk); dir != "" {
		child(dir)
		return
	}
	dir, err := os.MkdirTemp("", "cowblk-reader-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	program = filepath.Join(dir, "cowblk")
	build := exec.Command("go", "build", "-C", filepath.Join("..", ".."), "-o", program,
		"./cmd/cowblk")
	build.Stderr = os.Stderr
	status := 1
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build cowblk:", err)
	} else {
		status = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(status)
}

// child writes and flushes, writes without a flush, prints a line, and waits to be killed.
func child(dir string) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	s, err := store.Open(dir, store.Options{})
	fail(err)
	o, err := s.OpenDisk(context.Background(), "vm", store.OpenOptions{Serve: true,
		Cow: cow.Options{FlushInterval: -1}})
	fail(err)
	_, err = o.Disk.WriteAt(bytes.Repeat([]byte{0xf1}, 8192), 4096)
	fail(err)
	fail(o.Disk.Flush())
	_, err = o.Disk.WriteAt(bytes.Repeat([]byte{0xf2}, 8192), 65536)
	fail(err)
	fmt.Println("written")
	select {}
}

// TestReaderAgrees compares contents and findings on stores of every kind.
func TestReaderAgrees(t *testing.T) {
	for name, fill := range stores() {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			fill(w)
			if name != "pending change" { // check reports this as a leftover of the store
				w.compareChecks("after creation")
			}
			// Read before cowblk opens anything: an open completes pending changes.
			contents := map[string][]byte{}
			refs := w.refs()
			if name == "pending change" {
				refs = []string{"one", "two", "one@tag", "two@tag"}
			}
			for _, ref := range refs {
				content, code, log := w.reader("content", ref)
				if code != 0 {
					t.Errorf("%s: the reader ends with exit code %d: %s", ref, code, log)
				}
				contents[ref] = content
			}
			compared := 0
			for _, ref := range refs {
				content, _ := w.export(ref)
				if !bytes.Equal(content, contents[ref]) {
					t.Errorf("%s: export has %d bytes, the reader %d, and they differ", ref,
						len(content), len(contents[ref]))
				}
				compared++
			}
			if compared < 1 {
				t.Error("nothing was compared")
			}
			w.compareChecks("after the exports")
		})
	}
}

// TestReaderOfOpenAndKilledDisks: the files contain the flushed content, cowblk serves the written
// content.
func TestReaderOfOpenAndKilledDisks(t *testing.T) {
	w := newWorld(t, 2)
	w.create("vm", store.CreateOptions{Size: 1 << 20})
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), childDisk+"="+w.store.Dir())
	c.Stderr = os.Stderr
	stdout, err := c.StdoutPipe()
	test.Must(t, err)
	test.Must(t, c.Start())
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}()
	line := make([]byte, len("written\n"))
	test.Must(t, test.Err(stdout.Read(line)))
	flushed := make([]byte, 1<<20)
	copy(flushed[4096:], bytes.Repeat([]byte{0xf1}, 8192))
	written := bytes.Clone(flushed)
	copy(written[65536:], bytes.Repeat([]byte{0xf2}, 8192))

	if _, code, log := w.reader("content", "vm"); code != 4 {
		t.Errorf("an open disk: expected exit code 4, in use, found %d: %s", code, log)
	}
	content, code, log := w.reader("content", "vm", "--unlocked")
	if code != 0 || !bytes.Equal(content, flushed) || !warned(log).Unclean {
		t.Errorf("an open disk without its locks: expected the flushed content and a warning, found exit code %d: %s", code, log)
	}
	if found := w.check()["vm"]; len(found.Problems) > 0 || found.Blocks != 2 || !found.InUse {
		t.Errorf("check of an open disk: expected at least 2 blocks, found %+v", found)
	}
	test.Must(t, c.Process.Kill())
	_ = c.Wait()
	content, code, log = w.reader("content", "vm")
	if code != 0 || !bytes.Equal(content, flushed) || !warned(log).SharedMap {
		t.Errorf("a killed disk: expected the flushed content and a warning of a shared map, found exit code %d: %s", code, log)
	}
	if found := w.check()["vm"]; len(found.Problems) > 0 || found.Blocks != 4 || !found.Unclean {
		t.Errorf("check of a killed disk: expected 4 blocks, unclean, found %+v", found)
	}
	if found := w.readerCheck()["vm"]; len(found.Problems) > 0 || found.Blocks != 2 ||
		!found.Unclean {
		t.Errorf("the reader's check of a killed disk: expected 2 blocks, unclean, found %+v",
			found)
	}
	content, log = w.export("vm")
	if !bytes.Equal(content, written) || !strings.Contains(log, "blocks=2") {
		t.Errorf("export of a killed disk: expected the written content, and 2 recovered blocks in the log; equal: %v; log: %s", bytes.Equal(content, written), log)
	}
	o, err := w.store.OpenDisk(context.Background(), "vm", store.OpenOptions{})
	test.Must(t, err)
	test.Must(t, o.Close())
	if content, code, log := w.reader("content", "vm"); code != 0 ||
		!bytes.Equal(content, written) {
		t.Errorf("after an open: expected the written content, found exit code %d: %s", code, log)
	}
}

// TestReaderFindsDamage: both checkers report the same damage.
func TestReaderFindsDamage(t *testing.T) {
	header := func(change func(s []byte)) func(w *world, p layer.Paths) {
		return func(w *world, p layer.Paths) {
			w.patch(p.Map, 0, 512, func(s []byte) {
				change(s)
				binary.LittleEndian.PutUint32(s[508:], crc32.Checksum(s[:508],
					crc32.MakeTable(crc32.Castagnoli)))
			})
		}
	}
	put32 := func(at int, v uint32) func(w *world, p layer.Paths) {
		return header(func(s []byte) { binary.LittleEndian.PutUint32(s[at:], v) })
	}
	put64 := func(at int, v uint64) func(w *world, p layer.Paths) {
		return header(func(s []byte) { binary.LittleEndian.PutUint64(s[at:], v) })
	}
	for name, damage := range map[string]func(w *world, p layer.Paths){
		"none":                    func(*world, layer.Paths) {},
		"magic":                   header(func(s []byte) { s[0]++ }),
		"version":                 put32(8, 2),
		"map_offset":              put32(12, 8192),
		"must_refuse":             put64(16, 1),
		"may_ignore":              header(func(s []byte) { s[31] |= 0x80 }),
		"clear_on_open":           header(func(s []byte) { s[39] |= 0x80 }),
		"uuid":                    header(func(s []byte) { s[40]++ }),
		"parent":                  header(func(s []byte) { s[56]++ }),
		"size":                    put64(72, 512),
		"block_size":              put32(80, 8192),
		"state":                   put32(84, 3),
		"flags":                   put32(88, 2),
		"map_crc":                 header(func(s []byte) { s[92]++ }),
		"owned":                   header(func(s []byte) { s[96]++ }),
		"owned beyond the blocks": put64(96, 1<<40),
		"data_offset":             put64(104, 512),
		"sealed_at":               put64(120, 0),
		"base_size":               put64(128, 4096),
		"base":                    header(func(s []byte) { s[136]++ }),
		"sums_crc":                header(func(s []byte) { s[168]++ }),
		"reserved":                header(func(s []byte) { s[400] = 1 }),
		"header_crc": func(w *world, p layer.Paths) {
			w.patch(p.Map, 508, 4, func(s []byte) { s[0]++ })
		},
		"reserved sectors": func(w *world, p layer.Paths) {
			w.patch(p.Map, 1000, 1, func(s []byte) { s[0] = 1 })
		},
		"bitmap": func(w *world, p layer.Paths) {
			w.patch(p.Map, 4096, 1, func(s []byte) { s[0] ^= 0x10 })
		},
		"bit beyond the last": func(w *world, p layer.Paths) {
			w.patch(p.Map, 8191, 1, func(s []byte) { s[0] = 0x80 })
		},
		"data sum": func(w *world, p layer.Paths) {
			w.patch(p.Map, 8192, 1, func(s []byte) { s[0]++ })
		},
		"data": func(w *world, p layer.Paths) {
			w.patch(p.Data, 0, 1, func(s []byte) { s[0]++ })
		},
		"map cut": func(w *world, p layer.Paths) {
			test.Must(w.t, os.Truncate(p.Map, 8191))
		},
		"data cut": func(w *world, p layer.Paths) {
			test.Must(w.t, os.Truncate(p.Data, 4096))
		},
		"data cut, nothing lost": func(w *world, p layer.Paths) {
			test.Must(w.t, os.Truncate(p.Data, 5*4096))
		},
		"map gone": func(w *world, p layer.Paths) {
			test.Must(w.t, os.Rename(p.Map, p.Map+".away"))
		},
		"data gone": func(w *world, p layer.Paths) {
			test.Must(w.t, os.Rename(p.Data, p.Data+".away"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 3)
			w.create("vm", store.CreateOptions{Size: 8 * 4096})
			o, err := w.store.OpenDisk(context.Background(), "vm", store.OpenOptions{})
			test.Must(t, err)
			_, err = o.Disk.WriteAt(bytes.Repeat([]byte{7}, 4*4096), 4096)
			test.Must(t, err)
			_, err = o.Disk.WriteAt(bytes.Repeat([]byte{8}, 4096), 0)
			test.Must(t, err)
			test.Must(t, o.Close())
			w.promote("t", "vm")
			w.addSums("vm")
			m, err := w.store.Disk("vm")
			test.Must(t, err)
			damage(w, w.paths(&m.Layers[0]))
			w.compareChecks(name)
		})
	}
}

// TestReaderOfDocuments: both programs accept and refuse the same documents and the same
// combinations of layers.
func TestReaderOfDocuments(t *testing.T) {
	replace := func(what, from, to string) func(w *world) {
		return func(w *world) {
			path := filepath.Join(w.store.Dir(), filepath.FromSlash(what))
			text, err := os.ReadFile(path)
			test.Must(w.t, err)
			changed := bytes.Replace(text, []byte(from), []byte(to), 1)
			if bytes.Equal(changed, text) {
				w.t.Fatalf("nothing changed in %s", text)
			}
			test.Must(w.t, os.WriteFile(path, changed, 0o644))
		}
	}
	const disk, image = "disks/vm/disk.json", "images/golden/image.json"
	// fails reports whether both find a problem.
	for _, c := range []struct {
		name  string
		do    func(w *world)
		fails bool
	}{
		{"nothing", func(*world) {}, false},
		{"may-ignore", replace(disk, `"version": 1,`, `"version": 1, "may-ignore": {"Name": 1.5e3},`), true}, // not an integer
		{"may-ignore with integers", replace(disk, `"version": 1,`,
			`"version": 1, "may-ignore": {"Name": [15, {}]},`), false},
		{"may-ignore twice the same", replace(disk, `"version": 1,`,
			`"version": 1, "may-ignore": {"a": 1, "a": 1},`), true},
		{"may-ignore is no object", replace(disk, `"version": 1,`,
			`"version": 1, "may-ignore": 1,`), true},
		{"white space", replace(disk, `"version": 1,`, "\t\"version\"\r\n:\t1,"), false},
		{"escapes", replace(disk, `"name": "vm"`, `"n\u0061me": "\u0076m"`), false},
		{"half a character", replace(disk, `"name": "vm"`, `"name": "vm\ud800"`), true},
		{"another case", replace(disk, `"name"`, `"Name"`), true},
		{"twice", replace(disk, `"version": 1,`, `"version": 1, "version": 1,`), true},
		{"missing", replace(disk, `"version": 1,`, ``), true},
		{"version 2", replace(disk, `"version": 1,`, `"version": 2,`), true},
		{"float", replace(disk, `"block-size": 4096`, `"block-size": 4096.0`), true},
		{"exponent", replace(disk, `"block-size": 4096`, `"block-size": 4096e0`), true},
		{"leading zero", replace(disk, `"block-size": 4096`, `"block-size": 04096`), true},
		{"null", replace(disk, `"block-size": 4096`, `"block-size": null`), true},
		{"another block size", replace(disk, `"block-size": 4096`, `"block-size": 8192`), true},
		{"offset on an image", replace(disk, `"offset": 0`, `"offset": 512`), true},
		{"another size of the base", replace(disk, `"size": 153600,`+"\n    \"fing",
			`"size": 153088,`+"\n    \"fing"), true},
		{"no bytes of the base", replace(disk, `"size": 153600,`+"\n    \"fing",
			`"size": 0,`+"\n    \"fing"), true},
		{"trailing", replace(disk, "\n}\n", "\n}\n1"), true},
		{"trailing space", replace(disk, "\n}\n", "\n}\n \t\r\n"), false},
		{"byte order mark", replace(disk, "{\n", "\ufeff{\n"), true},
		{"null for a base", replace(disk, `"layers": [`, `"base": null, "layers": [`), true},
		{"an empty path", replace(disk, `"image": "golden"`, `"image": "golden", "path": ""`),
			true},
		{"an empty tag", replace(disk, `"data-offset": 0,`, `"data-offset": 0, "tag": "",`), true},
		{"sealed in a head", replace(disk, `"data-offset": 0,`,
			`"data-offset": 0, "sealed": "2006-11-27T12:00:00Z",`), true},
		{"a time with an offset", replace(disk, `"data-offset": 0,`,
			`"data-offset": 0, "sealed": "2006-11-27T12:00:00+00:00",`), true},
		{"image: another format", replace(image, `"format": "raw"`, `"format": "vmdk"`), true},
		{"image: no backing files", replace(image, `"format": "raw"`,
			`"format": "raw", "backing": []`), true},
		{"image: another size", replace(image, "\n  \"size\": 153600", "\n  \"size\": 154112"),
			true},
		{"image: another case", replace(image, `"fingerprint"`, `"Fingerprint"`), true},
		{"image: another fingerprint", replace(image, `"fingerprint": "`, `"fingerprint": "0123`),
			true},
		{"image: unknown member", replace(image, `"version": 1,`, `"version": 1, "x": 1,`), true},
		{"image: content", func(w *world) {
			path := filepath.Join(w.store.Dir(), "images", "golden", "data")
			test.Must(w.t, os.Chmod(path, 0o644))
			w.patch(path, 0, 1, func(s []byte) { s[0]++ })
		}, true},
		{"sealed top layer", func(w *world) {
			m, err := w.store.Disk("vm")
			test.Must(w.t, err)
			l, err := layer.Open(vfs.OS{}, w.paths(m.Head()), layer.OpenParams{Write: true})
			test.Must(w.t, err)
			test.Must(w.t, l.Seal(time.Unix(1700000000, 0)))
			test.Must(w.t, l.Close())
		}, true},
		{"two owners", func(w *world) {
			base, data := w.file("base", 1<<20), w.blank("data", 1<<20)
			for i := range 2 {
				w.create(fmt.Sprint("table", i),
					store.CreateOptions{Table: fmt.Sprintf("0 64 cow %s 0 %s %s %d", base,
						w.blank(fmt.Sprint("map", i), 16384), data, 64*i)})
			}
			name := "disks/table1/disk.json"
			replace(name, `"data-offset": 32768`, `"data-offset": 0`)(w)
			m, err := w.store.Disk("table1")
			test.Must(w.t, err)
			w.patch(m.Head().Map, 0, 512, func(s []byte) {
				binary.LittleEndian.PutUint64(s[104:], 0)
				binary.LittleEndian.PutUint32(s[508:], crc32.Checksum(s[:508],
					crc32.MakeTable(crc32.Castagnoli)))
			})
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 4)
			_, err := w.store.Import(context.Background(), w.file("golden.raw", 300*512), "golden",
				store.ImportOptions{Format: imagefile.Raw})
			test.Must(t, err)
			w.create("vm", store.CreateOptions{From: "golden"})
			w.change("vm", 5)
			c.do(w)
			w.compareChecks(c.name)
			found := false
			for _, f := range w.readerCheck() {
				found = found || len(f.Problems) > 0
			}
			if found != c.fails {
				t.Errorf("problems: expected some: %v, found some: %v", c.fails, found)
			}
		})
	}
}
