package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/cow/store"
	"cowblk/internal/test"
)

// If the name of the disk or the path of the store is too long for a socket, create warns,
// --socket-path suffices, and every command finds the control socket.
func TestLongSocketPaths(t *testing.T) {
	for what, size := range map[string]struct{ dir, name int }{
		"the name does not fit":          {60, store.MaxName},
		"a short name just fits":         {85, 20},
		"the name in its place does not": {86, 20},
		"no name fits":                   {105, 1},
		"nothing fits by far":            {1000, 3},
	} {
		t.Run(what, func(t *testing.T) {
			short := shortDir(t)
			dir := filepath.Join(short, "s")
			for len(dir)+5 < size.dir { // "/run/"
				dir = filepath.Join(dir, strings.Repeat("x", min(200, size.dir-len(dir)-5)))
			}
			test.Must(t, os.MkdirAll(dir, 0o755))
			name := strings.Repeat("n", size.name)
			socket := filepath.Join(short, "sock")
			var errs bytes.Buffer
			var printed bytes.Buffer
			a := newScript(t).app(&printed, &errs)
			if code := run([]string{"--store", dir, "create", name, "--size", "1M"},
				a); code != exitOK || !strings.Contains(errs.String(), "--socket-path") {
				t.Fatalf("create: exit %d, %s", code, &errs)
			}
			_, advice, _ := strings.Cut(printed.String(), "\nnext: ")
			if words := strings.Fields(advice); len(words) != 7 || words[3] != "serve" ||
				words[5] != "--socket-path" || len(words[6]) > 107 {
				t.Errorf("create advises %s", advice)
			}
			p := start(t, dir, nil, "serve", name)
			if code := p.outcome(t); code != exitUsage || !strings.Contains(p.log.String(),
				"--socket-path") {
				t.Errorf("serve without a path: exit %d\n%s", code, p.log.String())
			}
			p = start(t, dir, nil, "serve", name, "--socket-path", socket)
			f := dial(t, socket)
			writeAt(t, f, 0, pattern(1, 4096))
			if text := command(t, dir, "info", name); !strings.Contains(text, "front-end") {
				t.Errorf("info:\n%s", text)
			}
			command(t, dir, "promote", name, "--tag", "t")
			s, err := store.Open(dir, store.Options{})
			test.Must(t, err)
			v, ok := s.Serving(name)
			if !ok || len(v.Control) > 107 {
				t.Fatalf("%+v", v)
			}
			wantSocket(t, v.Control, 0o600, 0)
			f.Close()
			// A takeover passes the sockets on, wherever they are.
			next := start(t, dir, nil, "serve", name, "--takeover")
			if code := p.outcome(t); code != exitOK {
				t.Fatalf("takeover: exit %d\n%s\n%s", code, p.log.String(), next.log.String())
			}
			f = dial(t, socket)
			wantAt(t, f, 0, pattern(1, 4096))
			f.Close()
			if text := command(t, dir, "info", name); !strings.Contains(text,
				fmt.Sprintf("process %d", next.cmd.Process.Pid)) {
				t.Errorf("info:\n%s", text)
			}
			next.end(t)
			if _, err := os.Lstat(v.Control); !os.IsNotExist(err) {
				t.Errorf("the control socket is left: %v", err)
			}
		})
	}
}
