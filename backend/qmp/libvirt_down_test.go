package qmp

import (
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"cowblk/internal/test"
)

// A libvirt that is down says nothing about the guest: its record must stay.
func TestLibvirtDown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "libvirt-sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	test.Must(t, err)
	l.SetUnlinkOnClose(false)
	l.Close()
	for _, mode := range []string{QuiesceGuest, QuiescePause} {
		spec := Spec{Mode: mode, Libvirt: "qemu:///system?socket=" + path, Domain: "test",
			Instance: "domain 7"}
		h, err := spec.Open(nil, nil)
		test.Must(t, err)
		err = h.ForceThaw(within(t, 200*time.Millisecond))
		if !errors.Is(err, ErrNotThawed) || errors.Is(err, ErrGone) {
			t.Errorf("%s: %v", mode, err)
		}
		h.Close()
	}
}
