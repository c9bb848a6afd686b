package nbd

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/internal/test"
)

func TestParseAddress(t *testing.T) {
	for _, tt := range []struct {
		in, out, uri string // out: String, empty: in; uri: of the export "vm1@tag"
	}{
		{"unix:/run/x.nbd", "", "nbd+unix:///vm1@tag?socket=/run/x.nbd"},
		{"unix:/a b&c+d:e%", "", "nbd+unix:///vm1@tag?socket=/a%20b%26c%2Bd%3Ae%25"},
		{"unix:x", "", "nbd+unix:///vm1@tag?socket=x"},
		{"tcp:10809", "tcp:127.0.0.1:10809", "nbd://127.0.0.1:10809/vm1@tag"},
		{"tcp::10809", "tcp:127.0.0.1:10809", "nbd://127.0.0.1:10809/vm1@tag"},
		{"tcp:0.0.0.0:1", "", "nbd://localhost:1/vm1@tag"},
		{"tcp:[::]:1", "", "nbd://localhost:1/vm1@tag"},
		{"tcp:[::1]:0", "", "nbd://[::1]:0/vm1@tag"},
		{"tcp:[fe80::1%eth0]:65535", "", "nbd://[fe80::1%25eth0]:65535/vm1@tag"},
		{"tcp:backup.example:10809", "", "nbd://backup.example:10809/vm1@tag"},
		{"vsock:1:10809", "", "nbd+vsock://1:10809/vm1@tag"},
		{"vsock:any:10809", "", "nbd+vsock://2:10809/vm1@tag"},
		{"vsock:4294967295:10809", "vsock:any:10809", "nbd+vsock://2:10809/vm1@tag"},
		{"vsock:3:0", "", "nbd+vsock://3:0/vm1@tag"},
	} {
		a, err := ParseAddress(tt.in)
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		if tt.out == "" {
			tt.out = tt.in
		}
		if a.String() != tt.out || a.URI("vm1@tag") != tt.uri {
			t.Errorf("%q: %s, %s; expected %s, %s", tt.in, a, a.URI("vm1@tag"), tt.out, tt.uri)
		}
		if b, err := ParseAddress(a.String()); err != nil || a != b {
			t.Errorf("%q again: %+v, %v", a, b, err)
		}
	}
	for _, in := range []string{
		"", "unix", "unix:", "unix:\x00x", "/run/x", "udp:1", "tcp", "tcp:", "tcp:host",
		"tcp:host:", "tcp:host:http", "tcp:host:65536",
		"tcp:::1:80", "tcp:host:-1", "tcp:host:+1", "tcp:a b:1", "vsock", "vsock:", "vsock:1",
		"vsock::1", "vsock:host:1", "vsock:1:x",
		"vsock:-1:1", "vsock:1:4294967295", "vsock:4294967296:1", "vsock:1:2:3",
	} {
		if a, err := ParseAddress(in); !errors.Is(err, ErrAddress) {
			t.Errorf("%q: %+v, %v", in, a, err)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"unix:/x", "tcp:[::1]:1", "vsock:any:2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err != nil {
			return
		}
		if b, err := ParseAddress(a.String()); err != nil || a != b {
			t.Errorf("%q: %+v, then %+v, %v", s, a, b, err)
		}
		a.URI(s)
	})
}

func TestListenUnixMode(t *testing.T) {
	s, a := start(t, Options{}, nil)
	st, err := os.Stat(a.Path)
	test.Must(t, err)
	if st.Mode().Perm() != 0o600 {
		t.Errorf("mode %s", st.Mode())
	}
	if _, err := s.Listen(a); err == nil || !strings.Contains(err.Error(), a.String()) {
		t.Errorf("a second listener: %v", err)
	}
	test.Must(t, s.Close())
	test.ErrorIs(t, test.Err(os.Stat(a.Path)), fs.ErrNotExist, "socket after Close")
}

func TestListenErrors(t *testing.T) {
	s, _ := start(t, Options{}, nil)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	test.Must(t, err)
	defer taken.Close()
	for _, a := range []Address{
		{Network: "unix", Path: filepath.Join(t.TempDir(), "no", "dir")},
		{Network: "tcp", Host: "127.0.0.1", Port: uint32(taken.Addr().(*net.TCPAddr).Port)},
		{Network: "vsock", CID: 0xfffffff0, Port: 1},
		{Network: "pigeon"},
	} {
		if _, err := s.Listen(a); err == nil || !strings.Contains(err.Error(), a.String()) {
			t.Errorf("%+v: %v", a, err)
		}
	}
}

// With AF_VSOCK a socket is made, a second one is refused, and Close ends the accept loop; without
// it the error says so. The integration tests connect from guests.
func TestListenVsock(t *testing.T) {
	s, _ := start(t, Options{}, map[string]Disk{"x": randomDisk(512)})
	a, err := s.Listen(Address{Network: "vsock", CID: anyCID})
	if err != nil {
		if !strings.Contains(err.Error(), a.String()) {
			t.Errorf("without AF_VSOCK: %v", err)
		}
		return
	}
	if a.Port == 0 || len(s.Addresses()) != 2 || !strings.HasPrefix(s.Exports()[0].URIs[1],
		"nbd+vsock://2:") {
		t.Errorf("bound to %s, %+v", a, s.Exports())
	}
	if _, err := s.Listen(a); err == nil {
		t.Error("two listeners on one port")
	}
	test.Must(t, s.Close())
}
