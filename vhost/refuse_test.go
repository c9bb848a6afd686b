package vhost_test

import (
	"encoding/binary"
	"errors"
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
	text    string // part of Serve's error
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
		{name: "unknown message", request: 19, closes: true, proto: true, text: "message 19 is not supported"},
		{name: "message 0", request: 0, closes: true, proto: true, text: "message 0 is not supported"},
		{name: "huge message id", request: 1 << 31, closes: true, proto: true, text: "message 2147483648"},
		{name: "log base", request: vhost.SetLogBase, payload: make([]byte, 16), fds: 1, closes: true, proto: true, text: "SET_LOG_BASE is not supported"},

		{name: "short features", request: vhost.SetFeatures, payload: make([]byte, 7), closes: true, proto: true, text: "SET_FEATURES: payload of 7 bytes, expected 8"},
		{name: "long features", request: vhost.SetFeatures, payload: make([]byte, 9), closes: true, proto: true, text: "payload of 9 bytes"},
		{name: "payload where none belongs", request: vhost.SetOwner, payload: make([]byte, 8), closes: true, proto: true, text: "payload of 8 bytes, expected 0"},
		{name: "features never offered", request: vhost.SetFeatures, payload: u64(1 << 40), proto: true, text: "bits 0x10000000000 were not offered", idle: true},
		{name: "dirty log, not offered", request: vhost.SetFeatures, payload: u64(vhost.FeatureLogAll), proto: true, text: "bits 0x4000000 were not offered"},
		{name: "features while a ring runs", request: vhost.SetFeatures, payload: u64(0), proto: true, text: "to 0x0 while a ring runs"},
		{name: "features the device refuses", request: vhost.SetFeatures, payload: u64(0), refuse: "SetFeatures", text: "the device says no", idle: true},
		{name: "protocol features never offered", request: vhost.SetProtocolFeatures, payload: u64(vhost.ProtocolLogShmfd), proto: true, text: "bits 0x2 were not offered"},

		{name: "size 0", request: vhost.SetVringNum, payload: state(1, 0), proto: true, text: "ring 1: size 0, expected a power of two from 1 to 1024"},
		{name: "size 3", request: vhost.SetVringNum, payload: state(1, 3), proto: true, text: "size 3"},
		{name: "size 2048", request: vhost.SetVringNum, payload: state(1, 2048), proto: true, text: "size 2048"},
		{name: "size 65536 + 128", request: vhost.SetVringNum, payload: state(1, 65536+128), proto: true, text: "size 65664"},
		{name: "size 2^31", request: vhost.SetVringNum, payload: state(1, 1<<31), proto: true, text: "size 2147483648"},
		{name: "size while it runs", request: vhost.SetVringNum, payload: state(0, 64), proto: true, text: "size changed from 128 to 64 while it runs"},
		{name: "ring 2 of 2", request: vhost.SetVringNum, payload: state(2, 64), proto: true, text: "ring 2, expected less than 2"},
		{name: "ring 2^32-1", request: vhost.SetVringBase, payload: state(1<<32-1, 0), proto: true, text: "ring 4294967295"},
		{name: "enable ring 9", request: vhost.SetVringEnable, payload: state(9, 1), proto: true, text: "ring 9"},
		{name: "enable 2", request: vhost.SetVringEnable, payload: state(1, 2), proto: true, text: "enable 2, expected 0 or 1"},
		{name: "base 65536", request: vhost.SetVringBase, payload: state(1, 65536), proto: true, text: "base 65536, expected at most 65535"},
		{name: "base while it runs", request: vhost.SetVringBase, payload: state(0, 7), proto: true, text: "base set while it runs"},
		{name: "base of ring 7", request: vhost.GetVringBase, payload: state(7, 0), closes: true, proto: true, text: "GET_VRING_BASE: ring 7"},
		{name: "stop that fails", request: vhost.GetVringBase, payload: state(0, 0), closes: true, refuse: "StopQueue", text: "stopping ring 0: the device says no"},
		{name: "descriptor table at 8", request: vhost.SetVringAddr, payload: addr(1, 0, 8, 0, 0), proto: true, text: "descriptor table at 0x8, expected a multiple of 16"},
		{name: "available ring at 2", request: vhost.SetVringAddr, payload: addr(1, 0, 0, 2, 0), proto: true, text: "available ring at 0x2, expected a multiple of 4"},
		{name: "used ring at 2", request: vhost.SetVringAddr, payload: addr(1, 0, 0, 0, 2), proto: true, text: "used ring at 0x2"},
		{name: "log flag", request: vhost.SetVringAddr, payload: addr(1, vhost.VringFlagLog, 0, 0, 0), proto: true, text: "address flags 0x1: the dirty log was not negotiated"},
		{name: "addresses the device refuses", request: vhost.SetVringAddr, payload: addr(0, 0, 16, 32, 64), closes: true, refuse: "StartQueue", text: "SET_VRING_ADDR: starting ring 0: the device says no"},

		{name: "kick without descriptor", request: vhost.SetVringKick, payload: u64(1), proto: true, text: "0 file descriptors although the message says true"},
		{name: "kick with surplus descriptor", request: vhost.SetVringKick, payload: u64(1 | vhost.VringNoFD), fds: 1, proto: true, text: "1 file descriptors although the message says false"},
		{name: "two kick descriptors", request: vhost.SetVringKick, payload: u64(1), fds: 2, closes: true, proto: true, text: "2 file descriptors, expected 0 to 1"},
		{name: "kick of ring 5", request: vhost.SetVringKick, payload: u64(5), fds: 1, proto: true, text: "ring 5"},
		{name: "call without descriptor", request: vhost.SetVringCall, payload: u64(0), proto: true, text: "SET_VRING_CALL: ring 0: 0 file descriptors"},
		{name: "err of ring 255", request: vhost.SetVringErr, payload: u64(255), fds: 1, proto: true, text: "ring 255"},
		{name: "descriptor with a number", request: vhost.SetVringNum, payload: state(1, 64), fds: 1, closes: true, proto: true, text: "1 file descriptors, expected 0"},
		{name: "eight descriptors with nothing", request: vhost.GetFeatures, fds: 8, closes: true, proto: true, text: "GET_FEATURES: 8 file descriptors"},
		{name: "nine descriptors", request: vhost.SetMemTable, payload: table(nine[:8]...), fds: 9, closes: true, proto: true, text: "more than 8 descriptors"},
		{name: "no back-end channel", request: vhost.SetBackendReqFD, closes: true, proto: true, text: "0 file descriptors, expected 1"},

		{name: "more descriptors than regions", request: vhost.SetMemTable, payload: table(reg(0, mib, 0, 0)), fds: 2, proto: true, text: "1 regions with 2 file descriptors"},
		{name: "fewer descriptors than regions", request: vhost.SetMemTable, payload: table(reg(0, mib, 0, 0), reg(mib, mib, mib, 0)), fds: 1, proto: true, text: "2 regions with 1 file descriptors"},
		{name: "nine regions", request: vhost.SetMemTable, payload: table(nine...), fds: 8, closes: true, proto: true, text: "payload of 296 bytes"},
		{name: "more regions than payload", request: vhost.SetMemTable, payload: binary.LittleEndian.AppendUint64(nil, 5), fds: 5, proto: true, text: "memory table of 5 regions of 8 bytes, expected 168"},
		{name: "overlapping regions", request: vhost.SetMemTable, payload: table(reg(0, 2*mib, 0, 0), reg(mib, 2*mib, 8*mib, 0)), fds: 2, text: "region 1"},
		{name: "overlapping user addresses", request: vhost.SetMemTable, payload: table(reg(0, 2*mib, 0, 0), reg(8*mib, 2*mib, mib, 0)), fds: 2, text: "region 1"},
		{name: "empty region", request: vhost.SetMemTable, payload: table(reg(0, 0, 0, 0)), fds: 1, text: "region 0"},
		{name: "region longer than its file", request: vhost.SetMemTable, payload: table(reg(0, 9*mib, 0, 0)), fds: 1, text: "region 0"},
		{name: "region beyond its file", request: vhost.SetMemTable, payload: table(reg(0, mib, 0, 8*mib)), fds: 1, text: "region 0"},
		{name: "offset overflows", request: vhost.SetMemTable, payload: table(reg(0, mib, 0, 1<<64-4096)), fds: 1, text: "region 0"},
		{name: "address overflows", request: vhost.SetMemTable, payload: table(reg(1<<64-4096, mib, 0, 0)), fds: 1, text: "region 0"},
		{name: "table the device refuses", request: vhost.SetMemTable, payload: table(reg(0, mib, 0, 0)), fds: 1, refuse: "SetMemory", text: "using the new memory table: the device says no"},
		{name: "added region overlaps", request: vhost.AddMemReg, payload: vhost.AppendMemReg(nil, reg(1<<30, mib, 0, 0)), fds: 1, text: "ADD_MEM_REG"},
		{name: "added region without descriptor", request: vhost.AddMemReg, payload: vhost.AppendMemReg(nil, reg(0, mib, 0, 0)), closes: true, proto: true, text: "0 file descriptors, expected 1"},
		{name: "short region", request: vhost.AddMemReg, payload: make([]byte, 32), fds: 1, closes: true, proto: true, text: "payload of 32 bytes, expected 40"},
		{name: "removed region was never there", request: vhost.RemMemReg, payload: vhost.AppendMemReg(nil, reg(0, mib, 0, 0)), text: "no such region"},
		{name: "slots were not negotiated", request: vhost.AddMemReg, payload: vhost.AppendMemReg(nil, reg(0, mib, 0, 0)), fds: 1, without: vhost.ProtocolConfigureMemSlots, proto: true, text: "protocol feature 0x8000 was not negotiated"},

		{name: "config was not negotiated", request: vhost.GetConfig, payload: cfg(0, 8, ""), without: vhost.ProtocolConfig, closes: true, proto: true, text: "protocol feature 0x200"},
		{name: "short config", request: vhost.GetConfig, payload: make([]byte, 11), closes: true, proto: true, text: "payload of 11 bytes, expected 12 to 268"},
		{name: "long config", request: vhost.SetConfig, payload: make([]byte, 269), closes: true, proto: true, text: "payload of 269 bytes"},
		{name: "set config out of range", request: vhost.SetConfig, payload: cfg(250, 7, "1234567"), proto: true, text: "7 bytes at offset 250"},
		{name: "set config without data", request: vhost.SetConfig, payload: cfg(0, 7, ""), proto: true, text: "data of 0 bytes, expected 7"},
		{name: "set config flags", request: vhost.SetConfig, payload: flagged, proto: true, text: "flags 0x2"},
		{name: "config the device refuses", request: vhost.SetConfig, payload: cfg(0, 1, "x"), refuse: "SetConfig", text: "SET_CONFIG: the device says no"},
		{name: "status 256", request: vhost.SetStatus, payload: u64(256), proto: true, text: "device status 0x100"},
		{name: "reset was not negotiated", request: vhost.ResetDevice, without: vhost.ProtocolResetDevice, proto: true, text: "protocol feature 0x2000"},
		{name: "queue number was not negotiated", request: vhost.GetQueueNum, without: vhost.ProtocolMQ, closes: true, proto: true, text: "protocol feature 0x1"},
	}
}

// Each message is sent twice, on separate connections: with a request for an answer, which must be
// an error that changes nothing (or the end), and without, where the connection must close.
func TestRefused(t *testing.T) {
	for _, c := range badMessages() {
		for _, ack := range []bool{true, false} {
			name := c.name
			if ack {
				name += " (ack)"
			}
			t.Run(name, func(t *testing.T) { refused(t, c, ack && !c.closes, ack) })
		}
	}
}

func refused(t *testing.T, c bad, survives, ack bool) {
	s := serve(t, newFake(2))
	f := connect(t, s, frontend.Options{NoStart: c.idle, Protocol: vhost.ProtocolFeatures &^ c.without})
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
		if v, err := vhost.DecodeU64(m.Payload); err != nil || v == 0 || m.Request != c.request || m.Flags != vhost.FlagVersion|vhost.FlagReply {
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
		return
	}
	if m, err := f.Receive(); err == nil {
		t.Errorf("answered with %v %x, expected the connection to close", m.Request, m.Payload)
	}
	f.Abort()
	err := s.wait()
	if err == nil || !strings.Contains(err.Error(), c.text) || errors.Is(err, vhost.ErrProtocol) != c.proto {
		t.Errorf("Serve: %v; expected %q, ErrProtocol %t", err, c.text, c.proto)
	}
	if c.refuse != "" && !errors.Is(err, errBackend) {
		t.Errorf("Serve: %v does not wrap the Backend's error", err)
	}
}

func TestBadHeader(t *testing.T) {
	for _, c := range []struct {
		name  string
		flags uint32
		text  string
	}{
		{"version 0", 0, "version 0, expected 1"},
		{"version 2", 2, "version 2"},
		{"reply", vhost.FlagVersion | vhost.FlagReply, "a reply, expected a request"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t, newFake(1))
			f := connect(t, s, frontend.Options{})
			must(t, "send", f.Send(vhost.GetFeatures, c.flags, nil))
			if _, err := f.Receive(); err == nil {
				t.Error("answered, expected the connection to close")
			}
			f.Abort()
			if err := s.wait(); !errors.Is(err, vhost.ErrProtocol) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("Serve: %v, expected %q", err, c.text)
			}
		})
	}
}

// GET_CONFIG is refused with an empty payload, and the session continues.
func TestConfigRefused(t *testing.T) {
	s := serve(t, newFake(1))
	f := connect(t, s, frontend.Options{})
	for _, c := range []vhost.ConfigSpace{
		{Offset: 257}, {Offset: 256, Size: 1}, {Size: 257}, {Offset: 1<<32 - 1, Size: 2}, {Size: 8, Data: []byte{1}},
	} {
		must(t, "send", f.Send(vhost.GetConfig, vhost.FlagVersion, c.Append(nil)))
		if m, err := f.Receive(); err != nil || m.Size != 0 {
			t.Errorf("%d bytes at %d: %+v, %v; expected an empty payload", c.Size, c.Offset, m, err)
		}
	}
	s.be.mu.Lock()
	s.be.refuse["Config"] = errBackend
	s.be.mu.Unlock()
	if _, err := f.Config(0, 8); !errors.Is(err, frontend.ErrRefused) {
		t.Errorf("config the device refuses: %v", err)
	}
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
	if err := f.Start(); !errors.Is(err, frontend.ErrRefused) {
		t.Errorf("start: %v, expected ErrRefused", err)
	}
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
		if err := s.wait(); err == nil || !strings.Contains(err.Error(), "SET_MEM_TABLE") {
			t.Errorf("a pipe as memory: %v", err)
		}
	}
}
