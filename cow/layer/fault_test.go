package layer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

var errInjected = errors.New("injected")

// recordingFS records every change and sync of files, and fails the given one. Vectored writes are
// short: the caller must continue.
type recordingFS struct {
	*faultfs.FS
	log  []string
	fail string // entry of the log to fail
}

func recording(fail string) *recordingFS {
	r := &recordingFS{fail: fail}
	r.FS = faultfs.Over(vfs.OS{}, func(c faultfs.Call) faultfs.Fault {
		f := faultfs.Fault{Short: 1000}
		entry := c.Op
		switch c.Op {
		case "write", "punch":
			entry = fmt.Sprint(c.Op, " ", filepath.Base(c.Name), " ", c.Off)
		case "sync", "truncate":
			entry = c.Op + " " + filepath.Base(c.Name)
		case "sync directory":
		default:
			return faultfs.Fault{}
		}
		r.log = append(r.log, entry)
		if entry == r.fail {
			f.Err = errInjected
		}
		return f
	})
	return r
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
	p, r := paths(t), recording("")
	l, err := CreateHead(r, p, CreateParams{Size: 1 << 20})
	test.Must(t, err)
	r.expect(t, "create", "truncate data, truncate map, sync data, write map 0, sync map, sync directory")
	l.Bitmap().Set(3, 1)
	test.Must(t, l.Close())
	r.expect(t, "close", "sync data, "+mapPageWrites+", sync map, write map 0, sync map")
	l, err = Open(r, p, OpenParams{Write: true})
	test.Must(t, err)
	r.expect(t, "open", "write map 0, sync map")
	l.Bitmap().Set(4, 1)
	test.Must(t, l.Seal(time.Now()))
	r.expect(t, "seal", "sync data, "+mapPageWrites+", sync map, write map 0, sync map")
	test.Must(t, l.Close())
	l, err = Open(r, p, OpenParams{})
	test.Must(t, err)
	if bits := sourceBits(t, l); len(bits) != 2 || !bits[3] || !bits[4] {
		t.Errorf("bits after short writes: got %v", bits)
	}
	test.Must(t, l.Close())
	r.expect(t, "sealed layer", "")
}

// An old header must be zeroed, durably, before the bitmap below it.
func TestOrderOfForcedFormat(t *testing.T) {
	p, r := paths(t), recording("")
	test.Must(t, newHead(t, p, CreateParams{Size: 1 << 20}).Close())
	l, err := FormatIfZero(r, p, CreateParams{Size: 1 << 20}, true)
	test.Must(t, err)
	test.Must(t, l.Abandon())
	r.expect(t, "format", "write map 0, sync map, punch map 0, sync map, sync data, write map 0, sync map")
}

// After any failure during the creation of a layer none of its files is left.
func TestCreateFails(t *testing.T) {
	for _, fail := range []string{"truncate data", "truncate map", "sync data", "write map 0",
		"sync map", "sync directory"} {
		p := paths(t)
		test.ErrorIs(t, test.Err(CreateHead(recording(fail), p, CreateParams{Size: 1 << 20})),
			errInjected, fmt.Sprintf("%s fails: got", fail))
		if left, _ := os.ReadDir(filepath.Dir(p.Map)); len(left) != 0 {
			t.Errorf("%s fails: %v was left behind", fail, left)
		}
	}
}

func TestFailedSyncIsSticky(t *testing.T) {
	for _, fail := range []string{"sync data", "sync map"} {
		p := paths(t)
		test.Must(t, newHead(t, p, CreateParams{Size: 1 << 20}).Close())
		r := recording("")
		l, err := Open(r, p, OpenParams{Write: true})
		test.Must(t, err)
		test.Must(t, l.Err())
		l.Bitmap().Set(1, 1)
		r.fail = fail
		test.ErrorIs(t, l.Seal(time.Now()), errInjected, fmt.Sprintf("%s fails: Seal: got", fail))
		r.fail = ""
		pages := l.Bitmap().TakeDirty(nil)
		for name, err := range map[string]error{
			"SyncData": l.SyncData(), "SyncMap": l.SyncMap(), "WriteMap": l.WriteMap(pages),
			"Seal": l.Seal(time.Now()), "Err": l.Err(), "Close": l.Close(),
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
	test.Must(t, newHead(t, p, CreateParams{Size: 1 << 20}).Close())
	r := recording("")
	l, err := Open(r, p, OpenParams{Write: true})
	test.Must(t, err)
	l.Bitmap().Set(1, 1)
	pages := l.Bitmap().TakeDirty(nil)
	r.fail = "write map 4096"
	test.ErrorIs(t, l.WriteMap(pages), errInjected, "got")
	r.fail = ""
	test.Must(t, l.Err())
	test.Must(t, l.Close())
	again := reopen(t, p, OpenParams{})
	if h := again.Header(); !h.Clean || h.Owned != 1 || !again.Bitmap().Test(1) {
		t.Errorf("after the second attempt: %+v", h)
	}
}

// A refused open has changed nothing even if its only change fails.
func TestOpenForWritingFails(t *testing.T) {
	p := paths(t)
	test.Must(t, newHead(t, p, CreateParams{Size: 1 << 20}).Close())
	test.ErrorIs(t, test.Err(Open(recording("write map 0"), p, OpenParams{Write: true})),
		errInjected, "got")
	if l := reopen(t, p, OpenParams{Write: true}); l.Err() != nil {
		t.Error(l.Err())
	}
}

// A promotion writes back its former head while the flusher syncs it for the guest. If one gets the
// write-back error, the other has made nothing durable.
func TestSyncBesideOneThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := paths(t)
		test.Must(t, newHead(t, p, CreateParams{Size: 1 << 20}).Close())
		slow := faultfs.Over(vfs.OS{}, nil)
		l, err := Open(slow, p, OpenParams{Write: true})
		test.Must(t, err)
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
		test.ErrorIs(t, l.SyncData(), ErrSyncFailed, "beside a sync that fails")
		if err := <-first; !errors.Is(err, errInjected) {
			t.Errorf("the sync that fails: got %v", err)
		}
		test.Must(t, l.Abandon())
	})
}
