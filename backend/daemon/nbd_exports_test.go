package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"cowblk/backend/control"
	"cowblk/backend/nbd"
	"cowblk/internal/test"
)

// shelf opens disks of zeros by name and knows which are open.
type shelf struct {
	mu   sync.Mutex
	open map[string]int
}

type volume struct {
	*bytes.Reader
	name string
	from *shelf
}

func (v *volume) BlockSize() int { return 4096 }

func (v *volume) Close() error {
	v.from.mu.Lock()
	defer v.from.mu.Unlock()
	v.from.open[v.name]--
	return nil
}

func (s *shelf) Open(_ context.Context, name string) (NBDDisk, error) {
	if strings.HasPrefix(name, "no") {
		return nil, fmt.Errorf("%s is not there", name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[name]++
	return &volume{bytes.NewReader(make([]byte, 1<<20)), name, s}, nil
}

func (s *shelf) count() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.open {
		n += k
	}
	return n
}

func TestExportCommands(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	disks := &shelf{open: map[string]int{}}
	r := newNBDExports(NBDOptions{Open: disks.Open}, log, func(string) bool { return false })
	dir := t.TempDir()
	server := control.NewServer(control.Options{Log: log})
	r.register(server)
	test.Must(t, server.Listen(filepath.Join(dir, "ctl")))
	go server.Serve()
	t.Cleanup(func() { test.Must(t, server.Close()) })
	c, err := control.Dial(filepath.Join(dir, "ctl"), 10*time.Second)
	test.Must(t, err)

	ask := func(command, key, value string, out any) error {
		var args any
		if key != "" {
			args = map[string]string{key: value}
		}
		return c.Run(t.Context(), command, args, out)
	}
	refused := func(class, text, command, key, value string) {
		t.Helper()
		err := ask(command, key, value, nil)
		var e *control.Error
		if !errors.As(err, &e) || e.Class != class || !strings.Contains(e.Desc, text) {
			t.Errorf("%s %s: %v", command, value, err)
		}
	}
	refused(control.DeviceNotActive, "nbd-server-start", "cow-export-add", "name", "a@t")
	refused(control.DeviceNotActive, "nbd-server-start", "cow-export-del", "name", "a@t")
	refused(control.GenericError, "expected unix:PATH", "nbd-server-start", "addr", "/path")
	refused(control.GenericError, "listen on", "nbd-server-start", "addr", "unix:"+dir)
	refused(control.GenericError, "unexpected", "nbd-server-start", "port", "1")
	test.Must(t, ask("nbd-server-stop", "", "", nil)) // it need not run

	socket := filepath.Join(dir, "nbd")
	test.Must(t, ask("nbd-server-start", "addr", "unix:"+socket, nil))
	var bound map[string]string
	test.Must(t, ask("nbd-server-start", "addr", "tcp:0", &bound))
	refused(control.GenericError, "no is not there", "cow-export-add", "name", "no")
	refused(control.GenericError, "missing", "cow-export-add", "", "")
	var added nbd.ExportInfo
	test.Must(t, ask("cow-export-add", "name", "a@t", &added))
	test.Must(t, ask("cow-export-add", "name", "b@t", nil))
	refused(control.GenericError, "exists", "cow-export-add", "name", "a@t")
	if added.Name != "a@t" || added.Size != 1<<20 || len(added.URIs) != 2 || disks.count() != 2 {
		t.Errorf("added %+v, %d open", added, disks.count())
	}
	var info NBDInfo
	test.Must(t, ask("query-cow-exports", "", "", &info))
	if fmt.Sprint(info.Addresses) != fmt.Sprintf("[unix:%s %s]", socket, bound["addr"]) || len(info.Exports) != 2 {
		t.Errorf("%+v", info)
	}
	for _, e := range info.Exports {
		for _, uri := range e.URIs {
			if out, err := exec.Command("nbdinfo", "--size", uri).CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "1048576" {
				t.Errorf("nbdinfo %s: %v: %s", uri, err, out)
			}
		}
	}
	test.Must(t, ask("cow-export-del", "name", "a@t", nil))
	refused(control.DeviceNotFound, "a@t", "cow-export-del", "name", "a@t")
	test.Equal(t, disks.count(), 1, "disks are open")
	test.Must(t, ask("nbd-server-stop", "", "", nil))
	test.Must(t, ask("query-cow-exports", "", "", &info))
	if n := disks.count(); n != 0 || len(info.Addresses)+len(info.Exports) != 0 {
		t.Errorf("after stop: %d disks are open, %+v", n, info)
	}
	test.Must(t, ask("nbd-server-start", "addr", "unix:"+socket, nil))
	test.Must(t, ask("cow-export-add", "name", "a@t", nil))
	test.Must(t, r.stop(true))
	if n := disks.count(); n != 0 {
		t.Errorf("at the end %d disks are open", n)
	}
	refused(control.GenericError, "closed", "nbd-server-start", "addr", "unix:"+socket)
}
