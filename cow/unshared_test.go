package cow_test

import (
	"strings"
	"testing"

	"cowblk/cow"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/internal/test"
)

// Without a shared map a block whose bit is not durable dies with the process, and with it
// everything written to the block since: an overwrite, a discard, a write-zeroes complete when the
// bit is durable, too.
func TestOverwriteOfAnUnsharedBlock(t *testing.T) {
	for _, next := range []cow.Request{
		{Op: cow.OpWrite, Offset: 4096, Length: 512, Data: [][]byte{fill('b', 512)}},
		{Op: cow.OpDiscard, Ranges: []cow.Range{{Offset: 4096, Length: 4096}}},
		{Op: cow.OpWriteZeroes, Ranges: []cow.Range{{Offset: 4096, Length: 4096}}},
	} {
		t.Run(next.Op.String(), func(t *testing.T) {
			m := newMachineDisk(t, 1<<20)
			hold := make(chan struct{})
			p := m.Process(func(c faultfs.Call) faultfs.Fault {
				if c.Op == "sync" && strings.HasSuffix(c.Name, "/data") {
					<-hold
				}
				return faultfs.Fault{}
			})
			d, err := cow.Open(m.spec, cow.Options{FS: p})
			test.Must(t, err)
			var ch [2]*cow.Channel
			for i := range ch {
				if ch[i], err = d.NewChannel(); err != nil {
					t.Fatal(err)
				}
			}
			first := cow.Request{Op: cow.OpWrite, Offset: 4096, Length: 4096,
				Data: [][]byte{fill('a', 4096)}}
			ch[0].Submit(&first) // waits for its flush
			ch[1].Submit(&next)
			for i, c := range ch {
				if done := c.Completed(make([]*cow.Request, 0, 1)); len(done) > 0 {
					t.Errorf("request %d has completed, and nothing is durable", i+1)
					close(hold)
					return
				}
			}
			close(hold)
			for i, c := range ch {
				test.Check(t, waitCompletions(c, 1), "request", i+1)
			}
			p.Kill()
			again, err := cow.Open(m.spec, cow.Options{FS: m.Process(nil)})
			test.Must(t, err)
			expected := byte(0)
			if next.Op == cow.OpWrite {
				expected = 'b'
			}
			want(t, again, expected, 4096, 512)
		})
	}
}
