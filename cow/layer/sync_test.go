package layer

import (
	"errors"
	"io/fs"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cowblk/cow/vfs"
)

// failOnceFS is a file system whose first sync of data fails after a while. As on Linux, the error
// is reported once: a concurrent sync succeeds.
type failOnceFS struct {
	vfs.OS
	syncs atomic.Int32
}

func (t *failOnceFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f, err := t.OS.OpenFile(name, flag, perm)
	if err == nil && strings.HasSuffix(name, "data") {
		f = &failOnceFile{f, t}
	}
	return f, err
}

type failOnceFile struct {
	vfs.File
	t *failOnceFS
}

func (f *failOnceFile) Datasync() error {
	if f.t.syncs.Add(1) == 1 {
		time.Sleep(time.Second)
		return errInjected
	}
	return f.File.Datasync()
}

// A promotion writes back its former head while the flusher syncs it for the guest. If one gets the
// write-back error, the other has made nothing durable.
func TestSyncBesideOneThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := paths(t)
		must(t, newHead(t, p, CreateParams{Size: 1 << 20}).Close())
		slow := &failOnceFS{}
		l, err := Open(slow, p, OpenParams{Write: true})
		must(t, err)
		slow.syncs.Store(0)
		first := make(chan error)
		go func() { first <- l.SyncData() }()
		synctest.Wait()
		wantErr(t, l.SyncData(), ErrSyncFailed, "beside a sync that fails")
		if err := <-first; !errors.Is(err, errInjected) {
			t.Errorf("the sync that fails: got %v", err)
		}
		must(t, l.Abandon())
	})
}
