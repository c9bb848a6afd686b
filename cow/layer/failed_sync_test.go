package layer

import (
	"maps"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// A sync of the map that fails, at the open after a kill, in a flush or at the close, loses nothing
// of what the guest has written: the next process finds it. After a failed sync of the data it is
// dropped, unless the user wants what the page cache has.
func TestUnflushedAfterAFailedSync(t *testing.T) {
	const blocks = 3*blocksPerPage + 7
	for _, file := range []string{"map", "data"} {
		for n := 1; ; n++ {
			p, dir := paths(t), sharedDir(t)
			owned := killHead(t, p, dir, blocks)
			name := map[string]string{"map": p.Map, "data": p.Data}[file]
			syncs := 0
			x := faultfs.OverShared(vfs.OS{}, nil)
			x.OnCall(func(c faultfs.Call) error { // ENOSPC, as a delayed allocation may fail
				if c.Op == "sync" && c.Name == name {
					if syncs++; syncs == n {
						return unix.ENOSPC
					}
				}
				return nil
			})
			l, err := Open(x, p, OpenParams{Write: true, SharedDir: dir})
			if err == nil {
				write(t, l, 200, 2)
				owned[200], owned[201] = true, true
				_, err = l.Flush(nil)
			}
			if err == nil {
				write(t, l, 300, 1)
				owned[300] = true
				err = l.Finish()
			}
			if l != nil {
				test.Must(t, l.Abandon())
			}
			if syncs < n {
				test.Must(t, err)
				if n <= 2 {
					t.Errorf("%s: only %d syncs", file, n-1)
				}
				break
			}
			test.ErrorIs(t, err, unix.ENOSPC, file, n)
			test.Equal(t, SyncFailed(vfs.OS{}, p), file == "data",
				"the sync of the data has failed")
			o := OpenParams{}
			if file == "data" {
				l = reopen(t, p, o)
				if l.Unflushed(); len(sourceBits(t, l)) >= len(owned) {
					t.Errorf("sync %d of the data failed: nothing was dropped", n)
				}
				test.Must(t, l.Abandon())
				o.Unflushed = KeepUnflushed
			}
			l = reopen(t, p, o)
			if got := sourceBits(t, l); !maps.Equal(got, owned) {
				t.Errorf("sync %d of the %s failed: %d blocks, expected %d", n, file, len(got),
					len(owned))
			}
			test.Must(t, l.Abandon())
		}
	}
}
