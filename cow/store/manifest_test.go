package store

import (
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"cowblk/internal/test"
)

// A readable manifest never leads outside the store or to offsets that overflow.
func FuzzManifest(f *testing.F) {
	s := newStore(f)
	create(f, s, "vm1", CreateOptions{Size: 1 << 20})
	path := s.path(disksDir, "vm1", diskFile)
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(strings.Replace(string(good), "layers/", "../", 2)))
	f.Add([]byte(`{"version":1,"name":"vm1","size":512,"block-size":512,"layers":[{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		decode := func(data []byte) (*Manifest, error) {
			m := new(Manifest)
			return m, decodeDocument(path, data, m, func() error { return m.check("vm1") })
		}
		m, err := decode(data)
		if err != nil {
			if !errors.Is(err, ErrRefused) {
				t.Fatalf("%v is not ErrRefused", err)
			}
			return
		}
		for i := range m.Layers {
			p := s.paths(&m.Layers[i])
			if m.Layers[i].inStore() && (!strings.HasPrefix(p.Map, s.path(layersDir)+"/") ||
				strings.Contains(m.Layers[i].Map, "..")) {
				t.Fatalf("the store's layer lies in %s", p.Map)
			}
		}
		again, err := json.Marshal(m)
		test.Must(t, err)
		if back, err := decode(again); err != nil || len(m.Layers) != len(back.Layers) ||
			m.Size != back.Size {
			t.Fatalf("written back: %+v, %v; was %+v", back, err, m)
		}
	})
}

func TestTree(t *testing.T) {
	s := newStore(t)
	importRaw(t, s, "img", noise(1, imageSize))
	importRaw(t, s, "unused", noise(1, 512))
	create(t, s, "vm1", CreateOptions{From: "img"})
	put(t, s, "vm1", noise(2, 8192), 4096)
	test.Must(t, test.Err(s.Promote(ctx, []string{"vm1"}, "t")))
	create(t, s, "vm2", CreateOptions{From: "vm1@t"})
	create(t, s, "blank", CreateOptions{Size: 1 << 20})
	o := openDisk(t, s, "vm2") // counted while it is open, as of the last flush
	defer o.Close()
	test.Must(t, test.Err(o.Disk.WriteAt(noise(3, 4096), 0)))
	test.Must(t, o.Disk.Flush())
	roots, err := s.Tree()
	test.Must(t, err)
	var lines []string
	var walk func(n *Node, depth int)
	walk = func(n *Node, depth int) {
		line := strings.Repeat(" ", depth) + n.Kind + " " + n.Name + n.Tag
		if n.Usage != nil {
			line += " " + string(rune('0'+n.Usage.Blocks))
		}
		if n.Serving != nil {
			line += " open"
		}
		lines = append(lines, line+" "+strings.Join(n.UserNames, ","))
		for _, c := range n.Children {
			walk(c, depth+1)
		}
	}
	for _, r := range roots {
		walk(r, 0)
	}
	want := []string{
		"image img vm1,vm2",
		" layer t 2 vm1,vm2",
		"  disk vm1 0 ",
		"  disk vm2 1 open ",
		"image unused ",
		"zeros zeros blank",
		" disk blank 0 ",
	}
	if !reflect.DeepEqual(lines, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	cut, err := s.Find(roots, "vm1")
	if err != nil || len(cut) != 1 || len(cut[0].Children) != 1 ||
		len(cut[0].Children[0].Children) != 1 {
		t.Errorf("cut to vm1: %+v, %v", cut, err)
	}
	test.ErrorIs(t, test.Err(s.Find(roots, "vm9")), ErrNotFound, "find")
	// A damaged layer is shown as damaged. The other layers are shown too.
	flip(t, s.path(head(t, s, "vm1").Map), 100)
	roots, err = s.Tree()
	if err != nil || roots[0].Children[0].Children[0].Error == "" ||
		roots[0].Children[0].Children[1].Error != "" {
		t.Errorf("with damage: %+v, %v", roots[0].Children[0].Children, err)
	}
}

func TestDirectories(t *testing.T) {
	env := map[string]string{"HOME": "/home/x", "XDG_RUNTIME_DIR": "/run/user/1"}
	get := func(k string) string { return env[k] }
	dir, err := DefaultDir(get)
	test.Must(t, err)
	want, run := "/home/x/.local/share/cowblk", "/run/user/1/cowblk"
	if os.Geteuid() == 0 {
		want, run = systemDir, systemRun
	}
	if dir != want || runDir(dir, get) != run || runDir("/elsewhere", get) != "/elsewhere/run" {
		t.Errorf("store %s, run %s", dir, runDir(dir, get))
	}
	s := openStore(t, "/"+strings.Repeat("x", 100))
	if _, err := s.Socket("vm1"); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(),
		"--socket-path") {
		t.Errorf("long socket path: %v", err)
	}
	test.ErrorIs(t, test.Err(Open(tempFile(t, "file", nil), Options{})), ErrInvalid,
		"a file as store")
}
