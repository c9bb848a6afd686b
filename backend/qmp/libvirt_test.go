package qmp

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"cowblk/internal/test"
)

// Procedures of libvirt's remote protocol (src/remote/remote_protocol.x).
const (
	procLookup = 23
	procAuth   = 66
	procFreeze = 335
	procThaw   = 336
)

// hypervisor is a fake libvirt daemon with one domain.
type hypervisor struct {
	mu     sync.Mutex
	frozen bool
	uses   map[uint32]int
	fault  func(proc uint32, use int) string
}

func (h *hypervisor) serve(conn net.Conn, in *bufio.Reader) {
	for {
		var head [packetHeader]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return
		}
		length := binary.BigEndian.Uint32(head[:])
		proc := binary.BigEndian.Uint32(head[12:])
		if _, err := in.Discard(int(length) - len(head)); err != nil {
			return
		}
		if !h.execute(conn, in, head, proc) {
			return
		}
	}
}

func (h *hypervisor) execute(conn net.Conn, in *bufio.Reader, head [packetHeader]byte,
	proc uint32) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	fault := ""
	if h.fault != nil {
		fault = h.fault(proc, h.uses[proc])
	}
	h.uses[proc]++
	switch fault {
	case "hang":
		h.mu.Unlock()
		io.Copy(io.Discard, in)
		h.mu.Lock()
		return false
	case "drop":
		return false
	case "garbage":
		fmt.Fprint(conn, "no packet at all")
		return true
	}
	var body []byte
	switch proc {
	case procAuth:
		body = []byte{0, 0, 0, 1, 0, 0, 0, 0} // one method: none
	case procLookup:
		body = append([]byte{0, 0, 0, 4, 't', 'e', 's', 't'}, make([]byte, 16+4)...)
	case procFreeze:
		h.frozen = true
		body = []byte{0, 0, 0, 2}
	case procThaw:
		h.frozen = false
		body = []byte{0, 0, 0, 2}
	}
	if fault == "mute" {
		return true
	}
	binary.BigEndian.PutUint32(head[:], uint32(len(head)+len(body)))
	binary.BigEndian.PutUint32(head[16:], 1) // a reply
	out := append(head[:], body...)
	if fault == "half" {
		conn.Write(out[:len(out)-2])
		return false
	}
	conn.Write(out)
	return true
}

// TestLibvirtFaults is TestAgentFaults for libvirt. It omits faults of ConnectOpen, because
// go-libvirt takes a connection lost there for an open one and sets its state in a data race. The
// effect on this package is that of a loss one call later.
func TestLibvirtFaults(t *testing.T) {
	for _, proc := range []uint32{procAuth, procLookup, procFreeze, procThaw} {
		for _, fault := range []string{"none", "hang", "drop", "garbage", "mute", "half"} {
			for use := range 2 {
				t.Run(fmt.Sprintf("%d/%s/%d", proc, fault, use), func(t *testing.T) {
					h := &hypervisor{uses: make(map[uint32]int)}
					h.fault = func(c uint32, n int) string {
						if c == proc && n == use {
							return fault
						}
						return ""
					}
					p := listen(t, h.serve)
					at, err := ParseLibvirt("qemu:///system?socket="+p.addr.Path, "test")
					test.Must(t, err)
					called := false
					err = WhileQuiesced(context.Background(), NewLibvirtFreeze(at),
						freezeTime(proc == procThaw || fault == "none"), thawTime,
						func(context.Context) error {
							called = true
							return nil
						})
					h.mu.Lock()
					frozen := h.frozen
					h.mu.Unlock()
					if frozen || errors.Is(err, ErrNotThawed) || (err == nil) != called {
						t.Errorf("frozen: %v, f called: %v, error: %v", frozen, called, err)
					}
					if fault == "none" && err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
}

func TestLibvirtAbsent(t *testing.T) {
	test.NoLeaks(t)
	at, err := ParseLibvirt("qemu:///system?socket="+t.TempDir()+"/none", "test")
	test.Must(t, err)
	freeze := NewLibvirtFreeze(at)
	test.ErrorIs(t, freeze.Freeze(within(t, waitTimeout)), fs.ErrNotExist, "Freeze")
	test.Check(t, freeze.Thaw(within(t, waitTimeout)), "Thaw of what was not frozen")
	test.ErrorIs(t, freeze.ForceThaw(within(t, 100*time.Millisecond)), ErrNotThawed, "Release")
	pause, err := NewLibvirtPause(at)
	test.Must(t, err)
	test.ErrorIs(t, pause.Freeze(within(t, waitTimeout)), fs.ErrNotExist, "Freeze")
	other, err := ParseLibvirt("qemu:///session?socket=/none", "test")
	test.Must(t, err)
	_, err = NewLibvirtPause(other)
	test.Texts(t, "libvirt_uris.texts")(t, "pause through a session daemon", err)
}

func TestPacketConn(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		ok       bool
	}{
		{"two packets", "\x00\x00\x00\x1c" + strings.Repeat("x", 24) + "\x00\x00\x00\x1e" +
			strings.Repeat("y", 26), true},
		{"shorter than a header", "\x00\x00\x00\x1b" + strings.Repeat("x", 23), false},
		{"QMP", `{"QMP": {"version": {}}}`, false},
		{"second is bad", "\x00\x00\x00\x1c" + strings.Repeat("x", 24) + "\x00\x00\x00\x00", false},
	} {
		for _, step := range []int{1, 3, 1000} {
			ours, theirs := net.Pipe()
			go func() { io.WriteString(theirs, tc.in); theirs.Close() }()
			var got []byte
			var err error
			c := &packetConn{Conn: ours}
			for buf := make([]byte, step); err == nil; {
				var n int
				n, err = c.Read(buf)
				got = append(got, buf[:n]...)
			}
			ours.Close()
			if ok := errors.Is(err, io.EOF) && string(got) == tc.in; ok != tc.ok {
				t.Errorf("%s in steps of %d: %q, %v", tc.name, step, got, err)
			}
		}
	}
}

// A session daemon cannot be found without XDG_RUNTIME_DIR, which the error names.
func TestLibvirtSessionWithoutRunDirectory(t *testing.T) {
	for _, dir := range []string{"", "run/user"} {
		t.Setenv("XDG_RUNTIME_DIR", dir)
		_, err := ParseLibvirt("qemu:///session", "x")
		test.Texts(t, "libvirt_uris.texts")(t, fmt.Sprintf("XDG_RUNTIME_DIR=%q", dir), err)
		test.Check(t, test.Err(ParseLibvirt("qemu:///session?socket=/s", "x")), dir,
			"with a socket")
	}
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/1")
	if l, err := ParseLibvirt("qemu:///session", "x"); err != nil ||
		l.sockets[0] != "/run/user/1/libvirt/libvirt-sock" {
		t.Errorf("%+v, %v", l, err)
	}
}
