package vhost_test

import (
	"fmt"
	"testing"

	"cowblk/internal/test"
	"cowblk/vhost"
	"cowblk/vhost/frontend"
)

// frontend.DriverFeatures: the Backend is not shown the protocol's bit
const features = "features 0x130007e66"

func connect(t *testing.T, s *served, o frontend.Options) *frontend.Frontend {
	t.Helper()
	o.Memory = max(o.Memory, 8<<20)
	f, err := frontend.New(s.conn, o)
	if err != nil {
		s.conn.Close()
		t.Fatalf("%v; Serve: %v", err, s.wait())
	}
	return f
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	test.Check(t, err, what)
}

// The messages of QEMU from connection to exit, with stop, cont and system_reset in between, each
// more than once.
func TestQEMU(t *testing.T) {
	for _, o := range []frontend.Options{
		{Queues: 4},
		{Queues: 4, AckAll: true},
		// QEMU 7.2 negotiates no RESET_DEVICE, its first releases no STATUS.
		{Queues: 4, Protocol: vhost.ProtocolFeatures &^ vhost.ProtocolResetDevice},
		{Queues: 4, Protocol: vhost.ProtocolFeatures &^
			(vhost.ProtocolStatus | vhost.ProtocolResetDevice)},
		{Queues: 4, Protocol: vhost.ProtocolMQ | vhost.ProtocolConfig},
	} {
		t.Run(fmt.Sprintf("protocol %#x ack %t", o.Protocol, o.AckAll), func(t *testing.T) {
			s := serve(t, newFake(16))
			f := connect(t, s, o)
			if f.MaxQueues() != 16 || f.Capacity() != 0x0706050403020100*512&(1<<63-1) {
				t.Errorf("%d queues, %d bytes", f.MaxQueues(), f.Capacity())
			}
			status := func(lines ...string) []string {
				if f.Protocol()&vhost.ProtocolStatus == 0 {
					return nil
				}
				return lines
			}
			start := func(base int) []string {
				return lines(repeat(4,
					fmt.Sprintf("start %%d num 128 base %d kick true call true err true", base)),
					status("status 15"), repeat(4, "call %d true"))
			}
			newer := f.Protocol()&vhost.ProtocolResetDevice != 0
			around := func(status, stop []string) []string {
				if newer {
					return lines(stop, status)
				}
				return lines(status, stop)
			}
			must(t, "barrier", f.Barrier())
			s.expect("start", lines([]string{features}, status("status 8"), []string{"memory 1"},
				start(0))...)
			for base := 5; base <= 15; base += 5 {
				s.be.setBase(5)
				must(t, "stop", f.Stop())
				must(t, "barrier", f.Barrier())
				s.expect("stop", around(status("status 0"), repeat(4, "stop %d"))...)
				must(t, "cont", f.Cont())
				must(t, "barrier", f.Barrier())
				s.expect("cont", lines(status("status 8"), start(base))...)
			}
			for range 3 {
				must(t, "reset", f.Reset())
				must(t, "barrier", f.Barrier())
				var reset []string
				if newer {
					reset = []string{"reset"}
				}
				s.expect("reset", lines(around(status("status 0"), repeat(4, "stop %d")), reset,
					status("status 8"), start(0))...)
			}
			must(t, "close", f.Close())
			must(t, "Serve", s.wait())
		})
	}
}

func TestQEMUKilled(t *testing.T) {
	s := serve(t, newFake(4))
	f := connect(t, s, frontend.Options{Queues: 3, Regions: 2})
	must(t, "barrier", f.Barrier())
	s.be.take()
	must(t, "abort", f.Abort())
	must(t, "Serve", s.wait())
	s.expect("killed", repeat(3, "stop %d")...)
}

// SPDK's initiator enables rings before any other message about them, and sends the memory table
// again when they are stopped.
func TestSPDK(t *testing.T) {
	s := serve(t, newFake(4))
	f := connect(t, s, frontend.Options{Style: frontend.SPDK, Queues: 2})
	s.expect("start", "features 0x100007c66", "memory 1",
		"start 0 num 128 base 0 kick true call true err false",
		"start 1 num 128 base 0 kick true call true err false")
	must(t, "stop", f.Stop())
	must(t, "barrier", f.Barrier())
	s.expect("stop", "stop 0", "stop 1", "memory 1")
	must(t, "abort", f.Abort())
	must(t, "Serve", s.wait())
}

// The oldest front-ends negotiate no protocol features: rings start enabled.
func TestNoProtocolFeatures(t *testing.T) {
	s := serve(t, newFake(4))
	f := connect(t, s, frontend.Options{NoProtocol: true})
	must(t, "barrier", f.Barrier())
	s.expect("start", features, "memory 1", "start 0 num 128 base 0 kick true call true err true",
		"call 0 true")
	must(t, "close", f.Close())
	must(t, "Serve", s.wait())
}

// A front-end with polled rings sends SET_VRING_KICK without a descriptor.
func TestNoKick(t *testing.T) {
	s := serve(t, newFake(1))
	f := connect(t, s, frontend.Options{NoKick: true})
	must(t, "barrier", f.Barrier())
	s.expect("start", features, "status 8", "memory 1",
		"start 0 num 128 base 0 kick false call true err true", "status 15", "call 0 true")
	must(t, "close", f.Close())
	must(t, "Serve", s.wait())
}

// Regions are added and removed, also under running rings, and more than one table can hold.
func TestMemorySlots(t *testing.T) {
	s := serve(t, newFake(1))
	f := connect(t, s, frontend.Options{Regions: 40, Memory: 80 << 20, NoStart: true})
	s.expect("nothing yet")
	must(t, "start", f.Start())
	must(t, "barrier", f.Barrier())
	want := []string{features, "status 8"}
	for i := range 40 {
		want = append(want, fmt.Sprintf("memory %d", i+1))
	}
	s.expect("start", append(want, "start 0 num 128 base 0 kick true call true err true",
		"status 15", "call 0 true")...)
	last := f.Memory().Regions()[39]
	must(t, "remove", f.RemoveRegion(last))
	// Old QEMUs send a descriptor, which must be closed.
	must(t, "add", f.AddRegion(last))
	must(t, "send", f.Send(vhost.RemMemReg, vhost.FlagVersion, vhost.AppendMemReg(nil, last),
		f.Memory().FD()))
	must(t, "table", f.ShareMemory(f.Memory().Regions()[:2]...))
	must(t, "empty table", f.ShareMemory())
	s.expect("changes", "memory 39", "memory 40", "memory 39", "memory 2", "memory 0")
	must(t, "close", f.Close())
	must(t, "Serve", s.wait())
}

// The state of a ring follows from its messages in any order.
func TestRingStates(t *testing.T) {
	s := serve(t, newFake(2))
	f := connect(t, s, frontend.Options{AckAll: true})
	must(t, "barrier", f.Barrier())
	s.be.take()
	ring := func(r vhost.Request, num uint32) {
		t.Helper()
		must(t, r.String(), f.Send(r, vhost.FlagVersion, vhost.VringState{Num: num}.Append(nil)))
		must(t, "barrier", f.Barrier())
	}
	s.be.setBase(3)
	ring(vhost.SetVringEnable, 0)
	s.expect("disable", "stop 0")
	ring(vhost.SetVringEnable, 0)
	s.expect("disable again")
	ring(vhost.SetVringEnable, 1)
	s.expect("enable", "start 0 num 128 base 3 kick true call true err true")
	ring(vhost.SetVringNum, 128)
	s.expect("same size")
	must(t, "kick", f.Send(vhost.SetVringKick, vhost.FlagVersion,
		vhost.AppendU64(nil, vhost.VringNoFD)))
	must(t, "barrier", f.Barrier())
	s.expect("another kick", "stop 0", "start 0 num 128 base 6 kick false call true err true")
	must(t, "call", f.Send(vhost.SetVringCall, vhost.FlagVersion,
		vhost.AppendU64(nil, vhost.VringNoFD)))
	must(t, "err", f.Send(vhost.SetVringErr, vhost.FlagVersion,
		vhost.AppendU64(nil, vhost.VringNoFD)))
	must(t, "barrier", f.Barrier())
	s.expect("no call, no err", "call 0 false", "err 0 false")
	must(t, "owner", f.Send(vhost.ResetOwner, vhost.FlagVersion, nil))
	must(t, "barrier", f.Barrier())
	s.expect("reset owner", "stop 0", "reset")
	ring(vhost.SetVringEnable, 1)
	s.expect("enable without a kick descriptor")
	must(t, "kick", f.Send(vhost.SetVringKick, vhost.FlagVersion,
		vhost.AppendU64(nil, vhost.VringNoFD)))
	must(t, "barrier", f.Barrier())
	s.expect("kick", "start 0 num 128 base 9 kick false call false err false")
	must(t, "abort", f.Abort())
	must(t, "Serve", s.wait())
}

func TestConfig(t *testing.T) {
	s := serve(t, newFake(1))
	f := connect(t, s, frontend.Options{})
	s.be.take()
	for _, c := range []struct{ off, n uint32 }{{0, 60}, {0, 256}, {20, 40}, {63, 2}, {200, 56},
		{256, 0}, {0, 0}} {
		b, err := f.Config(c.off, c.n)
		if err != nil || len(b) != int(c.n) {
			t.Errorf("%d bytes at %d: %d bytes, %v", c.n, c.off, len(b), err)
			continue
		}
		for i, v := range b {
			want := byte(0)
			if at := int(c.off) + i; at < 64 {
				want = byte(at)
			}
			if v != want {
				t.Errorf("byte %d: %d, expected %d", int(c.off)+i, v, want)
			}
		}
	}
	must(t, "set", f.SetConfig(32, []byte{1}))
	s.be.take()
	// A request without room for the data is answered, too.
	must(t, "send", f.Send(vhost.GetConfig, vhost.FlagVersion,
		vhost.ConfigSpace{Size: 8}.Append(nil)))
	if m, err := f.Receive(); err != nil || m.Size != 12+8 {
		t.Errorf("config without data: %+v, %v", m, err)
	}
	must(t, "close", f.Close())
	must(t, "Serve", s.wait())
}

// A device with a broken queue reports DEVICE_NEEDS_RESET in its status.
func TestNeedsReset(t *testing.T) {
	s := serve(t, newFake(1))
	f := connect(t, s, frontend.Options{})
	for _, broken := range []bool{false, true, false} {
		s.be.mu.Lock()
		s.be.needsReset = broken
		s.be.mu.Unlock()
		must(t, "send", f.Send(vhost.GetStatus, vhost.FlagVersion, nil))
		m, err := f.Receive()
		must(t, "answer", err)
		v, err := vhost.DecodeU64(m.Payload)
		must(t, "status", err)
		if got := v&0x40 != 0; got != broken || v&^0x40 != 0xf {
			t.Errorf("status %#x with a queue that is broken: %t", v, broken)
		}
		// QEMU adds a bit to the value it has read.
		must(t, "status", f.Send(vhost.SetStatus, vhost.FlagVersion, u64(v)))
	}
	must(t, "close", f.Close())
	must(t, "Serve", s.wait())
}
