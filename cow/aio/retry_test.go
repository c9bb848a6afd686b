package aio

import (
	"testing"

	"golang.org/x/sys/unix"
)

// forge changes the result of the one completion that the kernel has posted, or will post: the
// ring's memory is shared.
func forge(r *rig, res int32) {
	r.t.Helper()
	e := r.e
	for e.k.cqTail.Load() == e.cqHead {
		if e.deferredWork() {
			e.k.enter(0, enterGetEvents)
		}
	}
	e.k.cqes[e.cqHead&uint32(len(e.k.cqes)-1)].res = res
}

// An operation that the kernel refuses to block for is repeated once by a thread that may block: a
// persistent error is reported.
func TestRefusalToWait(t *testing.T) {
	for _, v := range variants(t) {
		for _, errno := range []unix.Errno{unix.EAGAIN, unix.EINTR} {
			t.Run(v.name+", "+errno.Error(), func(t *testing.T) {
				r := newRig(t, v, 1)
				fd := places(t)[0].file(t, page)
				b := make([]byte, page)
				r.start(1, false, fd, vec(b), 0)
				r.submit()
				forge(r, -int32(errno))
				clear(b)
				want(t, "the second time", r.wait(1)[1], page, 0)
				wantPattern(t, "the second time", b, 0)

				r.start(2, false, fd, vec(b), 0)
				r.submit()
				forge(r, -int32(errno))
				if got := r.e.Reap(nil); len(got) != 0 {
					t.Fatalf("reaped %v, expected a second try", got)
				}
				forge(r, -int32(errno))
				want(t, "refused twice", r.wait(1)[2], 0, errno)
			})
		}
	}
}
