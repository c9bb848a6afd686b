package daemon

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/backend/backendtest"
	"cowblk/backend/control"
	"cowblk/backend/nbd"
	"cowblk/internal/test"
)

// openIn returns the number of descriptors of this process on files below dir.
func openIn(t testing.TB, dir string) (n int) {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	test.Must(t, err)
	for _, e := range all {
		if at, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil &&
			strings.HasPrefix(at, dir+"/") {
			n++
		}
	}
	return n
}

func TestExportCommands(t *testing.T) {
	st := newStore(t, nil, "test", "a", "b")
	for _, disk := range []string{"a", "b"} {
		_, err := st.Promote(t.Context(), []string{disk}, "t")
		test.Must(t, err)
	}
	d := start(t, st, Options{}, "test")
	dir := t.TempDir()
	c := d.control()
	layers := filepath.Join(st.Dir(), "layers")
	before := openIn(t, layers)
	open := func() int { return openIn(t, layers) - before }

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
	refused(control.GenericError, "not found", "cow-export-add", "name", "no")
	refused(control.GenericError, "missing", "cow-export-add", "", "")
	var added nbd.ExportInfo
	test.Must(t, ask("cow-export-add", "name", "a@t", &added))
	test.Must(t, ask("cow-export-add", "name", "b@t", nil))
	refused(control.GenericError, "exists", "cow-export-add", "name", "a@t")
	if added.Name != "a@t" || added.Size != backendtest.Size || len(added.URIs) != 2 {
		t.Errorf("added %+v", added)
	}
	both := open()
	var info NBDInfo
	test.Must(t, ask("query-cow-exports", "", "", &info))
	if fmt.Sprint(info.Addresses) != fmt.Sprintf("[unix:%s %s]", socket, bound["addr"]) ||
		len(info.Exports) != 2 {
		t.Errorf("%+v", info)
	}
	for _, e := range info.Exports {
		for _, uri := range e.URIs {
			if out, err := exec.Command("nbdinfo", "--size", uri).CombinedOutput(); err != nil ||
				strings.TrimSpace(string(out)) != fmt.Sprint(backendtest.Size) {
				t.Errorf("nbdinfo %s: %v: %s", uri, err, out)
			}
		}
	}
	test.Must(t, ask("cow-export-del", "name", "a@t", nil))
	refused(control.DeviceNotFound, "a@t", "cow-export-del", "name", "a@t")
	if n := open(); n == 0 || 2*n != both {
		t.Errorf("%d files are open for one export, %d for two", n, both)
	}
	test.Must(t, ask("nbd-server-stop", "", "", nil))
	test.Must(t, ask("query-cow-exports", "", "", &info))
	if n := open(); n != 0 || len(info.Addresses)+len(info.Exports) != 0 {
		t.Errorf("after stop: %d files are open, %+v", n, info)
	}
	test.Must(t, ask("nbd-server-start", "addr", "unix:"+socket, nil))
	test.Must(t, ask("cow-export-add", "name", "a@t", nil))
	test.Must(t, d.nbd.stop(true))
	if n := open(); n != 0 {
		t.Errorf("at the end %d files are open", n)
	}
	refused(control.GenericError, "closed", "nbd-server-start", "addr", "unix:"+socket)
}
