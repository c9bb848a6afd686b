package layer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cowblk/cow/pagecache"
	"cowblk/cow/vfs"
)

var errInjected = errors.New("injected")

// recordingFS records every change and sync of the files below it and fails the given one.
type recordingFS struct {
	vfs.OS
	log  []string
	fail string // entry of the log to fail
}

func (r *recordingFS) record(format string, args ...any) error {
	entry := fmt.Sprintf(format, args...)
	r.log = append(r.log, entry)
	if entry == r.fail {
		return fmt.Errorf("%s: %w", entry, errInjected)
	}
	return nil
}

func (r *recordingFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f, err := r.OS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &recordedFile{f, r, filepath.Base(name)}, nil
}

func (r *recordingFS) SyncDir(dir string) error {
	if err := r.record("sync directory"); err != nil {
		return err
	}
	return r.OS.SyncDir(dir)
}

type recordedFile struct {
	vfs.File
	r    *recordingFS
	base string
}

// AsyncFD and Map must not bypass the methods.
func (f *recordedFile) AsyncFD([]vfs.Iovec, int64) int { return -1 }

func (f *recordedFile) Map(int64) (*pagecache.Mapping, error) { return nil, pagecache.ErrNotMappable }

func (f *recordedFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.r.record("write %s %d", f.base, off); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

// Pwritev is short: the caller must continue.
func (f *recordedFile) Pwritev(iov []vfs.Iovec, off int64) (int, error) {
	if err := f.r.record("write %s %d", f.base, off); err != nil {
		return 0, err
	}
	if iov[0].Len > 1000 {
		short := iov[0]
		short.SetLen(1000)
		return f.File.Pwritev([]vfs.Iovec{short}, off)
	}
	return f.File.Pwritev(iov[:1], off)
}

func (f *recordedFile) PunchHole(off, n int64) error {
	if err := f.r.record("punch %s %d", f.base, off); err != nil {
		return err
	}
	return f.File.PunchHole(off, n)
}

func (f *recordedFile) Truncate(n int64) error {
	if err := f.r.record("truncate %s", f.base); err != nil {
		return err
	}
	return f.File.Truncate(n)
}

func (f *recordedFile) Datasync() error {
	if err := f.r.record("sync %s", f.base); err != nil {
		return err
	}
	return f.File.Datasync()
}

func (r *recordingFS) expect(t *testing.T, what, want string) {
	t.Helper()
	got := slices.Compact(slices.Clone(r.log)) // repeated short writes are one
	if strings.Join(got, ", ") != want {
		t.Errorf("%s:\n got %s\nwant %s", what, strings.Join(got, ", "), want)
	}
	r.log = nil
}

// short writes of one map page, as recordingFS makes them
const mapPageWrites = "write map 4096, write map 5096, write map 6096, write map 7096, write map 8096"

func TestOrderOfWritesAndSyncs(t *testing.T) {
	p, r := paths(t), &recordingFS{}
	l, err := CreateHead(r, p, CreateParams{Size: 1 << 20})
	must(t, err)
	r.expect(t, "create", "truncate data, truncate map, sync data, write map 0, sync map, sync directory")
	l.Bitmap().Set(3, 1)
	must(t, l.Close())
	r.expect(t, "close", "sync data, "+mapPageWrites+", sync map, write map 0, sync map")
	l, err = Open(r, p, OpenParams{Write: true})
	must(t, err)
	r.expect(t, "open", "write map 0, sync map")
	l.Bitmap().Set(4, 1)
	must(t, l.Seal(time.Now()))
	r.expect(t, "seal", "sync data, "+mapPageWrites+", sync map, write map 0, sync map")
	must(t, l.Close())
	l, err = Open(r, p, OpenParams{})
	must(t, err)
	if bits := sourceBits(t, l); len(bits) != 2 || !bits[3] || !bits[4] {
		t.Errorf("bits after short writes: got %v", bits)
	}
	must(t, l.Close())
	r.expect(t, "sealed layer", "")
}

// An old header must be zeroed, durably, before the bitmap below it.
func TestOrderOfForcedFormat(t *testing.T) {
	p, r := paths(t), &recordingFS{}
	must(t, newHead(t, p, CreateParams{Size: 1 << 20}).Close())
	l, err := FormatIfZero(r, p, CreateParams{Size: 1 << 20}, true)
	must(t, err)
	must(t, l.Abandon())
	r.expect(t, "format", "write map 0, sync map, punch map 0, sync map, sync data, write map 0, sync map")
}

// After any failure during the creation of a layer none of its files is left.
func TestCreateFails(t *testing.T) {
	for _, fail := range []string{"truncate data", "truncate map", "sync data", "write map 0", "sync map", "sync directory"} {
		p := paths(t)
		wantErr(t, errOf(CreateHead(&recordingFS{fail: fail}, p, CreateParams{Size: 1 << 20})), errInjected, "%s fails: got", fail)
		if left, _ := os.ReadDir(filepath.Dir(p.Map)); len(left) != 0 {
			t.Errorf("%s fails: %v was left behind", fail, left)
		}
	}
}

func TestFailedSyncIsSticky(t *testing.T) {
	for _, fail := range []string{"sync data", "sync map"} {
		p := paths(t)
		must(t, newHead(t, p, CreateParams{Size: 1 << 20}).Close())
		r := &recordingFS{}
		l, err := Open(r, p, OpenParams{Write: true})
		must(t, err)
		must(t, l.Err())
		l.Bitmap().Set(1, 1)
		r.fail = fail
		wantErr(t, l.Seal(time.Now()), errInjected, "%s fails: Seal: got", fail)
		r.fail = ""
		pages := l.Bitmap().TakeDirty(nil)
		for name, err := range map[string]error{
			"SyncData": l.SyncData(), "SyncMap": l.SyncMap(), "WriteMap": l.WriteMap(pages), "Seal": l.Seal(time.Now()), "Err": l.Err(), "Close": l.Close(),
		} {
			if !errors.Is(err, ErrSyncFailed) {
				t.Errorf("%s after a failed %s: got %v, want ErrSyncFailed", name, fail, err)
			}
		}
		if h, err := ReadHeader(vfs.OS{}, p.Map); err != nil || h.Clean || h.State != Head {
			t.Errorf("%s failed: header: got %+v, %v, want a head that is not clean", fail, h, err)
		}
	}
}

// A full file system is no failed sync: once there is space the next round writes the same bits.
func TestFailedWriteOfTheMapIsRepeated(t *testing.T) {
	p := paths(t)
	must(t, newHead(t, p, CreateParams{Size: 1 << 20}).Close())
	r := &recordingFS{}
	l, err := Open(r, p, OpenParams{Write: true})
	must(t, err)
	l.Bitmap().Set(1, 1)
	pages := l.Bitmap().TakeDirty(nil)
	r.fail = "write map 4096"
	wantErr(t, l.WriteMap(pages), errInjected, "got")
	r.fail = ""
	must(t, l.Err())
	must(t, l.Close())
	again := reopen(t, p, OpenParams{})
	if h := again.Header(); !h.Clean || h.Owned != 1 || !again.Bitmap().Test(1) {
		t.Errorf("after the second attempt: %+v", h)
	}
}

// A refused open has changed nothing even if its only change fails.
func TestOpenForWritingFails(t *testing.T) {
	p := paths(t)
	must(t, newHead(t, p, CreateParams{Size: 1 << 20}).Close())
	wantErr(t, errOf(Open(&recordingFS{fail: "write map 0"}, p, OpenParams{Write: true})), errInjected, "got")
	if l := reopen(t, p, OpenParams{Write: true}); l.Err() != nil {
		t.Error(l.Err())
	}
}

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
