package crash

import (
	"errors"
	"os"
	"strconv"
	"testing"
	"time"

	"cowblk/internal/test"
)

func envInt(t *testing.T, name string, otherwise int) int {
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s: expected a number, found %q", name, s)
	}
	return n
}

// long reports whether the long form of the tests was requested.
func long(t *testing.T) bool { return envInt(t, "COWBLK_CRASH_CUTS", 0) > 0 }

// TestRandom tests everything together: random scripts, requests that overlap in time, promotions,
// kills and cuts. Each life begins with the state that a cut has left. COWBLK_CRASH_CUTS is the
// number of cuts (6,000 unless set), COWBLK_CRASH_PER_LIFE the number of random cuts in each life
// (80 unless set; fewer cuts give more lives). COWBLK_CRASH_SEED repeats a run.
func TestRandom(t *testing.T) {
	want := envInt(t, "COWBLK_CRASH_CUTS", 6_000)
	seed := uint64(envInt(t, "COWBLK_CRASH_SEED", int(time.Now().UnixNano()&0xffffffff)))
	perLife := envInt(t, "COWBLK_CRASH_PER_LIFE", 80)
	start, cuts, lives := time.Now(), 0, 0
	counts := map[string]int{}
	n := uint64(0)
	defer func() {
		if t.Failed() {
			t.Logf("COWBLK_CRASH_SEED=%d begins with the failure", seed+n)
		}
	}()
	for ; cuts < want; n++ {
		c := &Chain{Seed: seed + n, Lives: 4, Steps: 30, Cuts: perLife, Moments: (perLife + 7) / 8,
			Counts: counts}
		for l := c.Next(); l != nil; l = c.Next() {
			made, err := c.Examine(l, play(t, l))
			cuts += made
			lives++
			if err != nil {
				report(t, c, l, err)
			}
		}
	}
	for _, what := range sortedKeys(counts) {
		t.Logf("%8d %s", counts[what], what)
	}
	t.Logf("%d cuts in %d lives in %.1f s (seed %d)", cuts, lives, time.Since(start).Seconds(),
		seed)
}

// The steps after a refused open continue without that disk, including a promotion of it and an
// open disk.
func TestRefusedOpen(t *testing.T) {
	script, err := Parse(`
		create a 36352 0
		kill
		open a
		open b
		promote a,b t
		write a 0+4096`)
	test.Must(t, err)
	play(t, &Life{Script: script})
}

// report fails the test with the shortest script that shows the failure.
func report(t *testing.T, c *Chain, l *Life, err error) {
	t.Helper()
	var f *Failure
	if !errors.As(err, &f) {
		t.Fatalf("COWBLK_CRASH_SEED=%d: %v", c.Seed, err)
	}
	t.Logf("COWBLK_CRASH_SEED=%d: life %d: %v", c.Seed, c.next, err)
	short := Minimise(l, func(l *Life) *Failure { return playAndExamine(t, l) })
	if short == nil {
		short = f
	}
	t.Fatalf("shortest script found, %d of %d steps: %v", len(short.Life.Script), len(l.Script),
		short)
}

// playAndExamine plays a life and cuts it at every boundary.
func playAndExamine(t *testing.T, l *Life) *Failure {
	t.Helper()
	var f *Failure
	try := *l
	try.Moments = 3
	p := tryPlay(t, &try)
	if p == nil {
		return nil
	}
	if _, err := l.Examine(p, Exam{Seed: l.Seed, Every: true, Moments: 1, Singles: 2,
		Extra: 2}); errors.As(err, &f) {
		return f
	}
	return nil
}
