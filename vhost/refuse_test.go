package vhost_test

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
	"cowblk/vhost"
	"cowblk/vhost/frontend"
	"cowblk/vhost/guest"
)

// bad is a message that must be refused.
type bad struct {
	name    string
	request vhost.Request
	payload []byte
	fds     int    // number of descriptors of the guest's memory
	closes  bool   // the connection closes even if an answer was requested
	proto   bool   // the error wraps ErrProtocol
	refuse  string // the Backend method that fails
	idle    bool   // rings are not started
	without uint64 // protocol features to leave out
}

var errBackend = errors.New("the device says no")

func state(i, num uint32) []byte { return vhost.VringState{Index: i, Num: num}.Append(nil) }

func addr(i, flags uint32, desc, avail, used uint64) []byte {
	return vhost.VringAddr{Index: i, Flags: flags, Desc: desc, Avail: avail, Used: used}.Append(nil)
}

func table(rs ...guest.RegionDesc) []byte { return vhost.AppendMemTable(nil, rs) }

func reg(gpa, size, uva, off uint64) guest.RegionDesc {
	return guest.RegionDesc{GuestAddr: gpa, Size: size, UserAddr: uva, MmapOffset: off}
}

func u64(v uint64) []byte { return vhost.AppendU64(nil, v) }

const mib = 1 << 20

// The guest has 8 MiB; ring 0 runs with 128 descriptors; there are two rings.
func badMessages() []bad {
	cfg := func(off, size uint32, data string) []byte {
		return vhost.ConfigSpace{Offset: off, Size: size, Data: []byte(data)}.Append(nil)
	}
	flagged := vhost.ConfigSpace{Size: 1, Flags: 2, Data: []byte{0}}.Append(nil)
	nine := make([]guest.RegionDesc, 9)
	return []bad{
		{name: "unknown message", request: 19, closes: true, proto: true},
		{name: "message 0", request: 0, closes: true, proto: true},
		{name: "huge message id", request: 1 << 31, closes: true, proto: true},
		{name: "log base", request: vhost.SetLogBase, payload: make([]byte, 16), fds: 1,
			closes: true, proto: true},

		{name: "short features", request: vhost.SetFeatures, payload: make([]byte, 7), closes: true,
			proto: true},
		{name: "long features", request: vhost.SetFeatures, payload: make([]byte, 9), closes: true,
			proto: true},
		{name: "payload where none belongs", request: vhost.SetOwner, payload: make([]byte, 8),
			closes: true, proto: true},
		{name: "features never offered", request: vhost.SetFeatures, payload: u64(1 << 40),
			proto: true, idle: true},
		{name: "dirty log, not offered", request: vhost.SetFeatures,
			payload: u64(vhost.FeatureLogAll), proto: true},
		{name: "features while a ring runs", request: vhost.SetFeatures, payload: u64(0),
			proto: true},
		{name: "features the device refuses", request: vhost.SetFeatures, payload: u64(0),
			refuse: "SetFeatures", idle: true},
		{name: "protocol features never offered", request: vhost.SetProtocolFeatures,
			payload: u64(vhost.ProtocolLogShmfd), proto: true},

		{name: "size 0", request: vhost.SetVringNum, payload: state(1, 0), proto: true},
		{name: "size 3", request: vhost.SetVringNum, payload: state(1, 3), proto: true},
		{name: "size 2048", request: vhost.SetVringNum, payload: state(1, 2048), proto: true},
		{name: "size 65536 + 128", request: vhost.SetVringNum, payload: state(1, 65536+128),
			proto: true},
		{name: "size 2^31", request: vhost.SetVringNum, payload: state(1, 1<<31), proto: true},
		{name: "size while it runs", request: vhost.SetVringNum, payload: state(0, 64),
			proto: true},
		{name: "ring 2 of 2", request: vhost.SetVringNum, payload: state(2, 64), proto: true},
		{name: "ring 2^32-1", request: vhost.SetVringBase, payload: state(1<<32-1, 0), proto: true},
		{name: "enable ring 9", request: vhost.SetVringEnable, payload: state(9, 1), proto: true},
		{name: "enable 2", request: vhost.SetVringEnable, payload: state(1, 2), proto: true},
		{name: "base 65536", request: vhost.SetVringBase, payload: state(1, 65536), proto: true},
		{name: "base while it runs", request: vhost.SetVringBase, payload: state(0, 7),
			proto: true},
		{name: "base of ring 7", request: vhost.GetVringBase, payload: state(7, 0), closes: true,
			proto: true},
		{name: "stop that fails", request: vhost.GetVringBase, payload: state(0, 0), closes: true,
			refuse: "StopQueue"},
		{name: "descriptor table at 8", request: vhost.SetVringAddr, payload: addr(1, 0, 8, 0, 0),
			proto: true},
		{name: "available ring at 2", request: vhost.SetVringAddr, payload: addr(1, 0, 0, 2, 0),
			proto: true},
		{name: "used ring at 2", request: vhost.SetVringAddr, payload: addr(1, 0, 0, 0, 2),
			proto: true},
		{name: "log flag", request: vhost.SetVringAddr, payload: addr(1, vhost.VringFlagLog, 0, 0,
			0), proto: true},
		{name: "addresses the device refuses", request: vhost.SetVringAddr, payload: addr(0, 0, 16,
			32, 64), closes: true, refuse: "StartQueue"},

		{name: "kick without descriptor", request: vhost.SetVringKick, payload: u64(1),
			proto: true},
		{name: "kick with surplus descriptor", request: vhost.SetVringKick,
			payload: u64(1 | vhost.VringNoFD), fds: 1, proto: true},
		{name: "two kick descriptors", request: vhost.SetVringKick, payload: u64(1), fds: 2,
			closes: true, proto: true},
		{name: "kick of ring 5", request: vhost.SetVringKick, payload: u64(5), fds: 1, proto: true},
		{name: "call without descriptor", request: vhost.SetVringCall, payload: u64(0),
			proto: true},
		{name: "err of ring 255", request: vhost.SetVringErr, payload: u64(255), fds: 1,
			proto: true},
		{name: "descriptor with a number", request: vhost.SetVringNum, payload: state(1, 64),
			fds: 1, closes: true, proto: true},
		{name: "eight descriptors with nothing", request: vhost.GetFeatures, fds: 8, closes: true,
			proto: true},
		{name: "nine descriptors", request: vhost.SetMemTable, payload: table(nine[:8]...), fds: 9,
			closes: true, proto: true},
		{name: "no back-end channel", request: vhost.SetBackendReqFD, closes: true, proto: true},

		{name: "more descriptors than regions", request: vhost.SetMemTable,
			payload: table(reg(0, mib, 0, 0)), fds: 2, proto: true},
		{name: "fewer descriptors than regions", request: vhost.SetMemTable,
			payload: table(reg(0, mib, 0, 0), reg(mib, mib, mib, 0)), fds: 1, proto: true},
		{name: "nine regions", request: vhost.SetMemTable, payload: table(nine...), fds: 8,
			closes: true, proto: true},
		{name: "more regions than payload", request: vhost.SetMemTable,
			payload: binary.LittleEndian.AppendUint64(nil, 5), fds: 5, proto: true},
		{name: "overlapping regions", request: vhost.SetMemTable,
			payload: table(reg(0, 2*mib, 0, 0), reg(mib, 2*mib, 8*mib, 0)), fds: 2},
		{name: "overlapping user addresses", request: vhost.SetMemTable,
			payload: table(reg(0, 2*mib, 0, 0), reg(8*mib, 2*mib, mib, 0)), fds: 2},
		{name: "empty region", request: vhost.SetMemTable, payload: table(reg(0, 0, 0, 0)), fds: 1},
		{name: "region longer than its file", request: vhost.SetMemTable,
			payload: table(reg(0, 9*mib, 0, 0)), fds: 1},
		{name: "region beyond its file", request: vhost.SetMemTable,
			payload: table(reg(0, mib, 0, 8*mib)), fds: 1},
		{name: "offset overflows", request: vhost.SetMemTable,
			payload: table(reg(0, mib, 0, 1<<64-4096)), fds: 1},
		{name: "address overflows", request: vhost.SetMemTable,
			payload: table(reg(1<<64-4096, mib, 0, 0)), fds: 1},
		{name: "table the device refuses", request: vhost.SetMemTable,
			payload: table(reg(0, mib, 0, 0)), fds: 1, refuse: "SetMemory"},
		{name: "added region overlaps", request: vhost.AddMemReg, payload: vhost.AppendMemReg(nil,
			reg(1<<30, mib, 0, 0)), fds: 1},
		{name: "added region without descriptor", request: vhost.AddMemReg,
			payload: vhost.AppendMemReg(nil, reg(0, mib, 0, 0)), closes: true, proto: true},
		{name: "short region", request: vhost.AddMemReg, payload: make([]byte, 32), fds: 1,
			closes: true, proto: true},
		{name: "removed region was never there", request: vhost.RemMemReg,
			payload: vhost.AppendMemReg(nil, reg(0, mib, 0, 0))},
		{name: "slots were not negotiated", request: vhost.AddMemReg,
			payload: vhost.AppendMemReg(nil, reg(0, mib, 0, 0)), fds: 1,
			without: vhost.ProtocolConfigureMemSlots, proto: true},

		{name: "config was not negotiated", request: vhost.GetConfig, payload: cfg(0, 8, ""),
			without: vhost.ProtocolConfig, closes: true, proto: true},
		{name: "short config", request: vhost.GetConfig, payload: make([]byte, 11), closes: true,
			proto: true},
		{name: "long config", request: vhost.SetConfig, payload: make([]byte, 269), closes: true,
			proto: true},
		{name: "set config out of range", request: vhost.SetConfig, payload: cfg(250, 7, "1234567"),
			proto: true},
		{name: "set config without data", request: vhost.SetConfig, payload: cfg(0, 7, ""),
			proto: true},
		{name: "set config flags", request: vhost.SetConfig, payload: flagged, proto: true},
		{name: "config the device refuses", request: vhost.SetConfig, payload: cfg(0, 1, "x"),
			refuse: "SetConfig"},
		{name: "status 256", request: vhost.SetStatus, payload: u64(256), proto: true},
		{name: "reset was not negotiated", request: vhost.ResetDevice,
			without: vhost.ProtocolResetDevice, proto: true},
		{name: "queue number was not negotiated", request: vhost.GetQueueNum,
			without: vhost.ProtocolMQ, closes: true, proto: true},
		{name: "slots were not negotiated, asked", request: vhost.GetMaxMemSlots,
			without: vhost.ProtocolConfigureMemSlots, closes: true, proto: true},
		{name: "status was not negotiated", request: vhost.GetStatus,
			without: vhost.ProtocolStatus, closes: true, proto: true},
		{name: "in-flight region was not negotiated, asked", request: vhost.GetInflightFD,
			payload: vhost.Inflight{}.Append(nil), without: vhost.ProtocolInflightShmfd,
			closes: true, proto: true},
		{name: "in-flight region was not negotiated", request: vhost.SetInflightFD,
			payload: vhost.Inflight{}.Append(nil), fds: 1, without: vhost.ProtocolInflightShmfd,
			proto: true},
		{name: "reset of the owner with a payload", request: vhost.ResetOwner,
			payload: make([]byte, 8), closes: true, proto: true},
		{name: "protocol features with a payload", request: vhost.GetProtocolFeatures,
			payload: make([]byte, 8), closes: true, proto: true},
	}
}

// Every supported message is refused in some form.
func TestEveryMessageIsRefused(t *testing.T) {
	for _, r := range vhost.Supported() {
		if !slices.ContainsFunc(badMessages(), func(b bad) bool { return b.request == r }) {
			t.Errorf("badMessages has no row for %v", r)
		}
	}
}

// Each message is sent twice, on separate connections: with a request for an answer, which must be
// an error that changes nothing (or the end), and without, where the connection must close.
func TestRefused(t *testing.T) {
	text := test.Texts(t, "refuse.texts")
	for _, c := range badMessages() {
		for _, ack := range []bool{true, false} {
			name := c.name
			if ack {
				name += " (ack)"
			}
			t.Run(name, func(t *testing.T) {
				if err := refused(t, c, ack && !c.closes, ack); err != nil {
					text(t, c.name, err)
				}
			})
		}
	}
}

// refused returns the end of the session, unless it survives.
func refused(t *testing.T, c bad, survives, ack bool) error {
	s := serve(t, newFake(2))
	f := connect(t, s, frontend.Options{NoStart: c.idle,
		Protocol: vhost.ProtocolFeatures &^ c.without})
	must(t, "barrier", f.Barrier())
	s.be.take()
	s.be.mu.Lock()
	if c.refuse != "" {
		s.be.refuse[c.refuse] = errBackend
	}
	s.be.mu.Unlock()
	flags := vhost.FlagVersion
	if ack {
		flags |= vhost.FlagNeedReply
	}
	fds := make([]int, c.fds)
	for i := range fds {
		fds[i] = f.Memory().FD()
	}
	must(t, "send", f.Send(c.request, flags, c.payload, fds...))
	if survives {
		m, err := f.Receive()
		if err != nil {
			t.Fatalf("answer: %v; Serve: %v", err, s.wait())
		}
		if v, err := vhost.DecodeU64(m.Payload); err != nil || v == 0 || m.Request != c.request ||
			m.Flags != vhost.FlagVersion|vhost.FlagReply {
			t.Errorf("answer: %v flags %#x, %d, %v; expected a failure", m.Request, m.Flags, v, err)
		}
		s.be.mu.Lock()
		clear(s.be.refuse)
		s.be.mu.Unlock()
		must(t, "barrier", f.Barrier())
		// The Backend may have been called, but no ring was started or stopped.
		if log := s.be.take(); strings.Contains(log, "start") || strings.Contains(log, "stop") {
			t.Errorf("a refused message changed:\n%s", log)
		}
		must(t, "close", f.Close())
		must(t, "Serve", s.wait())
		return nil
	}
	if m, err := f.Receive(); err == nil {
		t.Errorf("answered with %v %x, expected the connection to close", m.Request, m.Payload)
	}
	f.Abort()
	err := s.wait()
	if err == nil || errors.Is(err, vhost.ErrProtocol) != c.proto {
		t.Errorf("Serve: %v; expected ErrProtocol %t", err, c.proto)
	}
	if c.refuse != "" && !errors.Is(err, errBackend) {
		t.Errorf("Serve: %v does not wrap the Backend's error", err)
	}
	return err
}

func TestBadHeader(t *testing.T) {
	text := test.Texts(t, "header.texts")
	for _, c := range []struct {
		name  string
		flags uint32
	}{
		{"version 0", 0},
		{"version 2", 2},
		{"reply", vhost.FlagVersion | vhost.FlagReply},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t, newFake(1))
			f := connect(t, s, frontend.Options{})
			must(t, "send", f.Send(vhost.GetFeatures, c.flags, nil))
			if _, err := f.Receive(); err == nil {
				t.Error("answered, expected the connection to close")
			}
			f.Abort()
			err := s.wait()
			if text(t, c.name, err); !errors.Is(err, vhost.ErrProtocol) {
				t.Errorf("Serve: %v", err)
			}
		})
	}
}

// GET_CONFIG is refused with an empty payload, and the session continues.
func TestConfigRefused(t *testing.T) {
	s := serve(t, newFake(1))
	f := connect(t, s, frontend.Options{})
	for _, c := range []vhost.ConfigSpace{
		{Offset: 257}, {Offset: 256, Size: 1}, {Size: 257}, {Offset: 1<<32 - 1, Size: 2},
		{Size: 8, Data: []byte{1}},
	} {
		must(t, "send", f.Send(vhost.GetConfig, vhost.FlagVersion, c.Append(nil)))
		if m, err := f.Receive(); err != nil || m.Size != 0 {
			t.Errorf("%d bytes at %d: %+v, %v; expected an empty payload", c.Size, c.Offset, m, err)
		}
	}
	s.be.mu.Lock()
	s.be.refuse["Config"] = errBackend
	s.be.mu.Unlock()
	test.ErrorIs(t, test.Err(f.Config(0, 8)), frontend.ErrRefused, "config the device refuses")
	must(t, "close", f.Close())
	must(t, "Serve", s.wait())
}

// A refused start leaves the ring as it was; the next one may succeed.
func TestStartRefused(t *testing.T) {
	s := serve(t, newFake(1))
	f := connect(t, s, frontend.Options{})
	must(t, "stop", f.Stop())
	s.be.mu.Lock()
	s.be.refuse["StartQueue"] = errBackend
	s.be.mu.Unlock()
	test.ErrorIs(t, f.Start(), frontend.ErrRefused, "start")
	s.be.mu.Lock()
	clear(s.be.refuse)
	s.be.mu.Unlock()
	s.be.take()
	must(t, "start", f.Cont())
	must(t, "close", f.Close())
	must(t, "Serve", s.wait())
}

func TestQueuesOutOfRange(t *testing.T) {
	for _, n := range []int{-1, 0, vhost.MaxQueues + 1} {
		s := serve(t, newFake(n))
		if err := s.wait(); err == nil || errors.Is(err, vhost.ErrProtocol) {
			t.Errorf("%d queues: %v, expected an error that is not the front-end's", n, err)
		}
	}
}

// A region's descriptor may be a file that cannot be mapped.
func TestForeignDescriptors(t *testing.T) {
	var pipe [2]int
	test.Must(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	defer closeAll(pipe[:]...)
	for _, fd := range pipe {
		s := serve(t, newFake(1))
		f := connect(t, s, frontend.Options{NoStart: true})
		must(t, "send", f.Send(vhost.SetMemTable, vhost.FlagVersion, table(reg(0, mib, 0, 0)), fd))
		f.Abort()
		test.ErrorIs(t, s.wait(), guest.ErrRegion, "a pipe as memory")
	}
}
