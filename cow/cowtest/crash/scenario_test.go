package crash

import (
	"testing"
	"testing/synctest"
	"time"

	"cowblk/internal/test"
)

// scenarios has the operations one by one. Each is cut at every record of its tape.
var scenarios = []struct{ name, script string }{
	{"first write", `
		create vm 65536 4096
		open vm
		write vm 0+4096
		write vm 8192+8192
		flush vm
		write vm 20480+4096
		close vm`},
	{"overwrite", `
		create vm 65536 4096
		open vm
		write vm 0+8192
		flush vm
		write vm 0+8192
		write vm 512+1024
		flush vm
		write vm 4096+4096
		write vm 4608+512
		close vm`},
	{"handed over", `
		create vm 65536 4096
		open vm
		write vm 0+8192
		flush vm
		write vm 16384+4096
		take-over vm
		write vm 32768+4096
		flush vm
		write vm 4096+4096
		take-over vm
		kill
		open vm
		close vm`},
	{"partial block", `
		import img
		create vm 65536 4096 img
		open vm
		write vm 512+512
		flush vm
		write vm 7680+1024
		write vm 2048+512
		flush vm
		write vm 30720+4096
		flush vm
		close vm`},
	{"last block", `
		create vm 34304 4096
		open vm
		write vm 32768+512
		flush vm
		write vm 33280+1024
		discard vm 32768+1536
		flush vm
		write-zeroes vm 33792+512
		close vm`},
	{"discard", `
		import img
		create vm 65536 4096 img
		open vm
		write vm 0+16384
		flush vm
		discard vm 4096+4096 16384+12288
		flush vm
		write vm 4608+512
		discard vm 0+65536
		close vm`},
	{"write-zeroes", `
		import img
		create vm 65536 4096 img
		open vm
		write vm 0+12288
		write-zeroes vm 512+8192
		flush vm
		write-zeroes vm 20992+10240 49152+4096
		write vm 21504+512
		flush vm
		close vm`},
	{"write-through", `
		import img
		create vm 65536 4096 img
		open vm
		write vm 0+4096 fua
		write vm 512+512 fua
		write vm 8704+512
		discard vm 0+4096 fua
		write-zeroes vm 8192+8192 fua
		write vm 12288+512 fua
		close vm`},
	{"promote, stopped", `
		create vm 65536 4096
		open vm
		write vm 0+8192
		close vm
		promote vm one
		open vm
		write vm 512+512
		flush vm
		write vm 4096+4096
		close vm
		promote vm two`},
	{"promote, live", `
		create vm 65536 4096
		open vm
		write vm 0+8192
		flush vm
		write vm 4096+8192
		promote vm one
		write vm 512+512
		write vm 16384+4096
		flush vm
		write vm 0+4096
		write vm 20480+4096 fua
		promote vm two
		write vm 20992+512
		flush vm
		wait
		close vm`},
	{"promote over unsealed layers", `
		create vm 65536 4096
		open vm
		write vm 0+8192
		promote vm one
		write vm 512+512
		kill
		open vm
		write vm 4608+512
		flush vm
		promote vm two
		kill
		open vm
		flush vm
		write vm 1024+512
		promote vm three
		write vm 1536+512
		flush vm
		wait
		close vm`},
	{"sums", `
		create vm 66048 512
		open vm
		write vm 0+16384
		discard vm 4096+4096
		write vm 65024+1024
		flush vm
		promote vm one
		wait
		sum vm
		write vm 512+512
		write vm 8192+512 fua
		flush vm
		promote vm two
		sum vm
		write vm 1024+512
		wait
		close vm
		open vm
		write vm 1536+512 fua
		close vm`},
	{"promote two", `
		create a 32768 4096
		create b 32768 4096
		open a
		open b
		write a 0+8192
		write b 0+8192
		flush a
		promote a,b one
		write a 512+512
		write b 4096+4096
		flush b
		flush a
		wait
		close a
		close b
		promote a,b two`},
	{"create", `
		import img
		create a 65536 4096 img
		create b 32768 512
		create c 65536 65536
		open c
		write c 512+512
		close c`},
	{"clone from a tag", `
		create a 65536 4096
		open a
		write a 0+16384
		promote a one
		write a 4096+4096
		wait
		create b 65536 4096 a@one
		open b
		write b 512+512
		flush b
		close a
		create c 98304 4096 a@one
		open c
		write c 65536+4096
		promote c two
		close c
		close b`},
	{"import", `
		import one
		import two`},
	{"rollback", `
		create vm 65536 4096
		open vm
		write vm 0+16384
		close vm
		promote vm one
		open vm
		write vm 4096+4096
		close vm
		promote vm two
		open vm
		write vm 8192+4096
		close vm
		rollback vm two
		open vm
		write vm 8192+512
		close vm
		rollback vm one
		open vm
		write vm 0+512 fua
		close vm`},
	{"remove", `
		import img
		create a 65536 4096 img
		create b 32768 4096
		open b
		write b 0+4096
		close b
		promote b one
		create c 32768 4096 b@one
		remove b
		remove a
		remove img
		open c
		write c 512+512
		close c
		remove c`},
	{"killed and served on", `
		create vm 65536 4096
		open vm
		write vm 0+8192
		flush vm
		write vm 8192+8192
		kill
		open vm
		flush vm
		write vm 512+512
		kill
		open vm
		write vm 8704+512 fua
		discard vm 0+8192
		flush vm
		close vm
		promote vm one
		kill
		open vm
		write vm 0+512 fua
		close vm`},
}

// play carries a script out that must succeed.
func play(t *testing.T, l *Life) *Played {
	t.Helper()
	var p *Played
	var err error
	synctest.Test(t, func(t *testing.T) { p, err = l.Play() })
	if err == nil {
		err = p.Broken
	}
	if err != nil {
		t.Fatalf("seed %d, depth %d: %v\n%s", l.Seed, l.Depth, err, Text(l.Script))
	}
	return p
}

// tryPlay is play for a script that may be impossible.
func tryPlay(t *testing.T, l *Life) (p *Played) {
	t.Helper()
	var err error
	synctest.Test(t, func(t *testing.T) { p, err = l.Play() })
	if err != nil {
		return nil
	}
	return p
}

func TestEveryBoundary(t *testing.T) {
	for _, c := range scenarios {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			script, err := Parse(c.script)
			test.Must(t, err)
			start, cuts, records := time.Now(), 0, 0
			schedules, exam := uint64(1), Exam{Every: true, Singles: 3, Extra: 1}
			if long(t) {
				schedules, exam.Singles, exam.Extra = 4, 30, 8
			}
			for seed := range schedules {
				l := &Life{Script: script, Seed: seed}
				p := play(t, l)
				exam.Seed = seed
				n, err := l.Examine(p, exam)
				test.Must(t, err)
				cuts += n
				records += len(p.Tape.Records)
			}
			t.Logf("%d cuts after %d records in %.1f s", cuts, records, time.Since(start).Seconds())
		})
	}
}
