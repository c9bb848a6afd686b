package layer

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
)

// A promotion writes back its former head while the flusher syncs it for the guest. If one gets the
// write-back error, the other has made nothing durable.
func TestSyncBesideOneThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := paths(t)
		must(t, newHead(t, p, CreateParams{Size: 1 << 20}).Close())
		slow := faultfs.Over(vfs.OS{}, nil)
		l, err := Open(slow, p, OpenParams{Write: true})
		must(t, err)
		// The first sync fails after a while. As on Linux, the error is reported once: a concurrent
		// sync succeeds.
		var syncs atomic.Int32
		slow.OnCall(func(c faultfs.Call) error {
			if c.Op == "sync" && syncs.Add(1) == 1 {
				time.Sleep(time.Second)
				return errInjected
			}
			return nil
		})
		first := make(chan error)
		go func() { first <- l.SyncData() }()
		synctest.Wait()
		if err := l.SyncData(); !errors.Is(err, ErrSyncFailed) {
			t.Errorf("beside a sync that fails: got %v, want ErrSyncFailed", err)
		}
		if err := <-first; !errors.Is(err, errInjected) {
			t.Errorf("the sync that fails: got %v", err)
		}
		must(t, l.Abandon())
	})
}
