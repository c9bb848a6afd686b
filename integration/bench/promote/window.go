package promote

import (
	"fmt"
	"slices"
	"time"
)

// pair holds the figures of one promotion's window and of the window after it, in nanoseconds.
type pair struct {
	command, window int64 // durations: command to reply, command to sealed
	untilReply      int64 // longest request in flight between command and reply
	sealing         int64 // longest request in flight in the whole window
	quietUntilReply int64 // the same in windows of these lengths without a promotion
	quiet           int64
	requests        int
}

// longest returns the longest of the requests that were in flight between from and to.
func longest(samples []sample, from, to int64) (most int64, n int) {
	for _, s := range samples {
		if s.end >= from && s.start <= to {
			most = max(most, s.end-s.start)
			n++
		}
	}
	return most, n
}

// measure makes one scenario's promotions.
func (s *settings) measure(sc *scenario) (pairs []pair, err error) {
	target, err := s.start(sc)
	if err != nil {
		return nil, err
	}
	defer func() {
		if e := target.end(); err == nil {
			err = e
		}
	}()
	l := startLoad(target.frontend.Driver(0), s.qd, target.size, s.span)
	defer func() {
		if e := l.finish(); err == nil {
			err = e
		}
	}()
	time.Sleep(200 * time.Millisecond)
	for range sc.depth {
		if err := target.promote(); err != nil {
			return nil, err
		}
		if err := target.waitSealed(); err != nil {
			return nil, err
		}
	}
	for range sc.count {
		if err := target.freeSealed(sc.dirty / 2); err != nil {
			return nil, err
		}
		l.dirty(sc.dirty)
		time.Sleep(50 * time.Millisecond)
		l.takeSamples()
		from := l.now()
		if err := target.promote(); err != nil {
			return nil, err
		}
		replied := l.now()
		if err := target.waitSealed(); err != nil {
			return nil, err
		}
		sealed := l.now()
		time.Sleep(20 * time.Millisecond)
		samples := l.takeSamples()
		quiet := l.now()
		time.Sleep(time.Duration(sealed - from))
		end := l.now()
		time.Sleep(20 * time.Millisecond)
		p := pair{command: replied - from, window: sealed - from}
		rest := l.takeSamples()
		p.untilReply, _ = longest(append(samples, rest...), from, replied)
		p.sealing, p.requests = longest(append(samples, rest...), from, sealed)
		p.quietUntilReply, _ = longest(rest, quiet, quiet+p.command)
		p.quiet, _ = longest(rest, quiet, end)
		pairs = append(pairs, p)
	}
	return pairs, nil
}

var heading = []string{
	"", "promotions", "command", "to sealed", "requests/s",
	"cut p50", "p99", "max", "quiet p50", "p99", "max", "added p50", "p99",
	"to sealed p50", "p99", "max", "quiet p50", "p99", "max", "added p50", "p99",
}

// rows returns a scenario's rows of the table, split by depth if it reaches deep.
func rows(sc *scenario, pairs []pair) (all [][]string) {
	bounds := []int{0, len(pairs)}
	if len(pairs) > 200 {
		bounds = []int{0, 100, len(pairs)}
	}
	for i, to := range bounds[1:] {
		from := bounds[i]
		name := sc.name
		if len(bounds) > 2 {
			name = fmt.Sprintf("%s, depth %d to %d", sc.name, sc.depth+from+1, sc.depth+to)
		}
		all = append(all, row(name, pairs[from:to]))
	}
	return all
}

func row(name string, pairs []pair) []string {
	pick := func(f func(pair) int64) []int64 {
		var v []int64
		for _, p := range pairs {
			v = append(v, f(p))
		}
		slices.Sort(v)
		return v
	}
	at := func(v []int64, q float64) int64 { return v[min(int(q*float64(len(v))), len(v)-1)] }
	ms := func(ns int64) string { return fmt.Sprintf("%.2f", float64(ns)/1e6) }
	var requests, time int64
	for _, p := range pairs {
		requests += int64(p.requests)
		time += p.window
	}
	out := []string{
		name, fmt.Sprint(len(pairs)), ms(at(pick(func(p pair) int64 { return p.command }), 0.5)),
		ms(at(pick(func(p pair) int64 { return p.window }), 0.5)),
		fmt.Sprint(requests * 1e9 / max(time, 1)),
	}
	for _, two := range [][2][]int64{
		{pick(func(p pair) int64 { return p.untilReply }),
			pick(func(p pair) int64 { return p.quietUntilReply })},
		{pick(func(p pair) int64 { return p.sealing }),
			pick(func(p pair) int64 { return p.quiet })},
	} {
		for _, v := range two {
			out = append(out, ms(at(v, 0.5)), ms(at(v, 0.99)), ms(v[len(v)-1]))
		}
		out = append(out, ms(at(two[0], 0.5)-at(two[1], 0.5)),
			ms(at(two[0], 0.99)-at(two[1], 0.99)))
	}
	return out
}
