package backend

import (
	"encoding/binary"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/eventfd"
	"cowblk/internal/test"
	"cowblk/vhost"
	"cowblk/vhost/blk"
	"cowblk/vhost/virtq"
)

// execute plays one stream. A first byte says how much of the sound start comes ahead; then each
// step is a message, whole or spoiled, or something that is done to the memory that is shared.
func (r *streamRig) execute(t testing.TB, raw []byte) {
	r.t = t
	in := &input{raw}
	r.ring.Clear()
	r.connect()
	steps, sound := r.steps()
	ahead := min(int(in.byte()), sound)
	for _, m := range steps[:ahead] {
		r.play(r.encode(m, vhost.FlagVersion), m.fds, in, false)
	}
	for n := 0; len(in.b) > 0 && n < 24; n++ {
		k := in.n(len(steps) + 4)
		if k >= len(steps) {
			r.disturb(in, k-len(steps))
			continue
		}
		m := steps[k]
		m.payload = append([]byte(nil), m.payload...)
		m.fds = append([]byte(nil), m.fds...)
		how := in.byte()
		flags := vhost.FlagVersion
		if how&0x40 != 0 {
			flags |= vhost.FlagNeedReply
		}
		b := r.spoilt(m, flags, how, in)
		r.play(b, m.fds, in, how&0x80 != 0)
	}
	if err := r.leave(); err != nil && len(err.Error()) > 1000 {
		t.Errorf("an error of %d bytes: %.200v", len(err.Error()), err)
	}
}

func (r *streamRig) encode(m message, flags uint32) []byte {
	h := vhost.Header{Request: m.request, Flags: flags, Size: uint32(len(m.payload))}
	return append(h.Append(nil), m.payload...)
}

// spoilt is m's bytes with the kinds of damage that how says; m.fds change, too.
func (r *streamRig) spoilt(m message, flags uint32, how byte, in *input) []byte {
	if how&1 != 0 && len(m.payload) >= 4 { // a field
		v := in.odd()
		if at := 4 * in.n(len(m.payload)/4); at+8 <= len(m.payload) && in.one(2) {
			binary.LittleEndian.PutUint64(m.payload[at:], v)
		} else {
			binary.LittleEndian.PutUint32(m.payload[at:], uint32(v))
		}
	}
	if how&2 != 0 { // descriptors: others, more, fewer
		for i := range m.fds {
			m.fds[i] = byte(in.n(kinds))
		}
		for range in.n(4) {
			m.fds = append(m.fds, byte(in.n(kinds)))
		}
		if in.one(3) && len(m.fds) > 0 {
			m.fds = m.fds[1:]
		}
	}
	if how&0xc == 0xc { // length of the payload
		n := in.n(300)
		for len(m.payload) < n {
			m.payload = append(m.payload, byte(n))
		}
		m.payload = m.payload[:n]
	}
	b := r.encode(m, flags)
	if how&0x30 == 0x30 { // the header
		binary.LittleEndian.PutUint32(b[4*in.n(3):], uint32(in.odd()))
	}
	return b
}

// play sends b with its descriptors, at one stroke or in pieces. What the other side answers is
// thrown away when it fills the socket.
func (r *streamRig) play(b []byte, kindsOf []byte, in *input, split bool) {
	var fds []int
	for _, k := range kindsOf {
		fds = append(fds, r.fds[k])
	}
	for len(b) > 0 {
		n := len(b)
		if split {
			n = min(n, 1+in.n(16))
		}
		var oob []byte
		if len(fds) > 0 {
			oob = unix.UnixRights(fds...)
			fds = nil
		}
		for {
			err := unix.Sendmsg(r.sock, b[:n], oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
			if err == nil {
				break
			}
			if err != unix.EAGAIN {
				return // the session has ended
			}
			var sink [4096]byte
			_, _, _ = unix.Recvfrom(r.sock, sink[:], unix.MSG_DONTWAIT)
			runtime.Gosched()
		}
		b = b[n:]
	}
}

// disturb does something to what the session shares with its front-end.
func (r *streamRig) disturb(in *input, what int) {
	switch what {
	case 0: // a sound request
		next := uint16(in.n(8)) * 2 % atkNum
		ds := r.request(0, uint32(in.n(2)), uint64(in.byte()), virtq.Desc{Addr: atkData, Len: 512})
		if ds[1].Flags = 0; in.one(2) {
			ds[1].Flags = virtq.DescWrite
		}
		if int(next)+len(ds) <= atkNum {
			r.link(next, ds)
			r.ring.Offer(next)
		}
		_ = eventfd.Signal(r.kick)
	case 1: // the in-flight region
		binary.LittleEndian.PutUint64(r.inflight[8*in.n(inflightSize/8):], in.odd())
		binary.LittleEndian.PutUint16(r.inflight[2*in.n(8)+64*in.n(64):], uint16(in.odd()))
		if in.one(2) {
			binary.LittleEndian.PutUint32(r.inflight[8:], 1|atkNum<<16)
		}
	case 2: // the files
		fd := r.fds[[...]int{kindMemory, kindMemory2, kindInflight}[in.n(3)]]
		var st unix.Stat_t
		test.Must(r.t, unix.Fstat(fd, &st))
		test.Must(r.t, unix.Ftruncate(fd, int64(in.n(2))*4096))
		runtime.Gosched()
		test.Must(r.t, unix.Ftruncate(fd, st.Size))
	case 3: // indexes
		r.ring.SetAvailIdx(uint16(in.odd()))
		r.ring.SetUsedIdx(uint16(in.odd()))
		_ = eventfd.Signal(r.kick)
	}
}

// leftovers notices what executions have left behind.
type leftovers struct {
	files []string
	maps  int
	looks int
}

// look is called when no attacker holds a connection.
func (l *leftovers) look(t testing.TB) {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	test.Must(t, err)
	shared := strings.Count(string(maps), "/memfd:")
	if l.looks++; l.looks < 3 {
		l.files, l.maps = openFiles(t), shared
		return
	}
	sameFiles(t, l.files)
	test.Equal(t, shared, l.maps, "mappings of memory files")
	test.Eventually(t, "only the healthy queue runs",
		func() bool { return goroutines("(*worker).run(") == 1 })
	if n := goroutines("vhost.Serve("); n != 1 {
		t.Errorf("%d sessions, expected the healthy one", n)
	}
}

// The streams are made of all messages that have a name.
func TestStreamsHaveEveryMessage(t *testing.T) {
	steps, _ := newStreamRig(t).steps()
	for r := range vhost.Request(64) {
		named := !strings.HasPrefix(r.String(), "message ")
		if named && !slices.ContainsFunc(steps, func(m message) bool { return m.request == r }) {
			t.Errorf("steps has no %v", r)
		}
	}
}

// The front-end goes away after any byte of a session in which a ring starts, serves and stops.
func TestDisconnectAtEveryByteOfALiveSession(t *testing.T) {
	crowd, r := newCrowd(t, time.Millisecond), newStreamRig(t)
	steps, _ := r.steps()
	total := 0
	for _, m := range steps {
		total += vhost.HeaderSize + len(m.payload)
	}
	var before []string
	for end := range total + 1 {
		if end == 10 {
			before = openFiles(t)
		}
		r.ring.Clear()
		r.link(0, r.request(0, blk.TypeIn, 0, virtq.Desc{Addr: atkData, Len: 512,
			Flags: virtq.DescWrite}))
		r.ring.Offer(0)
		r.connect()
		left := end
		for _, m := range steps {
			b := r.encode(m, vhost.FlagVersion)
			b = b[:min(left, len(b))]
			r.play(b, m.fds, nil, false)
			left -= len(b)
		}
		r.leave()
		crowd.check(t)
	}
	sameFiles(t, before)
}

// streamSeeds are streams in the form that execute reads.
func streamSeeds() [][]byte {
	seeds := [][]byte{{}, {255}}
	for k := range byte(40) {
		for _, how := range []byte{0, 1, 2, 0x30, 0x42} {
			for _, ahead := range []byte{5, 12} {
				seeds = append(seeds, []byte{ahead, k, how, 20, 1, 2, 3, 4, k + 1, 0, 36, 1, 1, 1,
					k})
			}
		}
	}
	return seeds
}

// FuzzHostileFrontend: whatever a front-end sends, with whatever descriptors and in whatever
// pieces, its session goes on or ends, leaves nothing behind, and nothing else notices.
func FuzzHostileFrontend(f *testing.F) {
	crowd, r, left, execs := newCrowd(f, time.Millisecond), newStreamRig(f), &leftovers{}, 0
	for _, s := range streamSeeds() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r.execute(t, in)
		r.t = f
		crowd.check(t)
		if execs++; execs%64 == 0 {
			left.look(t)
		}
	})
}

// TestHostileFrontend is FuzzHostileFrontend with generated inputs, for as long as
// COWBLK_FUZZ_SECONDS and COWBLK_FUZZ_EXECS say.
func TestHostileFrontend(t *testing.T) {
	before := openFiles(t)
	t.Run("attack", func(t *testing.T) {
		crowd, left := newCrowd(t, time.Millisecond), &leftovers{}
		var bodies []func(in []byte)
		for range lanes {
			r := newStreamRig(t)
			bodies = append(bodies, func(in []byte) { r.execute(t, in) })
		}
		generate(t, "FuzzHostileFrontend", streamSeeds(), bodies, func() {
			crowd.check(t)
			left.look(t)
		})
		crowd.report(t)
	})
	sameFiles(t, before)
}
