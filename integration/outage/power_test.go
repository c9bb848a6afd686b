//go:build integration

package outage

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"cowblk/internal/test"
)

// A guest's flush arrives at the device. Every other test here depends on that.
func TestFlushReachesTheDevice(t *testing.T) {
	onEach(t, func(m *machine) {
		m.serve()
		for _, d := range m.disks {
			m.must(d.write(0, 8))
			before, err := m.dev.Counters()
			m.must(err)
			m.must(d.flush())
			after, err := m.dev.Counters()
			m.must(err)
			if after.Syncs == before.Syncs || after.Writes == before.Writes {
				m.Errorf("disk %s: a flush made %d writes and %d syncs of the device", d.name,
					after.Writes-before.Writes, after.Syncs-before.Syncs)
			}
		}
	})
}

// life is a machine that runs random steps up to a power cut, repeatedly.
type life struct {
	*machine
	r    *rand.Rand
	tags int
	log  []string // steps since the last cut
}

const (
	cutsEnv = "COWBLK_OUTAGE_CUTS"
	seedEnv = "COWBLK_OUTAGE_SEED"
)

func number(t *testing.T, env string, otherwise uint64) uint64 {
	t.Helper()
	v := os.Getenv(env)
	if v == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(v, 10, 64)
	test.Must(t, err, env)
	return n
}

// Random steps and power cuts: nothing flushed is lost, and every sector served was once written.
func TestPowerCuts(t *testing.T) {
	cuts := number(t, cutsEnv, 3)
	seed := number(t, seedEnv, uint64(time.Now().UnixNano()))
	onAll(t, func(m *machine) {
		l := &life{machine: m, r: rand.New(rand.NewPCG(seed, 0))}
		if seed%4 == 0 { // the run directory is cut off, too
			m.runInStore()
		}
		m.must(m.dev.Seed(seed))
		defer func() {
			if m.Failed() {
				m.Logf("seed %d; steps since the last cut: %v", seed, l.log)
			}
		}()
		m.serve()
		for n := range cuts {
			l.log = []string{fmt.Sprintf("(after cut %d)", n)}
			l.steps(20 + l.r.IntN(150))
			l.cut()
		}
	})
}

// tag returns the name of the n-th promotion.
func tag(n int) string { return fmt.Sprintf("t%d", n) }

func (l *life) logStep(format string, args ...any) {
	l.log = append(l.log, fmt.Sprintf(format, args...))
}

func (l *life) any() *disk { return l.disks[l.r.IntN(len(l.disks))] }

// steps makes n random steps. None may fail: the device works.
func (l *life) steps(n int) {
	l.Helper()
	for range n {
		d := l.any()
		switch x := l.r.IntN(1000); {
		case x < 700:
			first, n := randomRange(l.r)
			l.logStep("%s: write %d+%d", d.name, first, n)
			l.must(d.write(first, n))
		case x < 760:
			first, n := randomRange(l.r)
			l.logStep("%s: zeros %d+%d", d.name, first, n)
			l.must(d.writeZeroes(first, n, l.r.IntN(2) == 0))
		case x < 860:
			l.logStep("%s: flush", d.name)
			l.must(d.flush())
		case x < 970:
			l.hostStep()
		default:
			l.lifeStep(d)
		}
	}
}

// hostStep makes one random step of the host or the device.
func (l *life) hostStep() {
	l.Helper()
	switch x := l.r.IntN(10); {
	case x < 4:
		files := l.files()
		p := files[l.r.IntN(len(files))]
		l.logStep("write back %s", p)
		l.writeBack(p)
	case x < 6:
		keep := l.r.Float64()
		l.logStep("drain %.2f", keep)
		l.must(l.dev.Drain(keep))
	case x < 7:
		l.logStep("syncfs")
		l.must(l.syncfs())
	case x < 9 && l.fs.reflink:
		l.logStep("reflink")
		l.share()
	default:
		l.logStep("fsync all but data")
		l.fsyncAllButData()
	}
}

// lifeStep makes one random step that concerns the server or a disk as a whole.
func (l *life) lifeStep(d *disk) {
	l.Helper()
	switch x := l.r.IntN(10); {
	case x < 4:
		l.logStep("kill")
		l.kill()
		l.serve()
		l.verify(kernelSurvived)
	case x < 5:
		l.logStep("kill, other namespace")
		l.kill()
		l.serve(otherNamespace...)
		l.verify(kernelSurvived)
	case x < 6:
		l.logStep("restart")
		l.restart()
		l.verify(kernelSurvived)
	default:
		l.tags++
		l.logStep("%s: promote t%d", d.name, l.tags)
		l.must(l.cowblk("promote", d.name, "--tag", tag(l.tags)))
	}
}

// cut cuts the power, at once or at one of the next writes to the device, and checks the remaining
// content.
func (l *life) cut() {
	l.Helper()
	keep := []float64{0, 0.1, 0.5, 0.9, 1}[l.r.IntN(5)]
	if l.r.IntN(3) == 0 {
		l.logStep("fsync all but data")
		l.fsyncAllButData()
	}
	if l.r.IntN(3) > 0 {
		n := 1 + l.r.Int64N(60)
		l.logStep("cut %.1f at write %d", keep, n)
		l.must(l.dev.CutAfter(n, keep))
		// The guests write until a request fails; in some rounds none does.
		for range 40 {
			d := l.any()
			first, n := randomRange(l.r)
			if d.write(first, n) != nil || d.flush() != nil {
				break
			}
		}
	}
	l.logStep("cut %.1f", keep)
	l.must(l.dev.Cut(keep))
	l.crash()
}
