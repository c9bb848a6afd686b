package cow_test

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/eventfd"
	"cowblk/internal/test"
)

// newRig makes a stack with a hook on its files.
func newRig(t testing.TB, s cowtest.Shape) (*cowtest.Rig, *faultfs.FS) {
	t.Helper()
	x := faultfs.Over(vfs.OS{}, nil)
	rig, err := cowtest.NewRig(t.TempDir(), x, s)
	test.Must(t, err)
	t.Cleanup(func() {
		x.OnCall(nil)
		if err := rig.Close(); err != nil && !errors.Is(err, cow.ErrFailed) {
			t.Error(err)
		}
	})
	return rig, x
}

func fill(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

func write(t testing.TB, d *cow.Disk, b byte, off int64, n int) {
	t.Helper()
	test.Must(t, test.Err(d.WriteAt(fill(b, n), off)))
}

// want checks that n bytes at off are b.
func want(t testing.TB, d *cow.Disk, b byte, off int64, n int) {
	t.Helper()
	p := make([]byte, n)
	test.Must(t, test.Err(d.ReadAt(p, off)))
	for i := range p {
		if p[i] != b {
			t.Fatalf("byte %d: expected %#x, found %#x", off+int64(i), b, p[i])
		}
	}
}

func promote(t testing.TB, rig *cowtest.Rig) *cow.Promotion {
	t.Helper()
	p, err := rig.Promote()
	test.Must(t, err)
	return p
}

func sealed(t testing.TB, p *cow.Promotion) {
	t.Helper()
	<-p.Done()
	test.Must(t, p.Err())
}

// do performs one request on a channel of its own.
func do(d *cow.Disk, r *cow.Request) error {
	ch, err := d.NewChannel()
	if err != nil {
		return err
	}
	ch.Submit(r)
	if err := waitCompletions(ch, 1); err != nil {
		return err
	}
	return errors.Join(r.Err, ch.Close())
}

// waitCompletions waits for n completions of a channel.
func waitCompletions(ch *cow.Channel, n int) error {
	out := make([]*cow.Request, 0, n)
	for {
		if out = ch.Completed(out); len(out) == n {
			return nil
		}
		if err := eventfd.Wait(ch.FD()); err != nil {
			return err
		}
	}
}

// trap blocks matching calls until it is opened.
type trap struct {
	caught  chan struct{} // one element for each blocked call
	release chan struct{}
	once    sync.Once
}

// setTrap blocks calls of op on files whose name ends in suffix. A read that must not wait would
// have to.
func setTrap(t testing.TB, x *faultfs.FS, op, suffix string) *trap {
	p := &trap{caught: make(chan struct{}, 64), release: make(chan struct{})}
	t.Cleanup(p.open)
	x.SetHook(func(c faultfs.Call) faultfs.Fault {
		if c.Op == op && strings.HasSuffix(c.Name, suffix) && !c.Nowait {
			p.caught <- struct{}{}
			<-p.release
		}
		return faultfs.Fault{Cold: c.Op == op && strings.HasSuffix(c.Name, suffix)}
	})
	return p
}

func (p *trap) open() { p.once.Do(func() { close(p.release) }) }

func startWrite(d *cow.Disk, b byte, off int64, n int) *test.Task {
	return test.Go(func() error { _, err := d.WriteAt(fill(b, n), off); return err })
}
