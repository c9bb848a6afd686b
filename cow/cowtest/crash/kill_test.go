package crash

import (
	"fmt"
	"testing"
	"time"

	"cowblk/internal/test"
)

// A process is killed after every change that an operation makes. The next process serves the disks
// as it finds them. Then the power fails. The next process has relied on what it found, durable or
// not, so its writes must last. In the short form the process is killed after every fifth change
// only.
func TestKilledThenServedThenCut(t *testing.T) {
	const disk = `
		create vm 32768 4096
		open vm
		write vm 0+8192
		close vm
		promote vm one
		open vm
		write vm 512+512
		close vm`
	const serve = `
		open vm
		write vm 1024+512 fua
		close vm`
	for _, c := range []struct{ name, before, op, after string }{
		{"create", "", "create vm 32768 4096", serve},
		{"clone", disk, "create b 32768 4096 vm@one", serve + `
			open b
			write b 1024+512 fua
			close b`},
		{"promote", disk, "promote vm two", serve},
		{"promote two", disk + "\ncreate b 32768 4096", "promote vm,b two", serve + `
			open b
			write b 1024+512 fua`},
		{"rollback", disk, "rollback vm one", serve},
		{"remove", disk + "\ncreate b 32768 4096 vm@one", "remove b", serve},
		{"import", "", "import img", `
			create b 4096 4096 img
			open b
			write b 1024+512 fua`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			start, cuts, deaths, every := time.Now(), 0, 0, 5
			if long(t) {
				every = 1
			}
			for n := 1; ; n += every {
				script, err := Parse(c.before + fmt.Sprintf("\nkill %d\n", n) + c.op + c.after)
				test.Must(t, err)
				l := &Life{Script: script, Seed: uint64(n)}
				p := play(t, l)
				k, err := l.Examine(p, Exam{Seed: uint64(n), Every: true, From: p.DiedAt,
					Plain: !long(t), Extra: 2})
				cuts += k
				deaths++
				test.Must(t, err)
				if p.DiedAfterStep {
					break
				}
			}
			t.Logf("killed %d times, %d cuts in %.1f s", deaths, cuts, time.Since(start).Seconds())
		})
	}
}
