package crash

import (
	"fmt"
	"syscall"
	"testing"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/internal/test"
)

// A sync of a directory fails, or it and the next one. A change of names may then be durable or
// not, and so may its undo. Whatever the power cut leaves, no existing disk or image is incomplete.
// In the short form every third sync fails.
func TestDirectorySyncFails(t *testing.T) {
	const disk = `
		create vm 32768 4096
		open vm
		write vm 0+8192
		close vm
		promote vm one
		open vm
		write vm 512+512
		close vm`
	for _, c := range []struct{ name, before, op string }{
		{"create", "", "create vm 32768 4096"},
		{"clone", disk, "create b 32768 4096 vm@one"},
		{"promote", disk, "promote vm two"},
		{"promote two", disk + "\ncreate b 32768 4096", "promote vm,b two"},
		{"rollback", disk, "rollback vm one"},
		{"remove", disk, "remove vm"},
		{"import", "", "import img"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			first, every, cuts, tried := directorySyncs(t, c.before), 3, 0, 0
			if long(t) {
				every = 1
			}
			for n := first + 1; ; n++ {
				happened := false
				for _, times := range []int{1, 2} {
					if (n+times)%every != 0 {
						happened = true
						continue
					}
					k, some := directorySyncFails(t, c.before+"\n"+c.op, n, times)
					happened = some
					cuts += k
				}
				if !happened || n-first > directorySyncs(t, c.before+"\n"+c.op) {
					break
				}
				tried++
			}
			t.Logf("%d syncs, %d cuts", tried, cuts)
		})
	}
}

// directorySyncs counts the syncs of directories of a script.
func directorySyncs(t *testing.T, text string) (n int) {
	t.Helper()
	script, err := Parse(text)
	test.Must(t, err)
	tryPlay(t, &Life{Script: script, Fault: func(_ int, c faultfs.Call) faultfs.Fault {
		if c.Op == "sync directory" {
			n++
		}
		return faultfs.Fault{}
	}})
	return n
}

// directorySyncFails fails some syncs of directories, from the n-th on, and cuts the power after
// every record from there on.
func directorySyncFails(t *testing.T, text string, n, times int) (cuts int, happened bool) {
	t.Helper()
	script, err := Parse(text)
	test.Must(t, err)
	calls, from := 0, 0
	l := &Life{Script: script}
	l.Fault = func(k int, c faultfs.Call) faultfs.Fault {
		if c.Op != "sync directory" {
			return faultfs.Fault{}
		}
		if calls++; calls < n || calls >= n+times {
			return faultfs.Fault{}
		}
		if from == 0 {
			from = k
		}
		return faultfs.Fault{Err: syscall.EIO}
	}
	p := tryPlay(t, l)
	if p == nil {
		t.Fatalf("sync %d of a directory: the script did not come to its end", n)
	}
	if from == 0 {
		return 0, false
	}
	first := 0
	for i, r := range p.Tape.Records {
		if r.Failed {
			first = i
			break
		}
	}
	exam := Exam{Seed: uint64(n), Every: true, From: first, Singles: 8, Extra: 1}
	if long(t) {
		exam.Singles = 40
	}
	cuts, err = l.Examine(p, exam)
	if err != nil {
		t.Fatal(fmt.Errorf("%d syncs of directories fail, from number %d: %w", times, n, err))
	}
	return cuts, true
}
