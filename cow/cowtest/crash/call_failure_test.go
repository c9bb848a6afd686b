package crash

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/internal/test"
)

// failures are the ways in which one call on a file may fail.
var failures = []struct {
	name  string
	op    string // of the calls that can fail so; "": any
	fault faultfs.Fault
}{
	{"EIO", "", faultfs.Fault{Err: syscall.EIO}},
	{"EIO, half written", "", faultfs.Fault{Err: syscall.EIO, Done: 512, Through: faultfs.Half}},
	{"EIO, the answer lost", "sync", faultfs.Fault{Err: syscall.EIO, Through: faultfs.All}},
	{"ENOSPC", "", faultfs.Fault{Err: syscall.ENOSPC}},
	{"EDQUOT", "write", faultfs.Fault{Err: syscall.EDQUOT, Done: 1024}},
	{"short", "write", faultfs.Fault{Short: 512}},
	{"short", "read", faultfs.Fault{Short: 512}},
}

// faulty has the scenarios whose calls fail one by one.
var faulty = []struct{ name, script string }{
	{"guest", `
		create vm 32768 4096
		open vm
		write vm 0+8192
		flush vm
		write vm 512+512
		write vm 9216+512
		flush vm
		discard vm 0+4096
		write-zeroes vm 4608+8192
		flush vm
		write vm 16384+512 fua
		flush vm
		close vm
		open vm
		write vm 16384+4096
		flush vm
		close vm`},
	{"promote, stopped", `
		create vm 32768 4096
		open vm
		write vm 0+8192
		close vm
		promote vm one
		promote vm again
		open vm
		write vm 512+512
		flush vm
		close vm`},
	{"promote, live", `
		create vm 32768 4096
		open vm
		write vm 0+8192
		flush vm
		write vm 0+4096
		promote vm one
		write vm 512+512
		flush vm
		promote vm two
		write vm 4096+512 fua
		flush vm
		close vm
		open vm
		write vm 4608+512
		flush vm
		close vm`},
	{"promote two", `
		create a 32768 4096
		create b 32768 4096
		open a
		open b
		write a 0+4096
		write b 0+4096
		promote a,b one
		write a 512+512
		flush a
		flush b
		close a
		close b
		open a
		write a 1024+512 fua
		close a
		open b
		write b 1024+512 fua
		close b`},
	{"images and clones", `
		import img
		import again
		create vm 32768 4096 img
		open vm
		write vm 0+4096
		close vm
		promote vm one
		create c 32768 4096 vm@one
		remove vm
		rollback c one
		open c
		write c 512+512 fua
		close c`},
}

// Every call on a file fails once, in every way. The process continues as far as it can; then it
// dies, or the power fails. No acknowledged write may be lost, no half-made change may be visible,
// and no flush may succeed after a failed sync.
func TestEveryCallFails(t *testing.T) {
	for _, c := range faulty {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			script, err := Parse(c.script)
			test.Must(t, err)
			calls := play(t, &Life{Script: script, Seed: 7}).Calls
			every := max(7, calls/40)
			if long(t) {
				every = 1
			}
			start, tried, cuts := time.Now(), 0, 0
			for n := 1; n <= calls; n++ {
				for i, f := range failures {
					if (n+i)%every != 0 {
						continue
					}
					k, happened := failOnce(t, script, n, f.op, f.fault, f.name)
					cuts += k
					if happened {
						tried++
					}
				}
			}
			t.Logf("%d calls, %d failures, %d cuts in %.1f s", calls, tried, cuts,
				time.Since(start).Seconds())
		})
	}
}

// failOnce plays a script whose n-th call fails, and examines the store.
func failOnce(t *testing.T, script []Step, n int, op string, fault faultfs.Fault,
	name string) (cuts int, happened bool) {
	t.Helper()
	var what string
	l := &Life{Script: script, Seed: 7, Fault: func(k int, c faultfs.Call) faultfs.Fault {
		if k != n || op != "" && op != c.Op {
			return faultfs.Fault{}
		}
		what = c.String()
		return fault
	}}
	p := tryPlay(t, l)
	if what == "" {
		return 0, false
	}
	fail := func(err error) {
		t.Helper()
		t.Fatalf("call %d, %s: %s: %v\n%s", n, what, name, err, Text(script))
	}
	if p == nil {
		fail(fmt.Errorf("the script did not come to its end"))
	}
	if p.Broken != nil {
		fail(p.Broken)
	}
	cuts, err := l.Examine(p, Exam{Seed: uint64(n), Cuts: 3})
	if err == nil {
		var k int
		k, err = l.Examine(p, Exam{Seed: uint64(n), Every: true, From: len(p.Tape.Records),
			Singles: 1, Extra: 1})
		cuts += k
	}
	if err == nil {
		err = checkUsable(p.Machine)
	}
	if err != nil {
		fail(err)
	}
	return cuts, true
}

// checkUsable promotes and removes every disk of a store whose last process is dead.
func checkUsable(m *faultfs.Machine) error {
	s, err := openStore(m.Process(nil))
	if err != nil {
		return err
	}
	disks, err := s.Disks()
	for _, d := range disks {
		if err == nil {
			_, err = s.Promote(context.Background(), []string{d.Name}, "afterwards")
		}
		if err == nil {
			_, err = s.Remove(context.Background(), d.Name)
		}
	}
	return err
}
