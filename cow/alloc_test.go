package cow_test

import (
	"testing"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/cow/vfs"
	"cowblk/eventfd"
	"cowblk/internal/test"
)

// No request allocates.
func TestNoAllocations(t *testing.T) {
	const runs = 200
	rig, err := cowtest.NewRig(t.TempDir(), vfs.OS{}, cowtest.Shape{Size: 64 << 20, BlockSize: 4096,
		BaseSize: 16 << 20})
	test.Must(t, err)
	ch, err := rig.Disk.NewChannel()
	test.Must(t, err)
	out := make([]*cow.Request, 0, 1)
	buf := make([]byte, 8192)
	submit := func(r *cow.Request) {
		ch.Submit(r)
		for out = ch.Completed(out[:0]); len(out) == 0; out = ch.Completed(out[:0]) {
			_ = eventfd.Wait(ch.FD())
		}
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	data := [][]byte{buf[:1000], buf[1000:8192]}
	var next int64
	advance := func(r *cow.Request) { r.Offset = next; next += 16384 }
	tests := []struct {
		name string
		req  cow.Request
		step func(*cow.Request)
	}{
		{"read of the base", cow.Request{Op: cow.OpRead, Length: 8192, Data: data}, nil},
		{"read of zeros", cow.Request{Op: cow.OpRead, Offset: 32 << 20, Length: 8192, Data: data},
			nil},
		{"first write", cow.Request{Op: cow.OpWrite, Length: 8192, Data: data}, advance},
		{"first write with copy-up", cow.Request{Op: cow.OpWrite, Length: 7168, Data: data},
			func(r *cow.Request) { advance(r); r.Offset += 512 }},
		{"overwrite", cow.Request{Op: cow.OpWrite, Length: 8192, Data: data}, nil},
		{"read of the head", cow.Request{Op: cow.OpRead, Length: 8192, Data: data}, nil},
		{"discard", cow.Request{Op: cow.OpDiscard, Ranges: []cow.Range{{0, 8192}}}, nil},
		{"write-zeroes", cow.Request{Op: cow.OpWriteZeroes, Ranges: []cow.Range{{512, 8192}}}, nil},
		{"flush", cow.Request{Op: cow.OpFlush}, nil},
		{"write-through overwrite", cow.Request{Op: cow.OpWrite, FUA: true, Length: 8192,
			Data: data}, nil},
	}
	for _, tt := range tests {
		n := testing.AllocsPerRun(runs, func() {
			if tt.step != nil {
				tt.step(&tt.req)
			}
			submit(&tt.req)
		})
		if n != 0 {
			t.Errorf("%s: %v allocations per request", tt.name, n)
		}
	}
	test.Check(t, ch.Close())
	test.Check(t, rig.Close())
}
