package qmp

import (
	"context"
	"strings"
	"testing"
	"time"

	"cowblk/internal/test"
)

func TestParseAddress(t *testing.T) {
	for _, tc := range []struct {
		in      string
		want    Address
		wantErr string
	}{
		{in: "unix:/run/qga.sock", want: Address{Path: "/run/qga.sock"}},
		{in: "unix:rel:with:colons", want: Address{Path: "rel:with:colons"}},
		{in: "vsock:3:9999", want: Address{CID: 3, Port: 9999}},
		{in: "vsock:4294967294:0", want: Address{CID: 4294967294}},
		{in: "", wantErr: "not a kind"},
		{in: "/run/qga.sock", wantErr: "not a kind"},
		{in: "tcp:host:1", wantErr: `"tcp" is not a kind`},
		{in: "UNIX:/x", wantErr: "not a kind"},
		{in: "unix:", wantErr: "path is missing"},
		{in: "unix", wantErr: "path is missing"},
		{in: "unix:" + strings.Repeat("x", 108), wantErr: "at most 107"},
		{in: "vsock:3", wantErr: "port is missing"},
		{in: "vsock:", wantErr: "port is missing"},
		{in: "vsock::1", wantErr: "not a CID"},
		{in: "vsock:3:", wantErr: "not a port"},
		{in: "vsock:x:1", wantErr: "not a CID"},
		{in: "vsock:-1:1", wantErr: "not a CID"},
		{in: "vsock:+1:1", wantErr: "not a CID"},
		{in: "vsock:4294967295:1", wantErr: "not a CID"},
		{in: "vsock:3:4294967295", wantErr: "not a port"},
		{in: "vsock:3:1:2", wantErr: "not a port"},
	} {
		got, err := ParseAddress(tc.in)
		if tc.wantErr != "" {
			if err == nil || !strings.Contains(err.Error(), tc.wantErr) || !strings.Contains(err.Error(), "expected unix:PATH or vsock:CID:PORT") {
				t.Errorf("%q: %v, want %q", tc.in, err, tc.wantErr)
			}
			continue
		}
		if err != nil || got != tc.want {
			t.Errorf("%q: %+v, %v", tc.in, got, err)
		}
		if back, err := ParseAddress(got.String()); err != nil || back != got {
			t.Errorf("%q: %q does not parse back: %v", tc.in, got, err)
		}
	}
}

// With or without AF_VSOCK, dialling ends with an error in bounded time.
func TestVsockNobody(t *testing.T) {
	test.NoLeaks(t)
	a := NewAgent(AgentOptions{Address: Address{CID: 4000000000, Port: 1}})
	if err := a.Freeze(within(t, waitTimeout)); err == nil || !strings.Contains(err.Error(), "vsock:4000000000:1") {
		t.Errorf("Freeze: %v", err)
	}
	if err := a.Thaw(within(t, waitTimeout)); err != nil {
		t.Errorf("Thaw without anything frozen: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Nanosecond)
	defer cancel()
	if _, err := (Address{CID: 4000000000, Port: 1}).dial(ctx); err == nil {
		t.Error("dial after the deadline succeeded")
	}
}

func TestParseLibvirt(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
	for _, tc := range []struct{ uri, domain, want, wantErr string }{
		{uri: "qemu:///system", domain: "d", want: "/run/libvirt/libvirt-sock /run/libvirt/virtqemud-sock"},
		{uri: "qemu:///session", domain: "d", want: "/run/user/7/libvirt/libvirt-sock /run/user/7/libvirt/virtqemud-sock"},
		{uri: "qemu:///system?socket=/a/b", domain: "d", want: "/a/b"},
		{uri: "qemu:///system", wantErr: "--domain"},
		{uri: "qemu://host/system", domain: "d", wantErr: "this machine"},
		{uri: "qemu+ssh:///system", domain: "d", wantErr: "this machine"},
		{uri: "qemu:///", domain: "d", wantErr: "missing"},
		{uri: "system", domain: "d", wantErr: "missing"},
		{uri: "", domain: "d", wantErr: "missing"},
		{uri: "%", domain: "d", wantErr: "libvirt URI"},
	} {
		l, err := ParseLibvirt(tc.uri, tc.domain)
		if tc.wantErr != "" {
			if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("%q: %v, want %q", tc.uri, err, tc.wantErr)
			}
			continue
		}
		if got := strings.Join(l.sockets, " "); err != nil || got != tc.want {
			t.Errorf("%q: %q, %v, want %q", tc.uri, got, err, tc.want)
		}
	}
}
