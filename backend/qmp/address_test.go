package qmp

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"cowblk/internal/test"
)

func TestParseAddress(t *testing.T) {
	text := test.Texts(t, "addresses.texts")
	for _, tc := range []struct {
		in   string
		want Address
	}{
		{in: "unix:/run/qga.sock", want: Address{Path: "/run/qga.sock"}},
		{in: "unix:rel:with:colons", want: Address{Path: "rel:with:colons"}},
		{in: "vsock:3:9999", want: Address{CID: 3, Port: 9999}},
		{in: "vsock:4294967294:0", want: Address{CID: 4294967294}},
		{in: ""},
		{in: "/run/qga.sock"},
		{in: "tcp:host:1"},
		{in: "UNIX:/x"},
		{in: "unix:"},
		{in: "unix"},
		{in: "unix:" + strings.Repeat("x", 108)},
		{in: "vsock:3"},
		{in: "vsock:"},
		{in: "vsock::1"},
		{in: "vsock:3:"},
		{in: "vsock:x:1"},
		{in: "vsock:-1:1"},
		{in: "vsock:+1:1"},
		{in: "vsock:4294967295:1"},
		{in: "vsock:3:4294967295"},
		{in: "vsock:3:1:2"},
	} {
		got, err := ParseAddress(tc.in)
		if text(t, tc.in, err); err != nil && tc.want == (Address{}) {
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
	nobody := Address{CID: 4000000000, Port: 1}
	a := NewAgent(AgentOptions{Address: nobody})
	if err := a.Freeze(within(t, waitTimeout)); err == nil || !strings.Contains(err.Error(),
		nobody.String()) {
		t.Errorf("Freeze: %v", err)
	}
	test.Check(t, a.Thaw(within(t, waitTimeout)), "Thaw without anything frozen")
	ctx, cancel := context.WithTimeout(context.Background(), time.Nanosecond)
	defer cancel()
	if _, err := (Address{CID: 4000000000, Port: 1}).dial(ctx); err == nil {
		t.Error("dial after the deadline succeeded")
	}
}

func TestParseLibvirt(t *testing.T) {
	text := test.Texts(t, "libvirt_uris.texts")
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
	for _, tc := range []struct{ uri, domain, want string }{
		{uri: "qemu:///system", domain: "d",
			want: "/run/libvirt/libvirt-sock /run/libvirt/virtqemud-sock"},
		{uri: "qemu:///session", domain: "d",
			want: "/run/user/7/libvirt/libvirt-sock /run/user/7/libvirt/virtqemud-sock"},
		{uri: "qemu:///system?socket=/a/b", domain: "d", want: "/a/b"},
		{uri: "qemu:///system"},
		{uri: "qemu://host/system", domain: "d"},
		{uri: "qemu+ssh:///system", domain: "d"},
		{uri: "qemu:///", domain: "d"},
		{uri: "system", domain: "d"},
		{uri: "", domain: "d"},
		{uri: "%", domain: "d"},
	} {
		l, err := ParseLibvirt(tc.uri, tc.domain)
		if text(t, fmt.Sprintf("%q domain %q", tc.uri, tc.domain), err); err != nil &&
			tc.want == "" {
			continue
		}
		if got := strings.Join(l.sockets, " "); err != nil || got != tc.want {
			t.Errorf("%q: %q, %v, want %q", tc.uri, got, err, tc.want)
		}
	}
}
